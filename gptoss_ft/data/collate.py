"""Collates rows into padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_ft.documents import documents_from_lengths
from gptoss_ft.harmony.render import IGNORE
from gptoss_ft.harmony.vocabulary import ENDOFTEXT


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest of the batch.

    Padding is `<|endoftext|>`, masked in attention, with label -100 and weight 0. Rows that name
    the lengths of several `documents` come with positions that start anew in each.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collates rows with `input_ids`, `labels` and `loss_weights`.

        Returns:
            input_ids, attention_mask, labels: int64 `[batch, longest]`. The mask counts tokens;
                attention goes by `documents`.
            loss_weights: float32 likewise.
            documents: a `Documents`; a row that names none is one document.
            position_ids: int64 likewise, 0 in padding; only where a row has several documents.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        lengths = [row.get("documents") or [len(row["input_ids"])] for row in rows]
        batch: dict[str, Any] = {
            "input_ids": _padded(
                [row["input_ids"] for row in rows], longest, ENDOFTEXT, torch.int64
            ),
            "attention_mask": _padded(
                [[1] * len(row["input_ids"]) for row in rows], longest, 0, torch.int64
            ),
            "labels": _padded([row["labels"] for row in rows], longest, IGNORE, torch.int64),
            "loss_weights": _padded(
                [row["loss_weights"] for row in rows], longest, 0.0, torch.float32
            ),
            "documents": documents_from_lengths(lengths, longest),
        }
        if any(len(row) > 1 for row in lengths):
            positions = [[i for length in row for i in range(length)] for row in lengths]
            batch["position_ids"] = _padded(positions, longest, 0, torch.int64)
        return batch


def _padded(
    values: Sequence[Sequence[float]], length: int, fill: float, dtype: torch.dtype
) -> torch.Tensor:
    padded = torch.full((len(values), length), fill, dtype=dtype)
    for index, row in enumerate(values):
        padded[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
