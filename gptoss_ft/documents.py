"""Documents of a batch, the tokens that attend to each other: made by collators, read by attention.

Plain data on the host, so that nothing waits for a device to learn what sees what. Neither
transformers nor accelerate moves, splits or joins it on a batch's way to the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

Bounds = tuple[int, int]


@dataclass(frozen=True)
class DocumentSpan:
    """One document, at the same place in some neighbouring rows of the batch.

    Attributes:
        rows: rows `[first, last)` of the batch.
        start, stop: the document's tokens within each of these rows.
        prompt: earlier tokens of the same rows that the document goes on from, as if they stood
            right before it: a second answer behind a prompt that another document begins with.
            All of it is seen, from the positions that this order gives. Keys only: what the
            prompt's own tokens see does not change. None for a document by itself.
    """

    rows: slice
    start: int
    stop: int
    prompt: slice | None = None


@dataclass(frozen=True)
class Documents:
    """Takes the place of attention masks: every token sees its own document, up to itself.

    A document with a prompt elsewhere in the row sees that too. Tokens outside all spans are
    padding: nothing sees them and their attention output is zero.

    Attributes:
        batch, length: shape of the batch's `[batch, length]` tokens.
        spans: the documents; they do not overlap.
    """

    batch: int
    length: int
    spans: tuple[DocumentSpan, ...]

    @property
    def has_padding(self) -> bool:
        """True if some tokens belong to no document."""
        covered = (
            (span.rows.stop - span.rows.start) * (span.stop - span.start) for span in self.spans
        )
        return sum(covered) < self.batch * self.length

    def contiguous(self) -> Documents:
        """Returns itself; transformers' `generate` asks this of masks with a static cache."""
        return self


def whole_rows(batch: int, length: int) -> Documents:
    """Returns one document per row, without padding."""
    return Documents(batch, length, (DocumentSpan(slice(0, batch), 0, length),))


def documents_from_lengths(rows: Sequence[Sequence[int]], length: int) -> Documents:
    """Returns documents that follow each other from the start of their row.

    Args:
        rows: of each row, the lengths of its documents in order; the rest of the row is padding.
        length: tokens of a row with its padding.
    """
    edges = [list(accumulate(row, initial=0)) for row in rows]
    return documents_from_bounds([[(a, b) for a, b in pairwise(e) if a < b] for e in edges], length)


def documents_from_bounds(rows: Sequence[Sequence[Bounds]], length: int) -> Documents:
    """Returns documents from their places; neighbouring rows that are alike share their spans.

    Args:
        rows: of each row, start and stop of its documents in order.
        length: tokens of a row with its padding.
    """
    spans: list[DocumentSpan] = []
    first = 0
    for bounds, alike in groupby(rows):
        last = first + len(list(alike))
        spans += [DocumentSpan(slice(first, last), start, stop) for start, stop in bounds]
        first = last
    return Documents(len(rows), length, tuple(spans))
