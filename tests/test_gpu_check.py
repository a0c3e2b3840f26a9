"""The command gpu-check: on the CPU, on a GPU made of plain arithmetic, and on broken ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flash_arithmetic import flash_backward, flash_forward

from gptoss_ft import cli
from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import ConfigError
from gptoss_ft.gpu_check import command as gpu_check
from gptoss_ft.gpu_check.command import Check, attention, expert_block, run, unpacking
from gptoss_ft.gpu_check.options import GpuCheckOptions
from gptoss_ft.model import load
from gptoss_ft.model.attention import cpu as attention_cpu
from gptoss_ft.model.attention import cuda as attention_cuda
from gptoss_ft.model.attention import sinks as sink
from gptoss_ft.model.experts import module as experts
from gptoss_ft.model.experts.backends.grouped import GroupedBackend, LoopedBackend

# `cpu:0` is where the GPU's code runs in bfloat16; `cpu` stays the reference.
GPU = torch.device("cpu:0")


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Simulates a GPU with values: its expert backend, its attention, bfloat16 throughout."""

    def dtype(device: torch.device) -> torch.dtype:
        return torch.bfloat16 if device == GPU else torch.float32

    for module in (gpu_check, load):
        monkeypatch.setattr(module, "compute_dtype", dtype)
    monkeypatch.setattr(experts, "backend_for", lambda device: GroupedBackend())
    monkeypatch.setattr(sink, "_has_kernel", lambda query: True)
    monkeypatch.setattr(attention_cuda, "_forward", flash_forward)
    monkeypatch.setattr(attention_cuda, "_backward", flash_backward)
    for name in ("attend", "attend_backward"):
        monkeypatch.setattr(attention_cpu, name, _by_dtype(name))
    yield monkeypatch


def _by_dtype(name: str) -> Callable[..., Any]:
    cpu, cuda = getattr(attention_cpu, name), getattr(attention_cuda, name)
    return lambda first, *rest: (cuda if first.dtype == torch.bfloat16 else cpu)(first, *rest)


def test_all_checks_pass_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("gpu-check", ["device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu, computing in float32")
    names = ("unpacking", "experts", "attention, full", "attention, window 128", "logits", "loss")
    for name in (*names, "gradient of experts", "loss after a step", "peak memory"):
        assert any(line.startswith(name) and line.endswith("ok") for line in lines), name
    assert lines[-1] == "all 19 passed"


def test_all_checks_pass_on_the_simulated_gpu(simulated: pytest.MonkeyPatch) -> None:
    """The tolerances of bfloat16 hold for bfloat16, and with room: half of each is enough."""
    rows: list[Check] = list(gpu_check._rows(GPU, 0))
    assert [row.name for row in rows if not row.passes] == []
    for row in rows:
        assert not row.allowed or row.found <= row.allowed / 2, row
    assert max(row.found for row in rows if row.name.startswith("logits")) > 1e-3, "no bfloat16"


def test_without_a_gpu_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cli.run("gpu-check", []) == 2
    error = capsys.readouterr().err
    assert "torch sees no such GPU" in error and "0 GPUs" in error and "fix:" in error


@pytest.mark.parametrize("device", ["tpu7", "meta", "cuda:99", "xpu"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        run(GpuCheckOptions(device), Context())


def _passes(rows: Iterator[Check]) -> list[bool]:
    return [row.passes for row in rows]


def test_a_wrong_value_of_the_table_is_seen(simulated: pytest.MonkeyPatch) -> None:
    assert _passes(unpacking(GPU, 0)) == [True]
    calls = iter((1.0, 0.0))
    right = gpu_check.unpack
    simulated.setattr(gpu_check, "unpack", lambda *a: right(*a) + next(calls))
    assert _passes(unpacking(GPU, 0)) == [False]


@pytest.mark.parametrize(
    ("method", "passes"), [("project", [False, False]), ("outer", [True, False])]
)
def test_a_wrong_product_is_seen(
    simulated: pytest.MonkeyPatch, method: str, passes: list[bool]
) -> None:
    """One that is a twentieth too large."""
    assert _passes(expert_block(GPU, LoopedBackend, 0)) == [True, True]
    right = getattr(LoopedBackend, method)

    def wrong(self: Any, rows: torch.Tensor, *rest: Any) -> Any:
        return right(self, rows * 1.05, *rest)

    simulated.setattr(LoopedBackend, method, wrong)
    assert _passes(expert_block(GPU, LoopedBackend, 0)) == passes


def test_a_window_that_is_one_too_wide_is_seen(simulated: pytest.MonkeyPatch) -> None:
    assert _passes(attention(GPU, 8, 0)) == [True, True, True]
    wide = {"window_size_left": 8, "window_size_right": 0}
    simulated.setattr(attention_cuda, "_window", lambda window: wide)
    assert _passes(attention(GPU, 8, 0))[:2] == [False, False]


def test_documents_that_see_each_other_are_seen(simulated: pytest.MonkeyPatch) -> None:
    layout = attention_cuda._layout

    def joined(documents: Any, window: int | None, device: torch.device) -> Any:
        found = layout(documents, window, device)
        queries, keys = found.query_offsets[[0, -1]], found.key_offsets[[0, -1]]
        return replace(
            found,
            query_offsets=queries,
            key_offsets=keys,
            most_queries=int(queries[1]),
            most_keys=int(keys[1]),
        )

    simulated.setattr(attention_cuda, "_layout", joined)
    assert _passes(attention(GPU, None, 0)) == [False, False, False]


def test_what_is_not_a_number_never_passes() -> None:
    assert not Check("x", math.nan, 1.0).passes and not Check("x", math.nan).passes
    assert (
        Check("x", 1.0, 1.0).passes and not Check("x", 1.1, 1.0).passes and Check("x", 9.0).passes
    )
    assert str(Check("x", 1.1, 1.0)).endswith("NO")


def test_a_failed_check_is_named_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Check("good", 0.0, 1.0), Check("bad", 2.0, 1.0), Check("worse", math.nan)]
    monkeypatch.setattr(gpu_check, "_rows", lambda device, seed: iter(rows))
    lines: list[str] = []
    assert run(GpuCheckOptions("cpu"), Context(say=lines.append)) == Outcome(1)
    assert lines[-1] == "not passed: bad, worse"


def test_waits_are_counted_by_torchs_own_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def model(**batch: Any) -> Any:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return SimpleNamespace(loss=torch.ones(1, requires_grad=True) * 2)

    assert gpu_check._waits(model, {}) == 3  # type: ignore[arg-type]
    assert modes == ["warn", "default"]
