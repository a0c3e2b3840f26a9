"""TRL's SFTTrainer fed with our rows and per-token weights.

What is ours is small: which columns reach the model, what a step is normalised by, and the call of
the model's own weighted loss. Optimizer, schedule, accumulation, checkpoints and logging are TRL's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import datasets
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from gptoss_ft.data.dataset import ROW_COLUMNS
from gptoss_ft.train.checkpoints import WholeCheckpoints, load_sums, save_sums
from gptoss_ft.train.sampler import ResumableLengthSampler


class WeightedSFTTrainer(WholeCheckpoints, SFTTrainer):
    """SFT on rendered rows; the loss of an optimizer step is a mean over its trained weight.

    The normaliser is the weight of the whole step, all accumulated batches and all processes
    together: batch split, accumulation, padding and packing do not change the result.
    """

    loss_is_scaled_for_ga = True  # type: ignore[assignment]  # typed as None in TRL

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}
        super().__init__(*args, **kwargs)

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
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor:
        """Trained weight of one optimizer step over all processes, float32 scalar."""
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
        """Loss of one batch as its share of the step's mean."""
        mode = "train" if model.training else "eval"
        output = model(**inputs, use_cache=False, output_router_logits=self.aux_loss_enabled)
        weight = output.weight if num_items_in_batch is None else num_items_in_batch
        loss = output.loss / weight.clamp(min=torch.finfo(torch.float32).tiny)
        if mode == "train":
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over processes
        self._add(
            mode,
            nll=output.loss.detach(),
            weight=output.weight,
            correct=output.correct,
            tokens=inputs["attention_mask"].sum(),
            trained=(inputs["loss_weights"] != 0).sum(),
        )
        if self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if mode == "train" else 1
            loss = loss + self.router_aux_loss_coef * output.aux_loss / steps
            self._metrics[mode]["aux_loss"].append(output.aux_loss.item())
        return (loss, output) if return_outputs else loss

    def _add(self, mode: str, **values: torch.Tensor) -> None:
        sums = self._sums[mode]
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value

    def _take(self, mode: str) -> dict[str, float]:
        """Sums since the last call, over all processes."""
        sums, self._sums[mode] = self._sums[mode], {}
        return {
            name: self.accelerator.gather(value.float().reshape(1)).sum().item()
            for name, value in sums.items()
        }

    def _save_rng_state(self, output_dir: str) -> None:
        """With the sums since the last log, so that the first log of a resumed run has them too."""
        super()._save_rng_state(output_dir)
        save_sums(Path(output_dir), self.args.process_index, self._sums["train"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            process, device = self.args.process_index, self.args.device
            self._sums["train"] = load_sums(Path(checkpoint), process, device)

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """As in transformers, but the loss is a mean over all trained weight, not of batches."""
        self._sums["eval"] = {}
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = super().evaluation_loop(*args, **kwargs)
        sums = self._take("eval")
        metrics = cast(dict[str, float], output.metrics)
        metrics[f"{metric_key_prefix}_loss"] = sums["nll"] / sums["weight"]
        metrics[f"{metric_key_prefix}_token_accuracy"] = sums["correct"] / sums["weight"]
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds token accuracy and the tokens since the last log to a training log."""
        if "loss" in logs and self._sums["train"]:
            sums = self._take("train")
            logs["loss"] = sums["nll"] / max(sums["weight"], torch.finfo(torch.float32).tiny)
            logs["token_accuracy"] = sums["correct"] / max(sums["weight"], 1e-9)
            logs["tokens"] = sums["tokens"]
            logs["trained_tokens"] = sums["trained"]
        super().log(logs, start_time)
