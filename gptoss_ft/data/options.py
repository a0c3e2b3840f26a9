"""Sources of rows, and their way to training rows (config group `data`)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.data.layouts.maps import columns_problems, load_map, map_problems
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.vocabulary import CONTEXT_TOKENS
from gptoss_ft.validation import choice_field, dotted, field_problems, number_field, path_field


@dataclass
class ReadingOptions:
    """All that is said about rows, wherever they are read.

    Attributes:
        format: name of their format; empty to detect it row by row.
        map: how the columns of a well-known dataset are read, by name (`configs/maps`), or a YAML
            file of your own; empty for none.
        columns: what a format reads, and the column, path or template it stands in: `{prompt:
            question, completion: answer.text, system: "You are {role}."}`.
        ignore: columns, and keys of messages, to train without.
    """

    format: str = choice_field("", ("", *FORMATS), "unknown format")
    map: str = path_field()
    # A mapping of texts; typed so, OmegaConf would refuse keys that the schema does not have.
    columns: Any = None
    ignore: list[str] = field(default_factory=list)

    @property
    def reading(self) -> Reading:
        """All that is said, the map's part and the settings' together; a setting outdoes the map.

        Raises:
            ConfigError: the map cannot be read.
        """
        known = load_map(self.map, "map") if self.map else {}
        columns = {**(known.get("columns") or {}), **(self.columns or {})}
        ignore = frozenset((*(known.get("ignore") or ()), *self.ignore))
        return Reading(self.format or known.get("format", ""), tuple(columns.items()), ignore)

    def problems(self, key: str = "") -> list[Problem]:
        """Finds values out of range and maps that are none; `key` is the config prefix."""
        found = field_problems(self, key)
        found += columns_problems(self.columns or {}, dotted(key, "columns"))
        return found + map_problems(self.map, dotted(key, "map"))


@dataclass
class SourceOptions(ReadingOptions):
    """One source of rows.

    Attributes:
        path: a JSONL, JSON, Parquet, CSV, .txt or .md file, a folder of such files, or a dataset's
            Hub name with `hub=true`.
        weight: how often its rows are seen in an epoch: 0.5 takes every second one, 2 each twice.
        split: split of a Hub dataset.
    """

    path: str = path_field()
    weight: float = number_field(
        1.0, above=0, mend="write a number above 0; leave the source out to not use it"
    )
    split: str = "train"

    def problems(self, key: str = "") -> list[Problem]:
        """Finds values out of range; `key` is the config prefix, such as `data.sources[0]`."""
        found = []
        if not self.path:
            where = dotted(key, "path")
            found.append(Problem("no data file given", where, mend="write its path"))
        return [*found, *super().problems(key)]


@dataclass
class DataOptions(ReadingOptions):
    """Sources of rows, and their way to training rows (config group `data`).

    Attributes:
        path: one source, read as `format`, `map`, `columns` and `ignore` say; `sources` in its
            place for several.
        sources: several sources with weights.
        validation_path: a source that is held out; None for none.
        validation_split: share of the conversations to hold out instead, 0 for none.
        validation_count: number of conversations to hold out instead, 0 for none.
        max_length: longest row in tokens; of a pair prompt, chosen and rejected together.
        packing: whether rows share rows of `max_length`, each seeing only itself, with positions of
            its own; the loss and its gradient are those of the rows one by one. A batch is then
            `trainer.per_device_train_batch_size` packed rows, full to within a percent, and an
            epoch every packed row once. Without it a row is padded to the longest of its batch;
            preference pairs are laid end to end either way, and a batch is then so many pairs.
        on_too_long: what happens to longer rows: drop (counted), error, or truncate, which leaves
            out whole turns, the oldest first, of pairs those of the prompt. Plain text is cut into
            rows of this length anyway.
        duplicates: keep or drop examples that say the same; they are counted either way.
        without_analysis: what happens to conversations with a trained final that has no analysis:
            keep, low (effort low, unless the row names one) or drop.
        on_rated: what sft does with preference pairs and rated answers: refuse them, or train the
            good side alone: the chosen completion, and the answers labelled good. Bad ones and
            ties are left out and counted.
        seed: of split, weights and packing.
        workers: processes that render; 0 for one per CPU where the files are large.
        cache: folder for rendered rows; empty for `$XDG_CACHE_HOME/gptoss-ft`, by default
            `~/.cache/gptoss-ft`.
        render: see `RenderOptions`.
    """

    path: str = path_field()
    sources: list[SourceOptions] = field(default_factory=list)
    validation_path: str | None = path_field(None)
    validation_split: float = number_field(0.0, least=0, below=1)
    validation_count: int = number_field(0, least=0)
    max_length: int = number_field(4096, least=1, most=CONTEXT_TOKENS)
    packing: bool = True
    on_too_long: str = choice_field("drop", ("drop", "error", "truncate"))
    duplicates: str = choice_field("keep", ("keep", "drop"))
    without_analysis: str = choice_field("keep", ("keep", "low", "drop"))
    on_rated: str = choice_field("refuse", ("refuse", "good"))
    seed: int = 0
    workers: int = number_field(0, least=0)
    cache: str = path_field()
    render: RenderOptions = field(default_factory=RenderOptions)

    @property
    def training_sources(self) -> list[SourceOptions]:
        """The sources to train on, `path` as one of them."""
        return self.sources or [
            SourceOptions(self.format, self.map, self.columns, self.ignore, path=self.path)
        ]

    @property
    def validation_source(self) -> SourceOptions | None:
        """The source that is held out, if there is one."""
        return SourceOptions(path=self.validation_path) if self.validation_path else None

    @property
    def has_validation(self) -> bool:
        """True if rows are held out for evaluation."""
        return bool(self.validation_path or self.validation_split or self.validation_count)

    def problems(self, key: str = "") -> list[Problem]:
        """Finds values out of range and contradictions; `key` is the config prefix, such as
        `data`.
        """
        return [
            *self._source_problems(key),
            *self._validation_problems(key),
            *super().problems(key),
            *self.render.problems(dotted(key, "render")),
        ]

    def _source_problems(self, key: str) -> list[Problem]:
        if self.sources and self.path:
            mend = "put the path among the sources, or leave the sources out"
            where = f"{dotted(key, 'path')}, {dotted(key, 'sources')}"
            return [Problem("data is given twice", where, repr(self.path), mend)]
        if not self.sources and not self.path:
            mend = "write data.path=FILE.jsonl"
            return [Problem("no data file given", dotted(key, "path"), mend=mend)]
        said = [name for name in ("format", "map", "columns", "ignore") if getattr(self, name)]
        if self.sources and said:
            what, where = (
                f"this is the {said[0]} of `path`, not of the sources",
                dotted(key, said[0]),
            )
            mend = f"write it beside each source: {{path: FILE, {said[0]}: …}}"
            return [Problem(what, where, repr(getattr(self, said[0])), mend)]
        return [
            problem
            for index, source in enumerate(self.sources)
            for problem in source.problems(dotted(key, f"sources[{index}]"))
        ]

    def _validation_problems(self, key: str) -> list[Problem]:
        given = [
            name
            for name in ("validation_path", "validation_split", "validation_count")
            if getattr(self, name)
        ]
        if len(given) < 2:
            return []
        where = ", ".join(dotted(key, name) for name in given)
        mend = f"give one of {' and '.join(given)}"
        return [Problem("several sources of validation rows", where, mend=mend)]


def cache_folder(cache: str) -> Path:
    """Returns the folder of rendered rows for a value of `DataOptions.cache`."""
    if cache:
        return Path(cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "gptoss-ft"
