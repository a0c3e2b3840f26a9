"""Divergence between the next-token distributions of models, over the same scored positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gptoss_ft.inference.hidden_states import hidden_states, packs
from gptoss_ft.inference.token_rows import TokenRow
from gptoss_ft.model.causal_lm import WeightedGptOss

PACK_TOKENS = 4096
POSITIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Outputs:
    """A model's outputs at the scored positions.

    Attributes:
        hidden: float32 `[positions, hidden]`, input of the head.
        head: the head.
    """

    hidden: torch.Tensor
    head: nn.Module

    def log_probabilities(self, positions: slice) -> torch.Tensor:
        """Computes log-probabilities, float32 `[n, vocabulary]`."""
        return torch.log_softmax(self.head(self.hidden[positions]).float(), dim=-1)


@dataclass(frozen=True)
class Divergence:
    """A model against the reference.

    Attributes:
        kl: mean over positions of KL(model ‖ reference), in nats.
        top1: share of positions with the same most likely token.
    """

    kl: float
    top1: float


def run(model: WeightedGptOss, rows: Sequence[TokenRow]) -> Outputs:
    """Runs one pass over the rows; each layer of the files is read once per `PACK_TOKENS`."""
    parts = [hidden_states(model, pack)[pack.scored] for pack in packs(rows, PACK_TOKENS)]
    return Outputs(torch.cat(parts), model.lm_head)


@torch.inference_mode()
def compare(models: Sequence[Outputs], reference: Outputs) -> list[Divergence]:
    """Measures the divergence of each model from the reference.

    Args:
        models, reference: on the same rows.
    """
    count = len(reference.hidden)
    sums = torch.zeros(len(models), 2, dtype=torch.float64)
    for start in range(0, count, POSITIONS_AT_ONCE):
        positions = slice(start, min(start + POSITIONS_AT_ONCE, count))
        theirs = reference.log_probabilities(positions)
        for index, model in enumerate(models):
            ours = model.log_probabilities(positions)
            sums[index, 1] += (ours.argmax(-1) == theirs.argmax(-1)).sum()
            sums[index, 0] += torch.sub(ours, theirs).mul_(ours.exp()).sum(dtype=torch.float64)
    return [Divergence(max(kl, 0.0), top1) for kl, top1 in (sums / count).tolist()]
