"""Log-probabilities of completions under a model, from batches of `data/collate_pairs.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gptoss_ft.data.collate_pairs import Batch, Side, collate
from gptoss_ft.model.token_scores import TokenScores

Row = Mapping[str, Any]


def score_batch(model: nn.Module, batch: Batch, **arguments: Any) -> TokenScores:
    """Scores a batch's targets, in their order; only those with weight get gradients.

    Args:
        model: a `WeightedGptOss`, wrapped or not.
        batch: what a collator made, on the model's device.
        arguments: further ones of the model's forward.
    """
    scores: TokenScores = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        documents=batch["documents"],
        target_positions=batch["target_positions"],
        target_ids=batch["target_ids"],
        trained_targets=batch["trained_targets"],
        use_cache=False,
        **arguments,
    )
    return scores


def by_completion(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Lays values of targets `[n]` out as `[completions, longest]`, 0 behind the ends."""
    weights = batch["weights"]
    flat = values.new_zeros(weights.numel())
    return flat.index_copy(0, batch["target_slots"], values).view(weights.shape)


@torch.no_grad()
def score_rows(
    model: nn.Module, rows: Sequence[Row], shared_prompt: bool = True
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Scores every token of chosen and rejected completions, all rows in one forward.

    Args:
        model: a `WeightedGptOss` or one with an adapter, which counts unless disabled.
        rows: with `prompt_ids`, `chosen_ids` and `rejected_ids`.
        shared_prompt: whether a prompt is computed once for both.

    Returns:
        for each row two float32 vectors of log-probabilities on the CPU, as long as the
        completions.
    """
    found = _score(model, rows, ("chosen_ids", "rejected_ids"), shared_prompt)
    return list(zip(found[: len(rows)], found[len(rows) :], strict=True))


@torch.no_grad()
def score_rated_rows(
    model: nn.Module, rows: Sequence[Row], completion: str = "completion"
) -> list[torch.Tensor]:
    """Scores rows with one completion, in the column `{completion}_ids`, as `score_rows` does."""
    return _score(model, rows, (f"{completion}_ids",), True)


def _score(
    model: nn.Module, rows: Sequence[Row], columns: Sequence[str], shared_prompt: bool
) -> list[torch.Tensor]:
    """Returns log-probabilities of the completions in each column, column after column."""
    sides = [_unweighted([row[column] for row in rows]) for column in columns]
    batch = collate([row["prompt_ids"] for row in rows], sides, shared_prompt)
    device = next(model.parameters()).device
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    dense = by_completion(score_batch(model, moved).log_probs, moved).cpu()
    lengths = [len(ids) for side in sides for ids in side.ids]
    return [scores[:length].clone() for scores, length in zip(dense, lengths, strict=True)]


def _unweighted(completions: Sequence[Sequence[int]]) -> Side:
    ones = [[1] * len(ids) for ids in completions]
    return Side(completions, ones, ones, None)
