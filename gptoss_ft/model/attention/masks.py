"""Documents from attention masks, and dense masks from documents where no kernel takes them."""

from __future__ import annotations

import torch

from gptoss_ft.documents import Bounds, Documents, documents_from_bounds


def documents_of(ids: torch.Tensor) -> Documents | None:
    """Reads documents from their numbers, which are copied to the host once.

    Args:
        ids: integer or bool `[batch, length]`, 0 for padding; a 2-D attention mask is the case of
            one document per row.

    Returns:
        None when a document is not in one piece: only a dense mask can express that.
    """
    rows: list[list[Bounds]] = []
    for row in ids.cpu():
        runs = _runs(row)
        if runs is None:
            return None
        rows.append(runs)
    return documents_from_bounds(rows, ids.shape[1])


def _runs(row: torch.Tensor) -> list[Bounds] | None:
    """Finds each document of a row; None when a number comes back after another."""
    values, counts = torch.unique_consecutive(row, return_counts=True)
    stops = counts.cumsum(0).tolist()
    starts = [0, *stops[:-1]]
    numbers = values.tolist()
    kept = [number for number in numbers if number]
    if len(set(kept)) != len(kept):
        return None
    return [(a, b) for a, b, number in zip(starts, stops, numbers, strict=True) if number]


def dense_masks(
    documents: Documents, window: int, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Returns additive masks `[batch, 1, length, length]` by layer type.

    Padding sees itself only, so that no row of the softmax is empty.
    """
    seen, near = _seen(document_ids(documents, device), window)
    for span in documents.spans:
        if span.prompt is None:
            continue
        length = span.prompt.stop - span.prompt.start
        query = torch.arange(length, length + span.stop - span.start, device=device)[:, None]
        distance = query - torch.arange(length, device=device)
        seen[span.rows, span.start : span.stop, span.prompt] = True
        near[span.rows, span.start : span.stop, span.prompt] = distance < window
    return _additive(seen, near, dtype)


def document_ids(documents: Documents, device: torch.device) -> torch.Tensor:
    """Numbers the document of each token, int64 `[batch, length]` from 1, 0 for padding."""
    numbers = torch.zeros(documents.batch, documents.length, dtype=torch.int64)
    for number, span in enumerate(documents.spans, start=1):
        numbers[span.rows, span.start : span.stop] = number
    return numbers.to(device)


def _seen(ids: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the keys each query sees, bool `[batch, length, length]`: all, and in the window."""
    length = ids.shape[1]
    query = torch.arange(length, device=ids.device)[:, None]
    distance = query - query.T
    same = ids[:, :, None] == ids[:, None, :]
    same &= (ids != 0)[:, :, None]
    seen = (same & (distance >= 0)) | (distance == 0)
    return seen, seen & (distance < window)


def _additive(
    seen: torch.Tensor, near: torch.Tensor, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Returns masks to be added to scores, by layer type."""
    least = torch.finfo(dtype).min
    zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    masks = {"full_attention": seen, "sliding_attention": near}
    return {name: zeros.masked_fill(~mask, least)[:, None] for name, mask in masks.items()}
