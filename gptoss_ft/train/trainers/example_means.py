"""Trainers whose loss is a mean over examples: right for a whole step and a whole log.

TRL's preference trainers take the mean of a batch, and of these means the mean over accumulated
batches and over what is logged together. That is the mean over examples only where all batches are
equally large, which packed rows and last batches are not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import datasets
import torch

from gptoss_ft.train.metrics import Sum, over_processes
from gptoss_ft.train.trainers.base import SummingTrainer

REFERENCE_COPY = "ref"


class ExampleMeans(SummingTrainer):
    """Stands before a preference trainer of TRL, whose `_compute_loss` gives the mean of a batch.

    The loss of an optimizer step is the mean over its examples in all accumulated batches and
    processes; a metric is the mean over the examples since the last log. What TRL takes as a mean
    over the tokens of a batch (entropy, logits, token accuracy) stays that, each batch counting as
    its examples.
    """

    columns: ClassVar[Sequence[str]]
    """Columns of the rows that reach the collator."""

    counters = ("_total_train_tokens", "_logged_tokens")
    loss_is_scaled_for_ga: Any = True
    _metrics: Any  # TRL's: by mode and name, a value for each batch
    _total_train_tokens: int  # TRL's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._logged_tokens = 0
        super().__init__(*args, **kwargs)
        # TRL adds a frozen copy of every adapter, but here the reference is in the rows.
        cast(Any, self.model).delete_adapter(REFERENCE_COPY)
        self.precompute_ref_logps = True

    @abstractmethod
    def examples(self, batch: dict[str, Any]) -> int:
        """Counts what the loss of a batch is a mean over."""

    def examples_of(self, metric: str, batch: dict[str, Any]) -> int:
        """Counts the examples of a batch that a metric of TRL is a mean over."""
        return self.examples(batch)

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """Returns the rows as they are: they are rendered."""
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        """Returns the rows as they are: they have them."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns: Any = list(self.columns)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """Counts the examples of one optimizer step over all processes, float64 scalar."""
        return over_processes([sum(map(self.examples, batch_samples))], self.accelerator)[0]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Computes the mean loss of a batch, in training as its share of the step's mean."""
        loss: torch.Tensor = self._compute_loss(model, inputs, False)
        count = self.examples(inputs)
        self._drain(inputs)
        self.note_totals(count, {"loss": loss.detach() * count})
        if self.mode == "train" and num_items_in_batch is not None:
            # DDP averages gradients over processes
            share = count * self.accelerator.num_processes / num_items_in_batch
            loss = loss * share.to(loss.dtype)
        return (loss, {}) if return_outputs else loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        return super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]  # TRL's

    def note_totals(self, count: int, totals: Mapping[str, torch.Tensor]) -> None:
        """Notes totals over `count` examples of this process, summed in float64."""
        self.note(count, {name: total.double() for name, total in totals.items()})

    def _drain(self, batch: dict[str, Any]) -> None:
        """Notes what TRL noted of a batch, a mean over all processes already."""
        noted = self._metrics[self.mode]
        for name in [name for name in noted if name != "num_tokens"]:
            (value,) = noted.pop(name)
            count = self.examples_of(name, batch)
            self.note(count, {name: value * count})

    def logged(self, sums: dict[str, Sum]) -> dict[str, float]:
        """Returns the means over examples as they are logged."""
        return self.finished({name: x.mean for name, x in sums.items() if x.count})

    def finished(self, means: dict[str, float]) -> dict[str, float]:
        """Returns the means that are logged, given those of everything that was noted."""
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the tokens since the last log to a training log."""
        if "loss" in logs:
            logs["tokens"] = self._total_train_tokens - self._logged_tokens
            self._logged_tokens = self._total_train_tokens
        super().log(logs, start_time)
