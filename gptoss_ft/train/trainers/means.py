"""Trainers whose loss is a mean over examples: right for a whole step and a whole log.

TRL's preference trainers take the mean of a batch, and of these means the mean over accumulated
batches and over what is logged together. That is the mean over examples only where all batches are
equally large, which packed rows and last batches are not.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import datasets
import torch
from transformers.trainer_utils import EvalLoopOutput

from gptoss_ft.files import write_json
from gptoss_ft.train.checkpoints import WholeCheckpoints

REFERENCE_COPY = "ref"


class Means:
    """Running means by name, each with its own count.

    Attributes:
        sums: total and count of every name.
    """

    def __init__(self, sums: dict[str, tuple[float, float]] | None = None) -> None:
        self.sums = dict(sums or {})

    def add(self, name: str, total: float, count: float) -> None:
        """Takes in a total over `count` examples."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = before[0] + total, before[1] + count

    def take(self) -> dict[str, float]:
        """The means of all names that have a count; forgets everything."""
        found = {name: total / count for name, (total, count) in self.sums.items() if count}
        self.sums.clear()
        return found


class ExampleMeans(WholeCheckpoints, ABC):
    """Stands before a preference trainer of TRL, whose `_compute_loss` gives the mean of a batch.

    The loss of an optimizer step is the mean over its examples in all accumulated batches and
    processes; a metric is the mean over the examples since the last log. What TRL takes as a mean
    over the tokens of a batch (entropy, logits, token accuracy) stays that, each batch counting as
    its examples.
    """

    columns: ClassVar[Sequence[str]]
    """Columns of the rows that reach the collator."""

    loss_is_scaled_for_ga: Any = True
    _metrics: Any  # TRL's: by mode and name, a value for each batch
    _total_train_tokens: int  # TRL's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._means = {"train": Means(), "eval": Means()}
        self._logged_tokens = 0
        super().__init__(*args, **kwargs)
        # TRL adds a frozen copy of every adapter, but here the reference is in the rows.
        cast(Any, self.model).delete_adapter(REFERENCE_COPY)
        self.precompute_ref_logps = True

    @property
    def mode(self) -> str:
        """`train` or `eval`, as TRL names its metrics."""
        return "train" if cast(torch.nn.Module, self.model).training else "eval"

    @abstractmethod
    def examples(self, batch: dict[str, Any]) -> int:
        """How many the loss of a batch is a mean over."""

    def examples_of(self, metric: str, batch: dict[str, Any]) -> int:
        """The examples of a batch that a metric of TRL is a mean over."""
        return self.examples(batch)

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """The rows as they are: they are rendered."""
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """Nothing: the rows have them."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns: Any = list(self.columns)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """Examples of one optimizer step over all processes, float64 scalar."""
        return self._over_processes([sum(map(self.examples, batch_samples))], device)[0]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean of a batch, in training as its share of the step's mean."""
        loss: torch.Tensor = self._compute_loss(model, inputs, False)
        count = self.examples(inputs)
        self._drain(inputs)
        self._note(count, {"loss": loss.detach() * count})
        if self.mode == "train" and num_items_in_batch is not None:
            # DDP averages gradients over processes
            share = count * self.accelerator.num_processes / num_items_in_batch
            loss = loss * share.to(loss.dtype)
        return (loss, {}) if return_outputs else loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        return super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]  # TRL's

    def _note(self, count: int, totals: dict[str, torch.Tensor]) -> None:
        """Takes in totals over `count` examples of this process."""
        values = [*totals.values(), torch.tensor(count)]
        *sums, examples = self._over_processes(values, self.args.device).tolist()
        for name, total in zip(totals, sums, strict=True):
            self._means[self.mode].add(name, total, examples)

    def _over_processes(self, values: list[Any], device: torch.device) -> torch.Tensor:
        """Sums of scalars over all processes, float64 `[values]`."""
        local = torch.stack(
            [torch.as_tensor(x, dtype=torch.float64, device=device) for x in values]
        )
        if self.args.world_size == 1:
            return local
        return self.accelerator.gather(local[None]).sum(0)

    def _drain(self, batch: dict[str, Any]) -> None:
        """Takes over what TRL noted of a batch, which is a mean over all processes already."""
        noted = self._metrics[self.mode]
        for name in [name for name in noted if name != "num_tokens"]:
            (value,) = noted.pop(name)
            count = self.examples_of(name, batch)
            self._means[self.mode].add(name, value * count, count)

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """As in transformers, but the loss is a mean over examples, not of batches."""
        self._means["eval"] = Means()
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = super().evaluation_loop(*args, **kwargs)
        means = self.finished(self._means["eval"].take())
        metrics = cast(dict[str, float], output.metrics)
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return output

    def finished(self, means: dict[str, float]) -> dict[str, float]:
        """The means as they are logged."""
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means, and the tokens since the last log, to a training log."""
        if "loss" in logs:
            logs |= self.finished(self._means["train"].take())
            logs["tokens"] = self._total_train_tokens - self._logged_tokens
            self._logged_tokens = self._total_train_tokens
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """With the sums since the last log, so that the first log of a resumed run has them too."""
        super()._save_rng_state(output_dir)
        tokens = [self._total_train_tokens, self._logged_tokens]
        state = {"sums": self._means["train"].sums, "tokens": tokens}
        write_json(_state_file(output_dir, self.args.process_index), state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        file = _state_file(checkpoint or "", self.args.process_index)
        if checkpoint is not None and file.is_file():
            state = json.loads(file.read_text(encoding="utf-8"))
            self._means["train"] = Means({name: tuple(x) for name, x in state["sums"].items()})
            self._total_train_tokens, self._logged_tokens = state["tokens"]


def _state_file(checkpoint: str, process: int) -> Path:
    return Path(checkpoint) / f"means_{process}.json"
