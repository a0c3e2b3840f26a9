"""TRL's SFTTrainer fed with our rows and per-token weights.

What is ours is small: which columns reach the model, what a step is normalised by, and the call of
the model's own weighted loss. Optimizer, schedule, accumulation, checkpoints and logging are TRL's.
"""

from __future__ import annotations

from typing import Any

import datasets
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from gptoss_ft.data.dataset import ROW_COLUMNS
from gptoss_ft.train.metrics import Sum
from gptoss_ft.train.sampler import ResumableLengthSampler
from gptoss_ft.train.trainers.base import SummingTrainer


class WeightedSFTTrainer(SummingTrainer, SFTTrainer):
    """SFT on rendered rows; the loss of an optimizer step is a mean over its trained weight.

    The normaliser is the weight of the whole step, all accumulated batches and all processes
    together: batch split, accumulation, padding and packing do not change the result.
    """

    loss_is_scaled_for_ga = True  # type: ignore[assignment]  # typed as None in TRL

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns: Any = [*ROW_COLUMNS, "documents"]

    def _get_train_sampler(
        self, train_dataset: datasets.Dataset | None = None
    ) -> torch.utils.data.Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return ResumableLengthSampler(sampler.batch_size, sampler.lengths[:], seed)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """Adds up the trained weight of one optimizer step over all processes, float32 scalar."""
        weight = sum(
            (batch["loss_weights"][:, 1:].sum() for batch in batch_samples), torch.zeros(())
        ).to(device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight).sum()
        return weight

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Computes the loss of one batch as its share of the step's mean."""
        output = model(**inputs, use_cache=False, output_router_logits=self.aux_loss_enabled)
        weight = output.weight if num_items_in_batch is None else num_items_in_batch
        loss = output.loss / weight.clamp(min=torch.finfo(torch.float32).tiny)
        if self.mode == "train":
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over processes
        self.note(output.weight, {"loss": output.loss.detach(), "token_accuracy": output.correct})
        if self.mode == "train":
            trained = (inputs["loss_weights"] != 0).sum()
            self.note(1, {"tokens": inputs["attention_mask"].sum(), "trained_tokens": trained})
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if self.mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * output.aux_loss / steps
            self.note(1, {"aux_loss": output.aux_loss.detach().double()})
        return (loss, output) if return_outputs else loss

    def logged(self, sums: dict[str, Sum]) -> dict[str, float]:
        """Returns means over trained weight, the router's over batches, and counts of tokens."""
        totals = ("tokens", "trained_tokens")
        return {name: x.total if name in totals else x.mean for name, x in sums.items()}
