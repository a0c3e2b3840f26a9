"""The expert block's dtypes, and the backends of a GPU as far as a CPU can run them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from expert_cases import BACKENDS, NAMES, Bias, assert_near, gradients, make_case

from gptoss_ft.model.experts import module as experts
from gptoss_ft.model.experts.backends import backend_for
from gptoss_ft.model.experts.backends.base import ExpertBackend, PackedWeight
from gptoss_ft.model.experts.backends.grouped import GroupedBackend, LoopedBackend
from gptoss_ft.model.experts.backends.tiled import TiledBackend
from gptoss_ft.model.experts.combine import Combine
from gptoss_ft.model.experts.routing import ExpertChunk


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32_on_a_cpu(dtype: torch.dtype) -> None:
    case = make_case()
    x = case.leaves["x"].detach().to(dtype).requires_grad_()
    weights = case.leaves["weights"].detach().to(dtype)
    output = case.ours(x, weights)
    exact = case.ours(x.detach().float(), weights.float())
    assert output.dtype == dtype and torch.equal(output, exact.to(dtype))
    assert torch.autograd.grad(output.sum(), x)[0].dtype == dtype


def test_autocast_changes_nothing_on_a_cpu() -> None:
    case = make_case()
    expected = gradients(case.ours(), case.leaves)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(case.ours(), case.leaves)
    for name in case.leaves:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("backend", [GroupedBackend, LoopedBackend])
def test_bfloat16_in_the_backends_of_a_gpu(backend: type[ExpertBackend]) -> None:
    """Values on the CPU in the GPU's dtype, as near as bfloat16 is."""
    case = make_case(tokens=40, ranks=(8,))
    expected_output = case.theirs().detach()
    expected = gradients(case.theirs(), case.leaves)
    case.packed.backend = lambda device: backend()
    x = case.leaves["x"].detach().bfloat16().requires_grad_()
    weights = case.leaves["weights"].detach().bfloat16().requires_grad_()
    output = case.ours(x, weights)
    assert output.dtype == torch.bfloat16
    assert_near(output.float(), expected_output, 0.02, "output")
    found = gradients(output, case.leaves | {"x": x, "weights": weights})
    for name, gradient in found.items():
        assert gradient.dtype == (torch.bfloat16 if name in ("x", "weights") else torch.float32)
        assert_near(gradient.float(), expected[name], 0.05, name)


@pytest.mark.parametrize("backend", [GroupedBackend, LoopedBackend])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
@pytest.mark.parametrize("save", [True, False])
def test_gpu_backends_on_meta_tensors(
    backend: type[ExpertBackend], chunk_bytes: int, save: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and dtypes are right, and only the count of pairs is copied to the host, once.

    Any other copy to the host raises: meta tensors have no values.
    """
    case = make_case(tokens=40, ranks=(3, 8))
    counts = experts.count_pairs(case.indices, 5)
    copies = []
    monkeypatch.setattr(experts, "count_pairs", lambda *_: copies.append(1) or counts)
    case.packed.backend = lambda device: backend(chunk_bytes)
    case.packed.save_pre_activation = save
    case.packed.to("meta")
    for name, leaf in case.leaves.items():
        dtype = torch.bfloat16 if name in ("x", "weights") else torch.float32
        case.leaves[name] = torch.empty_like(leaf, device="meta", dtype=dtype).requires_grad_()
    for name in NAMES:
        case.packed.trained_biases[name] = Bias(case.leaves[f"{name}_bias"])
        case.leaves[f"{name}_bias"] = case.packed.trained_biases[name].value
    case.indices = case.indices.to("meta")
    output = case.ours()
    assert (output.device.type, output.shape, output.dtype) == ("meta", (40, 64), torch.bfloat16)
    found = torch.autograd.grad(output, list(case.leaves.values()), torch.empty_like(output))
    for (name, leaf), gradient in zip(case.leaves.items(), found, strict=True):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype), name
    assert copies == [1]


def test_a_copy_to_the_host_raises_on_meta_tensors() -> None:
    """The test above relies on this."""
    with pytest.raises(RuntimeError):
        experts.count_pairs(torch.zeros(4, 2, dtype=torch.int64, device="meta"), 3)


def test_the_backend_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(backend_for(torch.device("cpu")), TiledBackend)
    for capability, expected in (
        ((8, 0), LoopedBackend),
        ((8, 9), LoopedBackend),
        ((9, 0), GroupedBackend),
        ((12, 0), GroupedBackend),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert type(backend_for(torch.device("cuda"))) is expected


@dataclass(frozen=True)
class Ungathered:
    """Rows that are still to be gathered."""

    states: torch.Tensor
    chunk: ExpertChunk

    def tensor(self) -> torch.Tensor:
        """Gathers them."""
        return self.states.index_select(0, self.chunk.token)


def gathered(rows: Any) -> torch.Tensor:
    """Returns rows as a tensor, whoever holds them."""
    return rows.tensor() if isinstance(rows, Ungathered) else rows


class FusingBackend(ExpertBackend):
    """Gathers only inside of each product, as a fused kernel would, and owns all between them."""

    def __init__(self, inner: ExpertBackend, calls: list[str]) -> None:
        self.inner, self.calls, self.rank_multiple = inner, calls, inner.rank_multiple

    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        return self.inner.compute_dtype(x)

    def experts_at_once(self, *weights: PackedWeight) -> int:
        return self.inner.experts_at_once(*weights)

    def project(self, rows: Any, *rest: Any) -> None:
        self.inner.project(gathered(rows), *rest)

    def project_back(self, rows: Any, *rest: Any) -> None:
        self.inner.project_back(gathered(rows), *rest)

    def multiply(self, rows: Any, *rest: Any) -> torch.Tensor:
        return self.inner.multiply(gathered(rows), *rest)

    def add_product(self, y: torch.Tensor, rows: Any, *rest: Any) -> None:
        self.inner.add_product(y, gathered(rows), *rest)

    def outer(self, left: Any, right: Any, chunk: ExpertChunk) -> torch.Tensor:
        return self.inner.outer(gathered(left), gathered(right), chunk)

    def gather(self, states: torch.Tensor, chunk: ExpertChunk) -> Any:
        self.calls.append("gather")
        return Ungathered(states, chunk)

    def activate(self, *arguments: Any) -> torch.Tensor:
        self.calls.append("activate")
        return super().activate(*arguments)

    def activate_backward(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append("activate_backward")
        return super().activate_backward(*arguments)

    def combine(self, *arguments: Any) -> Combine:
        self.calls.append("combine")
        return super().combine(*arguments)


@pytest.mark.parametrize("inner", BACKENDS)
@pytest.mark.parametrize("save", [True, False])
def test_a_backend_owns_what_lies_between_the_products(
    inner: Callable[[], ExpertBackend], save: bool
) -> None:
    """One with arguments of its own, and rows that nobody else reads: the same bits."""
    case = make_case(tokens=40, ranks=(3, 8))
    case.packed.save_pre_activation = save
    case.packed.backend = lambda device: inner()
    output = case.ours()
    expected = gradients(output, case.leaves)
    calls: list[str] = []
    case.packed.backend = lambda device: FusingBackend(inner(), calls)
    found_output = case.ours()
    assert set(calls) == {"combine", "gather", "activate"} and calls[0] == "combine"
    found = gradients(found_output, case.leaves)
    assert calls.count("activate") == calls.count("activate_backward")
    assert calls.count("gather") == 3 * calls.count("activate") and calls.count("combine") == 2
    assert torch.equal(output, found_output)
    for name in case.leaves:
        assert torch.equal(found[name], expected[name]), name


def test_no_buffer_outlives_a_pass() -> None:
    """Between forward and backward a layer keeps no backend, whose buffers are large."""
    case = make_case()
    alive: list[weakref.ref[ExpertBackend]] = []

    def make(device: torch.device) -> ExpertBackend:
        backend = TiledBackend()
        alive.append(weakref.ref(backend))
        return backend

    case.packed.backend = make
    output = case.ours()
    assert [ref() for ref in alive] == [None]
    gradients(output, case.leaves)
    assert [ref() for ref in alive] == [None, None]
