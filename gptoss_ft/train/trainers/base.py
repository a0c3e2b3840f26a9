"""Base of our trainers: whole checkpoints, and logs of sums that outlive them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from transformers.trainer_utils import EvalLoopOutput

from gptoss_ft.train.checkpoints import WholeCheckpoints
from gptoss_ft.train.metrics import Metrics, Scalar, Sum, load_metrics, save_metrics


class SummingTrainer(WholeCheckpoints, ABC):
    """Stands before a trainer of TRL; logs sums over all batches and processes since the last log.

    They are kept in checkpoints, so that the first log of a resumed run has all of its batches.
    """

    counters: ClassVar[tuple[str, ...]] = ()
    """Attributes that count over the whole run, kept in checkpoints too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sums = {"train": Metrics(), "eval": Metrics()}
        super().__init__(*args, **kwargs)

    @property
    def mode(self) -> Literal["train", "eval"]:
        """`train` or `eval`, as TRL names its metrics."""
        return "train" if cast(torch.nn.Module, self.model).training else "eval"

    def note(self, count: Scalar, totals: Mapping[str, Scalar]) -> None:
        """Adds this process' totals over `count` examples, tokens or batches."""
        self.sums[self.mode].add(count, totals)

    @abstractmethod
    def logged(self, sums: dict[str, Sum]) -> dict[str, float]:
        """Returns what is logged of the sums since the last log, or of an evaluation."""

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluates as transformers does, with means over the whole data, not of batches."""
        self.sums["eval"] = Metrics()
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = super().evaluation_loop(*args, **kwargs)
        found = self.logged(self.sums["eval"].take(self.accelerator))
        metrics = cast(dict[str, float], output.metrics)
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to a training log what is logged of the sums."""
        if "loss" in logs:
            sums = self.sums["train"].take(self.accelerator)
            logs |= self.logged(sums) if sums else {}
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves what each process has for itself."""
        super()._save_rng_state(output_dir)
        counters = {name: getattr(self, name) for name in self.counters}
        save_metrics(Path(output_dir), self.accelerator, self.sums["train"], counters)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.sums["train"], found = load_metrics(Path(checkpoint), self.accelerator)
            vars(self).update({name: found[name] for name in self.counters if name in found})
