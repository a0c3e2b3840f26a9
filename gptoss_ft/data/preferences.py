"""Data files to the rows of preference tuning: rendered, mixed, ordered, packed, and written.

Rows are rendered once and stay in the cache. What a run trains on is a selection of them in some
order, to which the log-probabilities of a reference may come; it is written as one file, in the
order in which it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from gptoss_ft.data import pack
from gptoss_ft.data.bad import DroppedRows
from gptoss_ft.data.dataset import (
    check_rows_left,
    choose,
    column,
    data_fingerprint,
    dropped_rows,
    joined,
)
from gptoss_ft.data.dataset import render_sources as render
from gptoss_ft.data.mix import Mix
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.overlap import overlap
from gptoss_ft.data.pack import Bins, ListColumn, best_fit
from gptoss_ft.data.pair_summary import PairSummary, summarise_pairs
from gptoss_ft.data.pairs import PAIR_SCHEMA, PAIRS, RATED_SCHEMA, RATINGS, SAME, list_array
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.files import atomic_file
from gptoss_ft.harmony.vocabulary import Vocabulary

OPPOSED = "ties: another row prefers the other completion"
# Columns for splitting and counting, which training does not need.
_AUXILIARY = ("example", "digest", "group", "reverse")


@dataclass(frozen=True)
class Groups:
    """Batch sizes of rated rows, which decide whose completions are mismatched.

    Attributes:
        train, validation: rows of a batch.
    """

    train: int
    validation: int


@dataclass(frozen=True)
class Selection:
    """Rows in the order in which they are seen.

    Attributes:
        rows: int64, indices of rendered rows.
        partners: int64, of each the row whose completion stands in for a mismatched one, in the
            estimate of KTO's divergence; None where none is estimated.
        bins: which positions in `rows` share a packed row; None without packing.
    """

    rows: np.ndarray
    partners: np.ndarray | None = None
    bins: Bins | None = None

    def __len__(self) -> int:
        """Counts the rows before packing."""
        return len(self.rows)


@dataclass(frozen=True)
class Branch:
    """Completions that a reference scores, one for each row of a selection.

    Attributes:
        scores: the column that is to hold their log-probabilities, per token.
        ids: the column of rendered rows that holds their tokens.
        rows: int64, the row that each is taken from.
    """

    scores: str
    ids: str
    rows: np.ndarray


@dataclass(frozen=True)
class PreferenceData:
    """Prepared preference data of a run.

    Attributes:
        rows: rendered rows of all sources, memory-mapped, in the columns of `PAIR_SCHEMA` or
            `RATED_SCHEMA`.
        rated: whether they are rated completions rather than pairs.
        train: what is trained on.
        validation: what is held out; may be empty.
        summary: counts.
        fingerprint: sha256 over the sources' bytes, the options and the vocabulary.
        dropped: the bad rows that were left out, by source.
    """

    rows: datasets.Dataset
    rated: bool
    train: Selection
    validation: Selection
    summary: PairSummary
    fingerprint: str
    dropped: tuple[DroppedRows, ...] = ()

    def branches(self, selection: Selection) -> list[Branch]:
        """Lists the completions of a selection that a reference scores."""
        if not self.rated:
            return [
                Branch(f"ref_{side}_logps", f"{side}_ids", selection.rows)
                for side in ("chosen", "rejected")
            ]
        found = [Branch("ref_logps", "completion_ids", selection.rows)]
        if selection.partners is not None:
            found.append(Branch("ref_kl_logps", "completion_ids", selection.partners))
        return found


def prepare_pairs(
    options: DataOptions, vocabulary: Vocabulary, model: Path | None = None, hub: bool = False
) -> PreferenceData:
    """Prepares the pairs of all sources: rendered or from the cache, split, and packed if asked
    for.

    See `dataset.prepare` for arguments and errors; rows that are no pairs are refused, and so
    is data in which every chosen completion equals the rejected one.
    """
    rendered = render(options, vocabulary, model, hub, PAIRS)
    rows, counts = joined(rendered)
    _check_difference(counts, options)
    opposed = _opposed(column(rows, "digest"), column(rows, "reverse"))
    counts.dropped.update({OPPOSED: int(opposed.sum())} if opposed.any() else {})
    chosen = choose(rendered, options)
    counts.dropped.update(chosen.withheld)
    chosen = replace(
        chosen,
        train=chosen.train[~opposed[chosen.train]],
        validation=chosen.validation[~opposed[chosen.validation]],
    )
    summary = summarise_pairs(counts, column(rows, "length"), "pairs")
    summary.cached = all(source.cached for source in rendered)
    check_rows_left(chosen, options, counts.dropped)
    lengths = column(rows, "length")
    train, validation = (
        Selection(indices, bins=_bins(lengths[indices], options))
        for indices in (chosen.train, chosen.validation)
    )
    _count(summary, rows, chosen, train, validation)
    if train.bins is not None:
        summary.packed_rows = len(train.bins.offsets) - 1
        summary.packed_validation_rows = len(validation.bins.offsets) - 1 if validation.bins else 0
        room = summary.packed_rows * options.max_length
        summary.packed_share = float(lengths[train.rows].sum() / room)
    fingerprint = data_fingerprint(rendered, options)
    dropped = dropped_rows(rendered)
    return PreferenceData(rows, False, train, validation, summary, fingerprint, dropped)


def prepare_ratings(
    options: DataOptions,
    vocabulary: Vocabulary,
    groups: Groups | None,
    model: Path | None = None,
    hub: bool = False,
) -> PreferenceData:
    """Prepares the rated completions of all sources, shuffled once; a pair becomes two of them.

    Training sees them in this order in every epoch: the completion that stands in for a mismatched
    one, with which KTO estimates its divergence, is that of the row before in the same batch, the
    last one for the first (Ethayarajh et al. 2024, and TRL). A batch of a single row takes the one
    of the row before it.

    Args:
        options, vocabulary, model, hub: as in `dataset.prepare`, which also lists the errors.
        groups: how the rows are batched; None for losses that estimate no divergence.
    """
    rendered = render(options, vocabulary, model, hub, RATINGS)
    rows, counts = joined(rendered)
    _check_difference(counts, options)
    chosen = choose(rendered, options)
    counts.dropped.update(chosen.withheld)
    summary = summarise_pairs(counts, column(rows, "length"), "rated completions")
    summary.cached = all(source.cached for source in rendered)
    check_rows_left(chosen, options, counts.dropped)
    generator = np.random.default_rng(options.seed)
    train, validation = (
        Selection(order, partners(order, group) if group and len(order) else None)
        for order, group in (
            (generator.permutation(chosen.train), groups and groups.train),
            (chosen.validation, groups and groups.validation),
        )
    )
    _count(summary, rows, chosen, train, validation)
    labels = rows.data.column("label").to_numpy()
    summary.good = int(labels[train.rows].sum())
    settings = [data_fingerprint(rendered, options), groups and [groups.train, groups.validation]]
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    dropped = dropped_rows(rendered)
    return PreferenceData(rows, True, train, validation, summary, fingerprint, dropped)


def partners(order: np.ndarray, group: int) -> np.ndarray:
    """Returns for each row the one before it among each `group` consecutive ones, and the last for
    the first.

    A group of one takes the row before the group; a single row in all has only itself.
    """
    position = np.arange(len(order))
    first = position % group == 0
    last = np.minimum(position + group, len(order)) - 1
    previous = np.where(first, last, position - 1)
    alone = first & (last == position)
    return order[np.where(alone, np.maximum(position - 1, 0), previous)]


def _check_difference(counts: Counts, options: DataOptions) -> None:
    """Refuses data in which both completions of every pair are the same."""
    same = counts.dropped[SAME]
    if same and not counts.rows and same == counts.formats.total():
        where = ", ".join(source.path for source in options.training_sources)
        mend = "check which columns hold the better and the worse completion"
        raise DataError(
            Problem("chosen equals rejected in every pair", where, f"{same} pairs", mend)
        )


def _opposed(digests: np.ndarray, reverses: np.ndarray) -> np.ndarray:
    """Finds pairs that are preferred as often one way as the other, bool."""
    keys, inverse = np.unique(np.minimum(digests, reverses), return_inverse=True)
    votes = np.zeros(len(keys), dtype=np.int64)
    np.add.at(votes, inverse, np.where(digests < reverses, 1, -1))
    return votes[inverse] == 0


def _bins(lengths: np.ndarray, options: DataOptions) -> Bins | None:
    if not (options.packing and len(lengths)):
        return None
    return best_fit(lengths, options.max_length, options.seed)


def _count(
    summary: PairSummary,
    rows: datasets.Dataset,
    chosen: Mix,
    train: Selection,
    validation: Selection,
) -> None:
    summary.duplicates = chosen.duplicates
    summary.validation_overlap = overlap(column(rows, "digest"), chosen)
    summary.train_rows, summary.validation_rows = len(train), len(validation)


def write_rows(
    data: PreferenceData,
    selection: Selection,
    reference: Mapping[str, tuple[ListColumn, np.ndarray]],
    file: Path,
) -> datasets.Dataset:
    """Writes a selection as an Arrow file, whole or not at all, and opens it.

    Args:
        data: what the selection is of; not empty.
        selection: the rows.
        reference: columns of log-probabilities: lists, and the index of the list of each row.
        file: where it goes.

    Returns:
        the columns of `PAIR_SCHEMA` or `RATED_SCHEMA` without those for counting; the columns of
        `reference`; of rated rows with partners `kl_ids`, `kl_weights` and `kl_channels`. With
        packing `pairs`, a list of such rows, and `length`, their tokens.
    """
    lists, numbers = _columns(data, selection, reference)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        writer: pa.RecordBatchStreamWriter | None = None
        for positions, offsets in _parts(data, selection):
            batch = _batch(lists, numbers, positions)
            batch = batch if offsets is None else _packed(batch, offsets)
            writer = writer or pa.ipc.new_stream(sink, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
    return datasets.Dataset.from_file(str(file))


def _columns(
    data: PreferenceData,
    selection: Selection,
    reference: Mapping[str, tuple[ListColumn, np.ndarray]],
) -> tuple[dict[str, tuple[ListColumn, np.ndarray]], dict[str, np.ndarray]]:
    """Collects columns of lists, each with the list of every position, and columns of numbers."""
    schema = RATED_SCHEMA if data.rated else PAIR_SCHEMA
    table = data.rows.data.table
    names = [name for name in schema.names if name not in _AUXILIARY]
    sources = {
        n: ListColumn.of(table.column(n)) for n in names if pa.types.is_list(schema.field(n).type)
    }
    lists = {name: (source, selection.rows) for name, source in sources.items()}
    if selection.partners is not None:
        for part in ("ids", "weights", "channels"):
            lists[f"kl_{part}"] = (sources[f"completion_{part}"], selection.partners)
    numbers = {
        name: table.column(name).to_numpy()[selection.rows] for name in names if name not in sources
    }
    return {**lists, **reference}, numbers


def _parts(
    data: PreferenceData, selection: Selection
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields the positions of each record batch's rows and, with packing, the offsets of packed
    rows.
    """
    lengths = column(data.rows, "length")[selection.rows]
    if selection.bins is None:
        step = max(1, pack.TOKENS_AT_ONCE // int(lengths.max()))
        for start in range(0, len(lengths), step):
            yield np.arange(start, min(start + step, len(lengths))), None
        return
    order, offsets = selection.bins
    longest = int(np.add.reduceat(lengths[order], offsets[:-1]).max())
    step = max(1, pack.TOKENS_AT_ONCE // longest)
    for start in range(0, len(offsets) - 1, step):
        part = offsets[start : start + step + 1]
        yield order[part[0] : part[-1]], part - part[0]


def _batch(
    lists: Mapping[str, tuple[ListColumn, np.ndarray]],
    numbers: Mapping[str, np.ndarray],
    positions: np.ndarray,
) -> pa.RecordBatch:
    """Builds a batch of the rows at some positions."""
    columns = {
        name: list_array(source.gather(rows[positions]), source.lengths(rows[positions]))
        for name, (source, rows) in lists.items()
    }
    columns |= {name: pa.array(values[positions]) for name, values in numbers.items()}
    return pa.RecordBatch.from_pydict(columns)


def _packed(batch: pa.RecordBatch, offsets: np.ndarray) -> pa.RecordBatch:
    """Nests rows as the members of packed rows, which begin at `offsets`."""
    lengths = np.add.reduceat(batch.column("length").to_numpy(), offsets[:-1]).astype(np.int32)
    members = pa.StructArray.from_arrays(batch.columns, fields=list(batch.schema))
    pairs = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), members)
    return pa.RecordBatch.from_pydict({"pairs": pairs, "length": pa.array(lengths)})
