"""TRL's KTOTrainer fed with our rows: channel weights and sliced scores.

As in `trainers/dpo.py`, TRL is handed something to call in the place of the model. The mismatched
completions from which KTO estimates its KL term, and what the reference makes of them, are columns
of the rows, so that they do not depend on how batches are formed.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import KTOTrainer

from gptoss_ft.data.collate_pairs import RATED_COLUMNS, Batch
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


class RatedKTOTrainer(ExampleMeans, KTOTrainer):
    """KTO; rows need `ref_logps`, and `kl_ids` and `ref_kl_logps` where the loss has a KL term."""

    columns = RATED_COLUMNS

    def examples(self, batch: Batch) -> int:
        """Counts completions."""
        return len(batch["label"])

    def examples_of(self, metric: str, batch: Batch) -> int:
        """Counts that side's completions for a metric of one side, else all."""
        side = metric.rpartition("/")[2]
        if side not in ("chosen", "rejected"):
            return self.examples(batch)
        return int((batch["label"] == (side == "chosen")).sum())

    def finished(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means, of channels only those that occur, and margins of what is together."""
        means = finished_channels(means, "logratios")
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        scored: list[TokenScores] = []

        def fused_model(output_router_logits: bool = False, **_: Any) -> TokenScores:
            scored.append(completion_scores(model, inputs, output_router_logits))
            return weighted(scored[0], inputs["weights"])

        view = self._view(model, inputs)
        loss: torch.Tensor = super()._compute_loss(fused_model, view, False)
        self._note_channels(inputs, scored[0].log_probs.detach() - inputs["ref_logps"])
        return loss

    def _view(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns what TRL's loss looks at in a batch, as TRL's collator would have made it."""
        mask = trl_mask(batch)
        view = {
            "input_ids": mask,  # only their shape is looked at
            "attention_mask": tokens(batch),
            "completion_mask": mask,
            "label": batch["label"],
            "ref_logps": weighted_reference(batch).sum(1),
        }
        if self.calculate_KL:
            with torch.no_grad():
                kl = weighted(completion_scores(model, batch["kl"]), batch["kl"]["weights"])
            view["KL_logps"] = kl.log_probs.sum(1)
            view["ref_KL_logps"] = weighted_reference(batch["kl"]).sum(1)
        return view

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor | None:
        """Returns log-probabilities of mismatched completions, which the view has already."""
        return batch.get("KL_logps")

    def _note_channels(self, batch: Batch, ratios: torch.Tensor) -> None:
        """Adds log-ratios and lengths by channel, each side over its own completions."""
        label = batch["label"]
        totals = channel_metrics(batch, ratios, "logratios", label)
        for side in ("chosen", "rejected"):
            count = int((label == (side == "chosen")).sum())
            of_side = {name: x for name, x in totals.items() if name.endswith(side)}
            self.note_totals(count, of_side)
