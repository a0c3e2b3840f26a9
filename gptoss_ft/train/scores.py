"""Log-probabilities of completions under a model, from batches of `data/collate_pairs.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gptoss_ft.data.collate_pairs import Batch, RowLayout, Side, collate
from gptoss_ft.model.attention.documents import Documents, Span
from gptoss_ft.model.causal_lm import ScoredOutput

Row = Mapping[str, Any]


def score_batch(model: nn.Module, batch: Batch, **arguments: Any) -> ScoredOutput:
    """Scores of a batch's targets, in their order; only those with weight get gradients.

    Args:
        model: a `WeightedGptOss`, wrapped or not.
        batch: what a collator made, on the model's device.
        arguments: further ones of the model's forward.
    """
    output: ScoredOutput = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        documents=documents_of_layout(batch["layout"]),
        target_positions=batch["target_positions"],
        target_ids=batch["target_ids"],
        trained_targets=batch["trained_targets"],
        use_cache=False,
        **arguments,
    )
    return output


def by_completion(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Values of targets `[n]` as `[completions, longest]`, 0 behind the ends."""
    weights = batch["weights"]
    flat = values.new_zeros(weights.numel())
    return flat.index_copy(0, batch["target_slots"], values).view(weights.shape)


def documents_of_layout(layout: RowLayout) -> Documents:
    """What attention takes."""
    row = slice(0, 1)
    spans = [Span(row, start, stop, prompt) for start, stop, prompt in layout.documents]
    return Documents(1, layout.length, tuple(spans))


@torch.no_grad()
def score_rows(
    model: nn.Module, rows: Sequence[Row], shared_prompt: bool = True
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probability of every token of chosen and rejected completions, all rows in one forward.

    Args:
        model: a `WeightedGptOss` or one with an adapter, which counts unless disabled.
        rows: with `prompt_ids`, `chosen_ids` and `rejected_ids`.
        shared_prompt: whether a prompt is computed once for both.

    Returns:
        for each row two float32 vectors on the CPU, as long as the completions.
    """
    found = _score(model, rows, ("chosen_ids", "rejected_ids"), shared_prompt)
    return list(zip(found[: len(rows)], found[len(rows) :], strict=True))


@torch.no_grad()
def score_rated_rows(
    model: nn.Module, rows: Sequence[Row], completion: str = "completion"
) -> list[torch.Tensor]:
    """As `score_rows` for rows with one completion, in the column `{completion}_ids`."""
    return _score(model, rows, (f"{completion}_ids",), True)


def _score(
    model: nn.Module, rows: Sequence[Row], columns: Sequence[str], shared_prompt: bool
) -> list[torch.Tensor]:
    """Log-probabilities of the completions in each column, column after column."""
    sides = [_unweighted([row[column] for row in rows]) for column in columns]
    batch = collate([row["prompt_ids"] for row in rows], sides, shared_prompt)
    device = next(model.parameters()).device
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    output: Any = score_batch(model, moved)
    dense = by_completion(output.log_probs, moved).cpu()
    lengths = [len(ids) for side in sides for ids in side.ids]
    return [scores[:length].clone() for scores, length in zip(dense, lengths, strict=True)]


def _unweighted(completions: Sequence[Sequence[int]]) -> Side:
    ones = [[1] * len(ids) for ids in completions]
    return Side(completions, ones, ones, None)
