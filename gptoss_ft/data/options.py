"""Sources of rows, and their way to training rows (config group `data`)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.data.layouts.maps import columns_problems, load_map, map_problems
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.vocabulary import CONTEXT_TOKENS
from gptoss_ft.validation import (
    choice_field,
    dotted,
    field_problems,
    number_field,
    path_field,
    text_field,
)


@dataclass(kw_only=True)
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
        path: a JSONL, JSON, Parquet, Arrow, CSV, Excel, .txt or .md file, a folder of such files,
            or a dataset's Hub name with `hub=true`.
        weight: how often its rows are seen in an epoch: 0.5 takes every second one, 2 each twice.
        subset: of a Hub dataset, or of a folder that is a copy of one; empty for its default.
        split: `NAME`, or `NAME+NAME`, of a Hub dataset, of a folder whose files name their splits,
            or of the lists in a JSON file; empty for the one to train on.
    """

    path: str = path_field()
    weight: float = number_field(
        1.0, above=0, mend="write a number above 0; leave the source out to not use it"
    )
    subset: str = text_field()
    split: str = text_field()

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
        subset: subset of `path`, as in `SourceOptions`.
        split: split of `path`, as in `SourceOptions`.
        sources: several sources with weights.
        validation: a source that is held out, read as `path` is unless it says more. A split
            without a path is one of `path`.
        validation_path: the same as `validation.path`.
        validation_split: share of the conversations to hold out instead, 0 for none. Those that
            say the same stay on one side, and of pairs and ratings those with the same prompt.
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
        on_bad: what happens to rows that cannot be read or rendered: refuse, which lists them, or
            drop, which leaves them out, counts them by cause, and writes them to `dropped.jsonl` in
            the folder of the run. Files that cannot be read as a whole are refused anyway.
        duplicates: keep or drop examples that say the same; they are counted either way. Those that
            are also in a source of validation rows are then dropped from training.
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
    subset: str = text_field()
    split: str = text_field()
    sources: list[SourceOptions] = field(default_factory=list)
    validation: SourceOptions = field(default_factory=SourceOptions)
    validation_path: str | None = path_field(None)
    validation_split: float = number_field(0.0, least=0, below=1)
    validation_count: int = number_field(0, least=0)
    max_length: int = number_field(4096, least=1, most=CONTEXT_TOKENS)
    packing: bool = True
    on_too_long: str = choice_field("drop", ("drop", "error", "truncate"))
    on_bad: str = choice_field("refuse", ("refuse", "drop"))
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
            SourceOptions(
                path=self.path,
                subset=self.subset,
                split=self.split,
                format=self.format,
                map=self.map,
                columns=self.columns,
                ignore=self.ignore,
            )
        ]

    @property
    def validation_source(self) -> SourceOptions | None:
        """The source that is held out, if there is one."""
        path = self.validation_path
        said = {"path": path} if path else _said(self.validation)
        if not said:
            return None
        if self.sources:
            return SourceOptions(**said)
        # Unless it says more, it is read as `path` is; without a path it is another split of it.
        trained = replace(self.training_sources[0], weight=1.0)
        if "path" not in said:
            return replace(trained, **said)
        names = [item.name for item in fields(ReadingOptions)]
        reading = {name: getattr(trained, name) for name in names}
        return SourceOptions(**(said if reading.keys() & said else {**reading, **said}))

    @property
    def has_validation(self) -> bool:
        """True if rows are held out for evaluation."""
        return bool(self.validation_source or self.validation_split or self.validation_count)

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
        misplaced = [
            Problem(
                f"this is the {name} of `path`, not of the sources",
                dotted(key, name),
                repr(getattr(self, name)),
                f"write it beside each source: {{path: FILE, {name}: …}}",
            )
            for name in ("format", "map", "columns", "ignore", "subset", "split")
            if self.sources and getattr(self, name)
        ]
        return misplaced or [
            problem
            for index, source in enumerate(self.sources)
            for problem in source.problems(dotted(key, f"sources[{index}]"))
        ]

    def _validation_problems(self, key: str) -> list[Problem]:
        ways = {
            "validation": _said(self.validation),
            "validation_path": self.validation_path,
            "validation_split": self.validation_split,
            "validation_count": self.validation_count,
        }
        given = [name for name, value in ways.items() if value]
        if len(given) < 2:
            return self._validation_source_problems(key) if ways["validation"] else []
        where = ", ".join(dotted(key, name) for name in given)
        mend = f"give one of {' and '.join(given)}"
        return [Problem("several sources of validation rows", where, mend=mend)]

    def _validation_source_problems(self, key: str) -> list[Problem]:
        prefix = dotted(key, "validation")
        place = {name: dotted(prefix, name) for name in ("path", "split", "weight")}
        found = ReadingOptions.problems(self.validation, prefix)
        if self.validation.weight != 1 and not found:
            mend = f"leave {place['weight']} out"
            what, weight = "validation rows have no weight", str(self.validation.weight)
            found.append(Problem(what, place["weight"], weight, mend))
        if self.validation.path or (_said(self.validation).get("split") and self.path):
            return found
        mend = f"write {place['path']}=FILE.jsonl"
        if self.sources:
            what = "which of the sources has the validation rows is not said"
        else:
            what = "no file of validation rows given"
            mend += f", or {place['split']}=NAME for another split of data.path"
        return [*found, Problem(what, place["path"], mend=mend)]


def _said(source: SourceOptions) -> dict[str, Any]:
    """Returns the fields of a source that differ from those of one of which nothing is said."""
    nothing = SourceOptions()
    values = {item.name: getattr(source, item.name) for item in fields(source)}
    return {name: value for name, value in values.items() if value != getattr(nothing, name)}


def cache_folder(cache: str) -> Path:
    """Returns the folder of rendered rows for a value of `DataOptions.cache`."""
    if cache:
        return Path(cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "gptoss-ft"
