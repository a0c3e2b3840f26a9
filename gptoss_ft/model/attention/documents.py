"""Which tokens of a batch attend to each other, as stretches of rows instead of dense masks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch


@dataclass(frozen=True)
class Span:
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
    spans: tuple[Span, ...]

    @property
    def has_padding(self) -> bool:
        """Whether some tokens belong to no document."""
        covered = (
            (span.rows.stop - span.rows.start) * (span.stop - span.start) for span in self.spans
        )
        return sum(covered) < self.batch * self.length

    def ids(self, device: torch.device) -> torch.Tensor:
        """Number of each token's document, int64 `[batch, length]` from 1, 0 for padding."""
        numbers = torch.zeros(self.batch, self.length, dtype=torch.int64)
        for number, span in enumerate(self.spans, start=1):
            numbers[span.rows, span.start : span.stop] = number
        return numbers.to(device)

    def contiguous(self) -> Documents:
        """Itself; transformers' `generate` asks this of masks when the cache has a fixed size."""
        return self


def whole_rows(batch: int, length: int) -> Documents:
    """Every row is one document without padding."""
    return Documents(batch, length, (Span(slice(0, batch), 0, length),))


def documents_of(ids: torch.Tensor) -> Documents | None:
    """Documents from their numbers; copies the numbers to the host once.

    Args:
        ids: integer or bool `[batch, length]`, 0 for padding; a 2-D attention mask is the case of
            one document per row.

    Returns:
        None when a document is not in one piece: only a dense mask can express that.
    """
    rows = [_runs(row) for row in ids.cpu()]
    spans: list[Span] = []
    first = 0
    for runs, equal in groupby(rows):
        if runs is None:
            return None
        last = first + len(list(equal))
        spans += [Span(slice(first, last), start, stop) for start, stop in runs]
        first = last
    return Documents(ids.shape[0], ids.shape[1], tuple(spans))


def _runs(row: torch.Tensor) -> list[tuple[int, int]] | None:
    """Start and stop of every document of one row; None when a number comes back after another."""
    values, counts = torch.unique_consecutive(row, return_counts=True)
    stops = counts.cumsum(0).tolist()
    starts = [0, *stops[:-1]]
    numbers = values.tolist()
    kept = [number for number in numbers if number]
    if len(set(kept)) != len(kept):
        return None
    return [(a, b) for a, b, number in zip(starts, stops, numbers, strict=True) if number]


def document_masks(
    document_ids: torch.Tensor, window: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Additive masks `[batch, 1, length, length]` by layer type: causal, within a document.

    Padding sees itself only, so that no row of the softmax is empty.
    """
    return _additive(*_seen(document_ids, window), dtype)


def dense_masks(
    documents: Documents, window: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """As `document_masks`, with what documents see of prompts elsewhere in their row."""
    seen, near = _seen(documents.ids(device), window)
    for span in documents.spans:
        if span.prompt is None:
            continue
        length = span.prompt.stop - span.prompt.start
        query = torch.arange(length, length + span.stop - span.start, device=device)[:, None]
        distance = query - torch.arange(length, device=device)
        seen[span.rows, span.start : span.stop, span.prompt] = True
        near[span.rows, span.start : span.stop, span.prompt] = distance < window
    return _additive(seen, near, dtype)


def _seen(document_ids: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which keys each query sees, bool `[batch, length, length]`: all, and within the window."""
    length = document_ids.shape[1]
    query = torch.arange(length, device=document_ids.device)[:, None]
    distance = query - query.T
    same = document_ids[:, :, None] == document_ids[:, None, :]
    same &= (document_ids != 0)[:, :, None]
    seen = (same & (distance >= 0)) | (distance == 0)
    return seen, seen & (distance < window)


def _additive(
    seen: torch.Tensor, near: torch.Tensor, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Masks to be added to scores, by layer type."""
    least = torch.finfo(dtype).min
    zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    masks = {"full_attention": seen, "sliding_attention": near}
    return {name: zeros.masked_fill(~mask, least)[:, None] for name, mask in masks.items()}
