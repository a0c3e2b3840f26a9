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

    Padding is `<|endoftext|>`, masked in attention, with label -100 and weight 0.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows with `input_ids`, `labels`, `loss_weights` to tensors `[batch, longest]`.

        Returns:
            input_ids, attention_mask and labels int64, loss_weights float32.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        return {
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


def _padded(
    values: Sequence[Sequence[float]], length: int, fill: float, dtype: torch.dtype
) -> torch.Tensor:
    padded = torch.full((len(values), length), fill, dtype=dtype)
    for index, row in enumerate(values):
        padded[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
