"""Sums that trainers log: added up by name, over all processes, and kept in checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from gptoss_ft.files import write_json

Scalar = float | torch.Tensor


@dataclass(frozen=True)
class Sum:
    """A total over all processes, and the count that it is divided by for a mean."""

    total: float
    count: float

    @property
    def mean(self) -> float:
        """The mean; the total itself, which is 0, where nothing was counted."""
        return self.total / max(self.count, sys.float_info.min)


class Metrics:
    """Sums by name since the last log, each with a count.

    Every process has its own until they are taken, in the dtype in which they are given. Scalars on
    a device stay there, so that adding them waits for nothing.
    """

    def __init__(self, sums: Mapping[str, tuple[Scalar, Scalar]] | None = None) -> None:
        self._sums = dict(sums or {})

    def add(self, count: Scalar, totals: Mapping[str, Scalar]) -> None:
        """Adds totals over `count` examples, tokens, or whatever each is to be divided by."""
        for name, total in totals.items():
            before = self._sums.get(name, (0, 0))
            self._sums[name] = before[0] + total, before[1] + count

    def take(self, accelerator: Accelerator) -> dict[str, Sum]:
        """Adds up all processes, which must call this together; each forgets its own sums."""
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        names = sorted(sums)  # processes may have met them in different orders
        values = over_processes([x for name in names for x in sums[name]], accelerator)
        found = dict(zip(names, values.view(-1, 2).tolist(), strict=True))
        return {name: Sum(*found[name]) for name in sums}

    def numbers(self) -> dict[str, list[float]]:
        """Returns total and count by name as they are in this process, in all of their bits."""
        return {
            name: [x.item() if isinstance(x, torch.Tensor) else x for x in pair]
            for name, pair in self._sums.items()
        }


def over_processes(values: Sequence[Scalar], accelerator: Accelerator) -> torch.Tensor:
    """Adds up scalars over all processes, float64 `[values]`."""
    device = accelerator.device
    local = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=device) for x in values])
    if accelerator.num_processes == 1:
        return local
    found: torch.Tensor = accelerator.gather(local[None])
    return found.sum(0)


def save_metrics(
    folder: Path, accelerator: Accelerator, metrics: Metrics, counters: Mapping[str, int]
) -> None:
    """Keeps what a process has not logged yet in a checkpoint.

    Args:
        folder: the checkpoint.
        accelerator: says which process this is.
        metrics: sums since the last log.
        counters: counts of the whole run, by name.
    """
    state = {
        "processes": accelerator.num_processes,
        "sums": metrics.numbers(),
        "counters": dict(counters),
    }
    write_json(_file(folder, accelerator), state)


def load_metrics(checkpoint: Path, accelerator: Accelerator) -> tuple[Metrics, dict[str, int]]:
    """Reads what `save_metrics` kept, metrics and counters.

    Metrics are empty where the run had another number of processes: what only some of them
    remember cannot be added up.
    """
    file = _file(checkpoint, accelerator)
    if not file.is_file():
        return Metrics(), {}
    state = json.loads(file.read_text(encoding="utf-8"))
    same = state["processes"] == accelerator.num_processes
    sums = {name: (total, count) for name, (total, count) in state["sums"].items()}
    return Metrics(sums if same else None), state["counters"]


def _file(checkpoint: Path, accelerator: Accelerator) -> Path:
    return checkpoint / f"metrics_{accelerator.process_index}.json"
