"""Where rows come from and how they become training rows (config group `data`)."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.vocabulary import CONTEXT_TOKENS

CHOICES = {
    "on_too_long": ("drop", "error", "truncate"),
    "duplicates": ("keep", "drop"),
    "without_analysis": ("keep", "low", "drop"),
}


@dataclass
class SourceOptions:
    """One source of rows.

    Attributes:
        path: a JSONL, JSON, Parquet, CSV, .txt or .md file, a folder of such files, or a dataset's
            Hub name with `hub=true`.
        format: name of the format of its rows; empty to detect it row by row.
        weight: how often its rows are seen in an epoch: 0.5 takes every second one, 2 each twice.
        split: split of a Hub dataset.
    """

    path: str = ""
    format: str = ""
    weight: float = 1.0
    split: str = "train"

    def problems(self, key: str) -> list[Problem]:
        """Finds values out of range; `key` is the config prefix, such as `data.sources[0]`."""
        found = []
        if not self.path:
            found.append(Problem("no data file given", f"{key}.path", mend="write its path"))
        if self.format and self.format not in FORMATS:
            near = difflib.get_close_matches(self.format, FORMATS, 1)
            mend = f"did you mean {near[0]}? " if near else ""
            mend += f"choose from: {', '.join(FORMATS)}"
            found.append(Problem("unknown format", f"{key}.format", repr(self.format), mend))
        if not (math.isfinite(self.weight) and self.weight > 0):
            mend = "write a number above 0; leave the source out to not use it"
            found.append(Problem("out of range", f"{key}.weight", str(self.weight), mend))
        return found


@dataclass
class DataOptions:
    """Where the rows are and how they become training rows (config group `data`).

    Attributes:
        path: one source; `sources` in its place for several.
        format: format of the rows of `path`; empty to detect it.
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
        seed: of split, weights and packing.
        workers: processes that render; 0 for one per CPU where the files are large.
        cache: folder for rendered rows; empty for `$XDG_CACHE_HOME/gptoss-ft`, by default
            `~/.cache/gptoss-ft`.
        render: see `RenderOptions`.
    """

    path: str = ""
    format: str = ""
    sources: list[SourceOptions] = field(default_factory=list)
    validation_path: str | None = None
    validation_split: float = 0.0
    validation_count: int = 0
    max_length: int = 4096
    packing: bool = True
    on_too_long: str = "drop"
    duplicates: str = "keep"
    without_analysis: str = "keep"
    seed: int = 0
    workers: int = 0
    cache: str = ""
    render: RenderOptions = field(default_factory=RenderOptions)

    @property
    def training_sources(self) -> list[SourceOptions]:
        """The sources to train on, `path` as one of them."""
        return self.sources or [SourceOptions(self.path, self.format)]

    @property
    def validation_source(self) -> SourceOptions | None:
        """The source that is held out, if there is one."""
        return SourceOptions(self.validation_path) if self.validation_path else None

    @property
    def has_validation(self) -> bool:
        """Whether rows are held out for evaluation."""
        return bool(self.validation_path or self.validation_split or self.validation_count)

    def problems(self, key: str) -> list[Problem]:
        """Finds values out of range and contradictions; `key` is the config prefix, such as
        `data`.
        """
        found = [*self._source_problems(key), *self._validation_problems(key)]
        if not 1 <= self.max_length <= CONTEXT_TOKENS:
            mend = f"write a number of tokens from 1 to {CONTEXT_TOKENS}"
            found.append(Problem("out of range", f"{key}.max_length", str(self.max_length), mend))
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                mend = f"write one of {', '.join(choices)}"
                found.append(Problem("unknown choice", f"{key}.{name}", repr(value), mend))
        if self.workers < 0:
            found.append(Problem("must not be negative", f"{key}.workers", str(self.workers)))
        return found + self.render.problems(f"{key}.render")

    def _source_problems(self, key: str) -> list[Problem]:
        if self.sources and self.path:
            mend = "put the path among the sources, or leave the sources out"
            where = f"{key}.path, {key}.sources"
            return [Problem("data is given twice", where, repr(self.path), mend)]
        if not self.sources and not self.path:
            mend = "write data.path=FILE.jsonl"
            return [Problem("no data file given", f"{key}.path", mend=mend)]
        if not self.sources:
            return SourceOptions(self.path, self.format).problems(key)
        return [
            problem
            for index, source in enumerate(self.sources)
            for problem in source.problems(f"{key}.sources[{index}]")
        ]

    def _validation_problems(self, key: str) -> list[Problem]:
        found = []
        if not (math.isfinite(self.validation_split) and 0 <= self.validation_split < 1):
            mend = "write a share from 0 to below 1, such as 0.1"
            value = str(self.validation_split)
            found.append(Problem("out of range", f"{key}.validation_split", value, mend))
        if self.validation_count < 0:
            value = str(self.validation_count)
            found.append(Problem("must not be negative", f"{key}.validation_count", value))
        given = [
            name
            for name in ("validation_path", "validation_split", "validation_count")
            if getattr(self, name)
        ]
        if len(given) > 1:
            where = ", ".join(f"{key}.{name}" for name in given)
            mend = f"give one of {' and '.join(given)}"
            found.append(Problem("several sources of validation rows", where, mend=mend))
        return found


def cache_folder(cache: str) -> Path:
    """Returns the folder of rendered rows for a value of `DataOptions.cache`."""
    if cache:
        return Path(cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "gptoss-ft"
