"""Data files to training rows: render, remember, mix, pack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from gptoss_ft.data.assemble import assembled
from gptoss_ft.data.bad import BadRow, DroppedRows, refused
from gptoss_ft.data.cache import RenderedSource, code_version, render_source
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.mix import Mix, Table, mix
from gptoss_ft.data.options import DataOptions, SourceOptions, cache_folder
from gptoss_ft.data.overlap import check_overlap, overlap, without_held_out
from gptoss_ft.data.pack import Bins, best_fit, pack_rows
from gptoss_ft.data.rows import CONVERSATIONS, RowKind, parse_chunk
from gptoss_ft.data.sources.read import RowChunk, read_source
from gptoss_ft.data.summary import Counts, DataSummary, summarise
from gptoss_ft.errors import ConfigError, DataError, GptOssFtError, Problem
from gptoss_ft.files import atomic_file
from gptoss_ft.harmony.vocabulary import Vocabulary

ROW_COLUMNS = ["input_ids", "labels", "loss_weights", "length"]


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for training.

    Attributes:
        train: columns input_ids and labels (int32), loss_weights (float32), equally long per row;
            labels stand at the position of the token they name, -100 where nothing is trained;
            length (int32), tokens of the row; documents (int32), only with `packing`: lengths of
            the rows that share a packed one.
        validation: the same columns, or None. Packed too: a loss that is a mean over trained weight
            does not depend on it.
        summary: counts.
        fingerprint: sha256 over the sources' bytes, the options and the vocabulary.
        dropped: the bad rows that were left out, by source.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    summary: DataSummary
    fingerprint: str
    dropped: tuple[DroppedRows, ...] = ()


def check_data(options: DataOptions, hub: bool = False) -> None:
    """Finds what can be found quickly: missing and empty files, and bad rows at their beginning.

    Raises:
        ConfigError: options out of range.
        DataError: problems of the first rows of every source.
    """
    problems = options.problems("data")
    if problems:
        raise ConfigError(problems)
    for source in _sources(options):
        try:
            reading = source.reading
            for chunk in assembled(read_source(source, hub), reading):
                problems += _problems(chunk, reading, options)
                break
        except GptOssFtError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)


def _problems(chunk: RowChunk, reading: Reading, options: DataOptions) -> list[Problem]:
    """Finds what is wrong with the rows of a chunk, unless bad rows are to be left out."""
    if options.on_bad == "drop":
        return []
    bad: list[BadRow] = []
    good = sum(1 for _ in parse_chunk(chunk, reading, bad.append))
    problems = [problem for row in bad for problem in row.problems]
    return refused(problems, some_are_good=good > 0)


def prepare(
    options: DataOptions, vocabulary: Vocabulary, model: Path | None = None, hub: bool = False
) -> PreparedData:
    """Renders every source, or takes it from the cache, and mixes them.

    Args:
        options: where the data is.
        vocabulary: of the model.
        model: folder from which workers load the same vocabulary; None for the packaged one.
        hub: whether the network may be used to read a dataset from the Hub.

    Raises:
        ConfigError: options out of range.
        DataError: every bad row of all sources unless such rows are left out, no row is left to
            train on, or every validation row is also trained on.
    """
    return _assemble(render_sources(options, vocabulary, model, hub), options)


def render_sources(
    options: DataOptions,
    vocabulary: Vocabulary,
    model: Path | None = None,
    hub: bool = False,
    kind: RowKind = CONVERSATIONS,
) -> list[RenderedSource]:
    """Renders the training sources, then the validation source if there is one, or takes them from
    the cache.

    Args:
        options, vocabulary, model, hub: as in `prepare`.
        kind: what the examples become.

    Raises:
        ConfigError: options out of range.
        DataError: every bad row of all sources.
    """
    problems = options.problems("data")
    if problems:
        raise ConfigError(problems)
    rendered: list[RenderedSource] = []
    for source in _sources(options):
        try:
            rendered.append(render_source(source, options, vocabulary, model, hub, kind))
        except GptOssFtError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return rendered


def _sources(options: DataOptions) -> list[SourceOptions]:
    """Returns the training sources, then the validation source if there is one."""
    held_out = options.validation_source
    return [*options.training_sources, *([held_out] if held_out else [])]


def _assemble(rendered: Sequence[RenderedSource], options: DataOptions) -> PreparedData:
    rows, counts = joined(rendered)
    chosen = choose(rendered, options)
    counts.dropped.update(chosen.withheld)
    summary = summarise(counts, column(rows, "length"))
    check_rows_left(chosen, options, summary.dropped)
    fingerprint = data_fingerprint(rendered, options)
    packed = cache_folder(options.cache) / "packed" / f"{fingerprint}-{code_version()}"
    train = _dataset(rows, chosen.train, options, packed / "train.arrow")
    validation = _dataset(rows, chosen.validation, options, packed / "validation.arrow")
    summary.duplicates = chosen.duplicates
    summary.validation_overlap = overlap(column(rows, "digest"), chosen)
    summary.train_rows, summary.validation_rows = len(chosen.train), len(chosen.validation)
    summary.cached = all(source.cached for source in rendered)
    if options.packing:
        summary.packed_rows = len(train)
        summary.packed_validation_rows = len(validation)
        summary.packed_share = float(column(train, "length").mean() / options.max_length)
    held_out = validation if len(validation) else None
    return PreparedData(train, held_out, summary, fingerprint, dropped_rows(rendered))


def dropped_rows(rendered: Sequence[RenderedSource]) -> tuple[DroppedRows, ...]:
    """Returns the bad rows that were left out of the sources."""
    return tuple(source.dropped for source in rendered if source.dropped)


def joined(rendered: Sequence[RenderedSource]) -> tuple[datasets.Dataset, Counts]:
    """Joins the rows of all sources, one after the other, and adds up their counts."""
    counts = Counts()
    for source in rendered:
        counts.add(source.counts)
    return datasets.concatenate_datasets([source.rows for source in rendered]), counts


def choose(rendered: Sequence[RenderedSource], options: DataOptions) -> Mix:
    """Chooses which of the joined rows are trained on and which are held out.

    Raises:
        DataError: too few examples to hold some out, or all those held out are trained on.
    """
    training = rendered[: len(options.training_sources)]
    chosen = mix(_table(training), options)
    if not options.validation_source:
        return chosen
    first, stop = (sum(len(source.rows) for source in part) for part in (training, rendered))
    chosen = replace(chosen, validation=np.arange(first, stop))
    digests = np.concatenate([column(source.rows, "digest") for source in rendered])
    check_overlap(digests, chosen, options)
    return without_held_out(digests, chosen) if options.duplicates == "drop" else chosen


def column(rows: datasets.Dataset, name: str) -> np.ndarray:
    """Reads a column of numbers."""
    return rows.data.column(name).to_numpy()


def _table(rendered: Sequence[RenderedSource]) -> Table:
    """Tabulates the rows of all sources, examples numbered consecutively."""
    source, example, digest, group, first = [], [], [], [], 0
    for index, item in enumerate(rendered):
        source.append(np.full(len(item.rows), index, dtype=np.int16))
        example.append(column(item.rows, "example") + np.int32(first))
        digest.append(column(item.rows, "digest"))
        group.append(column(item.rows, "group" if "group" in item.rows.column_names else "digest"))
        first += item.examples
    return Table(*(np.concatenate(part) for part in (source, example, digest, group)))


def check_rows_left(chosen: Mix, options: DataOptions, dropped: Mapping[str, int]) -> None:
    """Refuses data of which nothing is left on a side.

    Raises:
        DataError: with what became of the rows.
    """
    reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.items())
    mend = "raise data.max_length, give the messages a weight, or add data"
    sides = [("train on", chosen.train)]
    if options.has_validation:
        sides.append(("validate on", chosen.validation))
    where = ", ".join(source.path for source in _sources(options))
    problems = [
        Problem(f"no row is left to {use}", where, f"dropped {reasons or 'nothing'}", mend)
        for use, rows in sides
        if not len(rows)
    ]
    if problems:
        raise DataError(problems)


def _dataset(
    rows: datasets.Dataset, indices: np.ndarray, options: DataOptions, packed: Path
) -> datasets.Dataset:
    """Returns the chosen rows, each by itself or packed into rows of `max_length`, in a file
    `packed`.
    """
    if not (options.packing and len(indices)):
        return rows.select(indices).select_columns(ROW_COLUMNS)
    if not packed.exists():
        bins = best_fit(column(rows, "length")[indices], options.max_length, options.seed)
        packed.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(packed) as temporary:
            pack_rows(rows.data.table, Bins(indices[bins.rows], bins.offsets), temporary)
    return datasets.Dataset.from_file(str(packed))


def data_fingerprint(rendered: Sequence[RenderedSource], options: DataOptions) -> str:
    """Depends on what the sources hold and what is done with them, not on where they are."""
    settings = asdict(options)
    for name in (
        "path",
        "format",
        "map",
        "columns",
        "ignore",
        "subset",
        "split",
        "sources",
        "validation",
        "validation_path",
        "workers",
        "cache",
        "render",
    ):
        del settings[name]
    settings["weights"] = [source.weight for source in options.training_sources]
    settings["rendered"] = [source.fingerprint for source in rendered]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
