"""Rows on their way from a file to a worker: some at a time, each with its number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

CHUNK_ROWS = 256
# A chunk is closed early when its rows are long, so that workers stay evenly busy.
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class RowChunk:
    """Some consecutive rows of one file.

    Attributes:
        path: the file or Hub name, for messages.
        rows: `(number, row)`; a row is a line of JSON as bytes, or a mapping.
        done: bytes of the file that end with this chunk, for progress; 0 where unknown.
        notes: what the user is told of the source; on one of its chunks only.
    """

    path: str
    rows: list[tuple[int, bytes | Mapping[str, Any]]]
    done: int = 0
    notes: tuple[str, ...] = ()


def chunked(path: str, rows: Iterable[tuple[int, bytes | Mapping[str, Any]]]) -> Iterator[RowChunk]:
    """Gathers numbered rows in chunks."""
    iterator = iter(rows)
    while part := list(islice(iterator, CHUNK_ROWS)):
        yield RowChunk(path, part)
