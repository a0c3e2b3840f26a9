"""Packing: short rows share a long one, as many as fit."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gptoss_ft.harmony.render import IGNORE

BINS_AT_ONCE = 256
PACKED_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "loss_weights": pa.list_(pa.float32()),
        "documents": pa.list_(pa.int32()),
    }
)


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of row indices whose lengths sum to at most `capacity`.

    Longest first, each into the bin that it fills best (best-fit decreasing, Johnson 1973: at most
    11/9 of the fewest bins possible, and far closer on real lengths).

    Args:
        lengths: tokens of each row, all at most `capacity`.
        capacity: tokens of a bin.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # free tokens -> bins
    free: list[int] = []  # the keys of open_bins, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect_left(free, length)
        if place == len(free):
            bins.append([index])
            left, target = capacity - length, len(bins) - 1
        else:
            space = free[place]
            target = open_bins[space].pop()
            if not open_bins[space]:
                del open_bins[space]
                free.pop(place)
            bins[target].append(index)
            left = space - length
        if left not in open_bins:
            open_bins[left] = []
            insort(free, left)
        open_bins[left].append(target)
    return bins


def pack_rows(rows: pa.Table, bins: list[list[int]], file: Path) -> None:
    """Writes packed rows as an Arrow stream, a few hundred bins at a time.

    The first token of a document has nothing before it, so its label is taken out.

    Args:
        rows: columns `input_ids`, `labels`, `loss_weights`, `length`.
        bins: row indices of each packed row, in the order in which they are to stand.
        file: where the stream goes; columns as those of `rows` but `length`, and `documents`, the
            lengths of the documents of a packed row.
    """
    lengths = rows.column("length").to_numpy()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, PACKED_SCHEMA) as writer:
        for start in range(0, len(bins), BINS_AT_ONCE):
            writer.write_batch(_packed(rows, bins[start : start + BINS_AT_ONCE], lengths))


def _packed(rows: pa.Table, bins: list[list[int]], lengths: np.ndarray) -> pa.RecordBatch:
    order = np.concatenate([np.asarray(members) for members in bins])
    documents = lengths[order].astype(np.int32)
    members = _offsets([len(group) for group in bins])
    tokens = _offsets(np.add.reduceat(documents, members[:-1]))
    first = _offsets(documents)[:-1]
    columns = {}
    for name, untrained in (("input_ids", None), ("labels", IGNORE), ("loss_weights", 0.0)):
        values = (
            rows.column(name).take(pa.array(order)).combine_chunks().flatten().to_numpy().copy()
        )
        if untrained is not None:
            values[first] = untrained
        columns[name] = pa.ListArray.from_arrays(pa.array(tokens), pa.array(values))
    columns["documents"] = pa.ListArray.from_arrays(pa.array(members), pa.array(documents))
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=PACKED_SCHEMA)


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
