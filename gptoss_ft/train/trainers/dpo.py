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
from gptoss_ft.train.trainers.means import ExampleMeans
from gptoss_ft.train.trainers.preference_batch import (
    FusedOutput,
    channel_metrics,
    finished_channels,
    fused_output,
    tokens,
    trl_mask,
    weighted_reference,
)


class PairTrainer(ExampleMeans, DPOTrainer):
    """What all methods on pairs share: our rows, and means over pairs."""

    columns = PAIR_COLUMNS
    channel_values = "logratios"

    def examples(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["weights"]) // 2

    def finished(self, means: dict[str, float]) -> dict[str, float]:
        """The means, of channels only those that occur."""
        return finished_channels(means, self.channel_values)

    def note_channels(self, batch: Batch, values: torch.Tensor) -> None:
        """Adds the sums of `values`, `[completions, longest]`, by channel to the metrics."""
        pairs = self.examples(batch)
        chosen = torch.arange(2 * pairs, device=values.device) < pairs
        self._note(pairs, channel_metrics(batch, values, self.channel_values, chosen))

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """The rows as they are.

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
        outputs: list[FusedOutput] = []

        def fused_model(output_router_logits: bool = False, **_: Any) -> FusedOutput:
            outputs.append(fused_output(model, inputs, output_router_logits))
            return outputs[0]

        loss: torch.Tensor = super()._compute_loss(fused_model, self._view(inputs), False)
        self.note_channels(inputs, outputs[0].raw_log_probs - inputs["ref_logps"])
        return loss

    def _view(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The batch as TRL's collator would have made it, of what its loss looks at."""
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
        """Log-probabilities of completions from those of tokens, as TRL sums the policy's.

        With `ld_alpha` (LD-DPO), tokens past the length of the shorter completion count less.
        """
        if self.ld_alpha is None:
            return log_probs.sum(1)
        shared = torch.minimum(*mask.sum(1).chunk(2)).repeat(2)
        inside = mask.cumsum(1) <= shared[:, None]
        return (log_probs * torch.where(inside, 1.0, self.ld_alpha)).sum(1)
