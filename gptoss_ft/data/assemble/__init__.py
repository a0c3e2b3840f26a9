"""Rows that make sense only together, put together before they are read.

Messages of a tree (`trees`), requests and results of an API's batch (`batches`), and conversations
with one message per row (`turns`). The first row of a file tells; rows of other files pass through
as they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from gptoss_ft.data.assemble import batches, trees, turns
from gptoss_ft.data.assemble.parts import Joined, Part
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.sources.chunks import CHUNK_ROWS
from gptoss_ft.data.sources.read import RowChunk, decode
from gptoss_ft.errors import DataError, Problem

__all__ = ["assembled"]


class Kind(NamedTuple):
    """Rows that are put together.

    Attributes:
        fits: whether the first row of a file shows that the file holds such rows, cheaply.
        belongs: whether a row of such a file is one of them, be it incomplete.
        join: puts them together, each result at the place of its first row.
        alone: whether a row holds all that belongs together.
    """

    fits: Callable[[Mapping[str, Any]], bool]
    belongs: Callable[[Mapping[str, Any]], bool]
    join: Callable[[Sequence[Part]], Iterator[Joined]]
    alone: bool = False


KINDS = (
    Kind(trees.fits, trees.belongs, trees.join),
    Kind(trees.fits_nested, trees.fits_nested, trees.join_nested, alone=True),
    Kind(batches.fits, batches.fits, batches.join),
    Kind(turns.fits, turns.belongs, turns.join),
)
# Formats that conversations may have; of rows that the user says are in another, each stands alone.
FORMATS = ("", "chat", "responses")


def assembled(chunks: Iterable[RowChunk], reading: Reading) -> Iterator[RowChunk]:
    """Puts together the rows of a source that belong together, over all its files.

    Such rows are kept in memory until the source ends, for the next one may belong to the first;
    all others are passed on as they come, and only the first row of a file is decoded.

    Args:
        chunks: of one source, in order.
        reading: what the user says about its rows; columns that the user names stand in each row.

    Raises:
        DataError: rows of which none can be put together.
    """
    if reading.format not in FORMATS or reading.columns:
        yield from chunks
        return
    kept: dict[Kind, list[Part]] = {}
    left_out = Counter[str]()
    rows, path, kind = 0, "", None
    for chunk in chunks:
        if chunk.path != path:
            path, kind = chunk.path, _kind(chunk)
        if kind is None:
            yield chunk
            continue
        parts, others = _parts(chunk, kind)
        if others.rows:
            yield others
        else:
            left_out.update(chunk.notes)
        if not kind.alone:
            kept.setdefault(kind, []).extend(parts)
            continue
        for joined in _chunks(kind.join(parts), left_out, chunk.done):
            rows += len(joined.rows)
            yield joined
    for kind, parts in kept.items():
        for joined in _chunks(kind.join(parts), left_out):
            rows += len(joined.rows)
            yield joined
    if left_out and not rows:
        found = "; ".join(f"{count} {what}" for what, count in left_out.items())
        raise DataError(Problem("no conversation is left of the source", path, found))


def _kind(chunk: RowChunk) -> Kind | None:
    """Returns what the first row of a file is a part of; None if it stands alone."""
    number, raw = chunk.rows[0]
    try:
        row = decode(raw, f"{chunk.path}:{number}")
    except DataError:  # it is refused where it is read
        return None
    return next((kind for kind in KINDS if kind.fits(row)), None)


def _parts(chunk: RowChunk, kind: Kind) -> tuple[list[Part], RowChunk]:
    """Separates the rows that are put together from those that are not, or are broken."""
    parts, others = [], []
    for number, raw in chunk.rows:
        try:
            row = decode(raw, f"{chunk.path}:{number}")
        except DataError:  # refused where the row is read
            others.append((number, raw))
            continue
        if kind.belongs(row):
            parts.append(Part(chunk.path, number, row))
        else:
            others.append((number, raw))
    return parts, RowChunk(chunk.path, others, notes=chunk.notes)


def _chunks(joined: Iterable[Joined], left_out: Counter[str], done: int = 0) -> Iterator[RowChunk]:
    """Makes chunks of what is put together; a row has the notes about what was left out as well."""
    found = [*joined]
    good = [(item.first, item.row) for item in found if item.row is not None]
    for item in found:
        (left_out if item.row is None else item.row.notes).update(item.notes)
    if good:
        good[0][1].notes.update(left_out)
        left_out.clear()
    for path, group in groupby(good, key=lambda item: item[0].path):
        rows = [(first.number, row) for first, row in group]
        for start in range(0, len(rows), CHUNK_ROWS):
            yield RowChunk(path, [*rows[start : start + CHUNK_ROWS]], done)
