"""TRL's DPOTrainer fed with our rows: shared prompts, channel weights and sliced scores.

The loss types, their mixtures and the metrics are TRL's. It is handed something to call in the
place of the model, which answers as a model with TRL's fused head does: with log-probabilities of
completions, ours being weighted. TRL sees completions alone, so its masks start with them.
"""

from __future__ import annotations

from typing import Any

import datasets
import torch
from accelerate import PartialState
from trl import DPOTrainer

from gptoss_ft.data.collate_pairs import PAIR_COLUMNS, Batch
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.model.token_scores import TokenScores
from gptoss_ft.train.trainers.example_means import ExampleMeans
from gptoss_ft.train.trainers.preference_batch import (
    channel_metrics,
    completion_scores,
    finished_channels,
    tokens,
    trl_mask,
    weighted,
    weighted_reference,
)


class PairTrainer(ExampleMeans, DPOTrainer):
    """Base of all methods on pairs: our rows, and means over pairs."""

    columns = PAIR_COLUMNS
    channel_values = "logratios"

    def examples(self, batch: Batch) -> int:
        """Counts pairs."""
        return len(batch["weights"]) // 2

    def finished(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means, of channels only those that occur."""
        return finished_channels(means, self.channel_values)

    def note_channels(self, batch: Batch, values: torch.Tensor) -> None:
        """Adds the sums of `values`, `[completions, longest]`, by channel to the metrics."""
        pairs = self.examples(batch)
        chosen = torch.arange(2 * pairs, device=values.device) < pairs
        self.note_totals(pairs, channel_metrics(batch, values, self.channel_values, chosen))

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """Returns the rows as they are.

        Raises:
            ConfigError: packed rows on several processes, whose batches TRL gathers as they are.
        """
        if "pairs" in dataset.column_names and PartialState().num_processes > 1:
            raise ConfigError(
                Problem(
                    "packed rows hold different numbers of pairs, and TRL expects as many on every "
                    "process",
                    "data.packing",
                    "true",
                    "set data.packing=false; batches are laid end to end without padding anyway",
                )
            )
        return super()._prepare_dataset(dataset, *args)


class PairDPOTrainer(PairTrainer):
    """DPO and its family; rows need `ref_chosen_logps` and `ref_rejected_logps`."""

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        scored: list[TokenScores] = []

        def fused_model(output_router_logits: bool = False, **_: Any) -> TokenScores:
            scored.append(completion_scores(model, inputs, output_router_logits))
            return weighted(scored[0], inputs["weights"])

        loss: torch.Tensor = super()._compute_loss(fused_model, self._view(inputs), False)
        self.note_channels(inputs, scored[0].log_probs.detach() - inputs["ref_logps"])
        return loss

    def _view(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns what TRL's loss looks at in a batch, as TRL's collator would have made it."""
        mask = trl_mask(batch)
        chosen, rejected = self._sums(weighted_reference(batch), mask[:, 1:]).chunk(2)
        return {
            "input_ids": mask,  # only their shape is looked at
            "attention_mask": tokens(batch),
            "completion_mask": mask,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }

    def _sums(self, log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sums log-probabilities of tokens to those of completions, as TRL sums the policy's.

        With `ld_alpha` (LD-DPO), tokens past the length of the shorter completion count less.
        """
        if self.ld_alpha is None:
            return log_probs.sum(1)
        shared = torch.minimum(*mask.sum(1).chunk(2)).repeat(2)
        inside = mask.cumsum(1) <= shared[:, None]
        return (log_probs * torch.where(inside, 1.0, self.ld_alpha)).sum(1)
