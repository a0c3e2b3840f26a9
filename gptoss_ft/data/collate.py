"""Rows to padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptoss_ft.harmony.render import IGNORE
from gptoss_ft.harmony.vocabulary import ENDOFTEXT


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest of the batch.

    Padding is `<|endoftext|>`, masked in attention, with label -100 and weight 0. Rows with several
    documents come with positions that start anew in each, and the number of each token's document.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows with `input_ids`, `labels`, `loss_weights` to tensors `[batch, longest]`.

        Returns:
            input_ids, attention_mask and labels int64, loss_weights float32; where rows name their
            `documents`, position_ids and document_ids int64, 0 in padding, documents from 1.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
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
        }
        if any(len(row.get("documents") or ()) > 1 for row in rows):
            batch |= _documents([row["documents"] for row in rows], longest)
        return batch


def _documents(lengths: Sequence[Sequence[int]], longest: int) -> dict[str, torch.Tensor]:
    """Positions within documents and numbers of documents, from the documents' lengths."""
    positions = [[i for length in row for i in range(length)] for row in lengths]
    numbers = [
        [n for n, length in enumerate(row, start=1) for _ in range(length)] for row in lengths
    ]
    return {
        "position_ids": _padded(positions, longest, 0, torch.int64),
        "document_ids": _padded(numbers, longest, 0, torch.int64),
    }


def _padded(
    values: Sequence[Sequence[float]], length: int, fill: float, dtype: torch.dtype
) -> torch.Tensor:
    padded = torch.full((len(values), length), fill, dtype=dtype)
    for index, row in enumerate(values):
        padded[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
