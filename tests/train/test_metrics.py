"""The sums that trainers log: in all of their bits, without waiting, over all processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from host_copies import HostCopies

from gptoss_ft.train.metrics import Metrics, Sum, load_metrics, over_processes, save_metrics


class Process:
    """Stands in for accelerate in one of several processes.

    Args:
        index: of this process.
        others: what each of the others gives in a gathering.
    """

    device = torch.device("cpu")

    def __init__(self, index: int = 0, *others: torch.Tensor) -> None:
        self.process_index, self.others = index, others
        self.num_processes = 1 + len(others)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, *self.others])


def test_sums_are_means_by_their_own_counts(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.add(3, {"loss": 6.0, "reward": torch.tensor(1.5)})
    metrics.add(1, {"loss": torch.tensor(4.0)})
    metrics.add(0, {"empty": 0.0})
    found = metrics.take(Accelerator(cpu=True))
    assert {name: x.mean for name, x in found.items()} == {"loss": 2.5, "reward": 0.5, "empty": 0.0}
    assert found["loss"] == Sum(10.0, 4.0)
    assert metrics.take(Accelerator(cpu=True)) == {}, "taken once"


def test_processes_are_added_up_by_name_whatever_their_order() -> None:
    metrics = Metrics()
    metrics.add(2, {"b": 1.0})
    metrics.add(1, {"a": 10.0})
    other = torch.tensor([[20.0, 3.0, 5.0, 4.0]], dtype=torch.float64)  # a, then b
    found = metrics.take(Process(0, other))  # type: ignore[arg-type]
    assert found == {"b": Sum(6.0, 6.0), "a": Sum(30.0, 4.0)}


def test_counts_beyond_float32_are_exact() -> None:
    metrics = Metrics()
    metrics.add(1, {"tokens": torch.tensor(2**24)})
    metrics.add(1, {"tokens": torch.tensor(1)})
    assert metrics.take(Accelerator(cpu=True))["tokens"].total == 2**24 + 1


def test_adding_waits_for_no_device() -> None:
    value = torch.empty((), device="meta")
    metrics = Metrics()
    with HostCopies({}):
        for _ in range(2):
            metrics.add(value, {"loss": value, "tokens": value.long()})
    with pytest.raises(AssertionError, match="waits"), HostCopies({}):
        metrics.numbers()


def test_a_resumed_sum_goes_on_in_all_of_its_bits(tmp_path: Path) -> None:
    """float32 adds up as float32 and float64 as float64, though the file says neither."""
    steps: list[dict[str, Any]] = [
        {"nll": torch.tensor(1 / 3), "tokens": torch.tensor(2**40 + 1), "mean": 0.1},
        {"nll": torch.tensor(1 / 7), "tokens": torch.tensor(3), "mean": 0.2},
        {"nll": torch.tensor(1e-8), "tokens": torch.tensor(5), "mean": torch.tensor(0.7).double()},
    ]
    whole, first = Metrics(), Metrics()
    for step in steps:
        whole.add(torch.tensor(0.1), step)
    for step in steps[:2]:
        first.add(torch.tensor(0.1), step)
    accelerator = Accelerator(cpu=True)
    save_metrics(tmp_path, accelerator, first, {"seen": 2**40})
    resumed, counters = load_metrics(tmp_path, accelerator)
    resumed.add(torch.tensor(0.1), steps[2])
    assert resumed.numbers() == whole.numbers()
    assert counters == {"seen": 2**40}


def test_each_process_has_its_own_file_and_sums_need_all_of_them(tmp_path: Path) -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    metrics = Metrics()
    metrics.add(1, {"loss": 2.0})
    save_metrics(tmp_path, Process(1, one), metrics, {"seen": 7})  # type: ignore[arg-type]
    assert json.loads((tmp_path / "metrics_1.json").read_text())["processes"] == 2
    found, counters = load_metrics(tmp_path, Process(1, one))  # type: ignore[arg-type]
    assert found.numbers() == {"loss": [2.0, 1]} and counters == {"seen": 7}
    found, counters = load_metrics(tmp_path, Process(1, one, one))  # type: ignore[arg-type]
    assert found.numbers() == {} and counters == {"seen": 7}
    found, counters = load_metrics(tmp_path, Process(0, one))  # type: ignore[arg-type]
    assert found.numbers() == {} and counters == {}


def test_scalars_of_any_kind_are_added_over_processes() -> None:
    other = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    found = over_processes([3, torch.tensor(0.5)], Process(0, other))  # type: ignore[arg-type]
    assert found.tolist() == [4.0, 2.5] and found.dtype == torch.float64
