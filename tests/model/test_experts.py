"""The expert block against dense autograd of transformers' own module, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from expert_cases import (
    BACKENDS,
    GRADIENT_ERROR,
    NAMES,
    OUTPUT_ERROR,
    assert_equal_to_dense,
    assert_near,
    gradients,
    make_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import require_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.backends.grouped import GroupedBackend, LoopedBackend
from gptoss_ft.model.experts.backends.tiled import TiledBackend
from gptoss_ft.mxfp4 import kernel


@pytest.fixture(params=[True, False], ids=["kernel", "table"], scope="module")
def unpacking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of unpacking."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setenv(kernel.SWITCH, "0")
        else:
            require_kernel()
        yield


@pytest.mark.parametrize("kind", [TiledBackend, GroupedBackend, LoopedBackend])
@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 7),
    hidden=st.sampled_from([32, 64, 160]),
    intermediate=st.sampled_from([32, 96]),
    ranks=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    k=st.integers(1, 3),
    spread=st.sampled_from(["random", "one"]),
    keep=st.booleans(),
    at_once=st.integers(1, 4),
    values_per_tile=st.integers(1, 4096),
    seed=st.integers(0, 2**31),
)
def test_gradients_equal_dense_autograd(
    unpacking: None,
    kind: type[ExpertBackend],
    keep: bool,
    at_once: int,
    values_per_tile: int,
    **sizes: Any,
) -> None:
    case = make_case(**sizes)
    largest = 2 * max(getattr(case.packed, name)[0].numel() * 2 for name in NAMES)
    size = values_per_tile if kind is TiledBackend else at_once * largest
    case.packed.backend = lambda device: kind(size)
    case.packed.save_pre_activation = keep
    assert_equal_to_dense(case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"tokens": 1},
        {"tokens": 1, "experts": 1},
        {"spread": "one"},
        {"spread": "one", "k": 1, "tokens": 50},
        {"experts": 12, "tokens": 2},
        {"ranks": ()},
        {"ranks": (2, 8, 1)},
        {"k": 4},
    ],
    ids=str,
)
def test_corners(backend: Callable[[], ExpertBackend], sizes: dict[str, Any]) -> None:
    case = make_case(**sizes)
    case.packed.backend = lambda device: backend()
    assert_equal_to_dense(case)


def test_the_clamps_act_and_are_exact_at_the_limit() -> None:
    """A gate or up at exactly 7 still has a gradient, as in torch's clamp."""
    case = make_case(tokens=2, experts=1, k=1, ranks=())
    case.packed.gate_up_proj_scales.data.zero_()  # 2 ** -127: nothing is left but the bias
    case.dense.gate_up_proj.data.zero_()
    with torch.no_grad():
        bias = torch.tensor([7.0, -7.0, 7.5, -7.5, 0.5, 7.0] * 32)
        case.leaves["gate_up_proj_bias"].copy_(bias)
    assert_equal_to_dense(case)
    gradient = gradients(case.ours(), case.leaves)["gate_up_proj_bias"][0]
    assert (gradient != 0).tolist() == [True, True, False, False, True, True] * 32


def test_no_tokens() -> None:
    case = make_case()
    empty = torch.zeros(0, 64, requires_grad=True)
    output = case.packed(empty, case.indices[:0], torch.zeros(0, 2))
    assert output.shape == (0, 64)
    assert torch.autograd.grad(output.sum(), empty)[0].shape == (0, 64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_wanted_gradients_are_formed(backend: Callable[[], ExpertBackend]) -> None:
    """Any subset of the leaves may require gradients; the others get None and cost nothing."""
    case = make_case(ranks=(2, 3))
    case.packed.backend = lambda device: backend()
    everything = gradients(case.ours(), case.leaves)
    names = list(case.leaves)
    for subset in [*([name] for name in names), names[::2], names[1::2]]:
        for name, leaf in case.leaves.items():
            leaf.requires_grad_(name in subset)
        found = gradients(case.ours(), {name: case.leaves[name] for name in subset})
        for name in subset:
            torch.testing.assert_close(found[name], everything[name])


def test_no_gradient_at_all_and_no_grad() -> None:
    case = make_case()
    with torch.no_grad():
        assert not case.ours().requires_grad
    expected = case.ours().detach()
    for leaf in case.leaves.values():
        leaf.requires_grad_(False)
    assert torch.equal(case.ours(), expected)


def test_base_biases_are_frozen_and_used() -> None:
    case = make_case(biases=False)
    ours, theirs = case.ours(), case.theirs()
    assert_near(ours, theirs, OUTPUT_ERROR, "output")
    assert not case.packed.gate_up_proj_bias.requires_grad
    trained = {name: leaf for name, leaf in case.leaves.items() if not name.endswith("bias")}
    found, expected = gradients(ours, trained), gradients(theirs, trained)
    for name in trained:
        assert_near(found[name], expected[name], GRADIENT_ERROR, name)


def test_saving_and_recomputing_give_the_same_bits() -> None:
    case = make_case(tokens=60)
    saved = case.ours()
    case.packed.save_pre_activation = False
    recomputed = case.ours()
    assert torch.equal(saved, recomputed)
    first, second = gradients(saved, case.leaves), gradients(recomputed, case.leaves)
    for name in case.leaves:
        assert torch.equal(first[name], second[name]), name


def saved_bytes(work: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        work()
    return sum(kept)


def test_recomputing_saves_less_by_the_pre_activation() -> None:
    case = make_case(tokens=60)
    more = saved_bytes(case.ours)
    case.packed.save_pre_activation = False
    less = saved_bytes(case.ours)
    assert more - less == 60 * 2 * 2 * 96 * 4  # tokens, k, gate and up, intermediate, float32


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(save: bool, reentrant: bool) -> None:
    case = make_case(tokens=30)
    case.packed.save_pre_activation = save
    expected = gradients(case.ours(), case.leaves)
    leaves = case.leaves["x"], case.leaves["weights"]
    output = checkpoint(case.ours, *leaves, use_reentrant=reentrant)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(7)))
    for name, leaf in case.leaves.items():
        assert leaf.grad is not None and torch.equal(leaf.grad, expected[name]), name


def test_the_input_is_not_changed_and_repeats_are_bit_equal() -> None:
    case = make_case(tokens=50)
    before = {name: leaf.detach().clone() for name, leaf in case.leaves.items()}
    outputs = [case.ours(), case.ours()]
    found = [gradients(output, case.leaves) for output in outputs]
    assert torch.equal(*outputs)
    for name, leaf in case.leaves.items():
        assert torch.equal(leaf, before[name]) and torch.equal(found[0][name], found[1][name])


class Allocations(TorchDispatchMode):
    """Sizes of everything that operators return outside of the storages known at the start."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.largest = max(self.largest, storage.nbytes())
        return result


@pytest.mark.parametrize("save", [True, False])
def test_nothing_of_the_size_of_all_experts_is_allocated(unpacking: None, save: bool) -> None:
    case = make_case(tokens=8, experts=64, hidden=128, intermediate=128, ranks=(1,))
    case.packed.save_pre_activation = save
    one_matrix = 128 * 2 * 128 * 4
    with Allocations([*case.packed.parameters(), *case.leaves.values()]) as allocations:
        gradients(case.ours(), case.leaves)
    # The factors' gradients, a bias or a matrix of one expert; never 64 matrices, packed or not.
    assert 0 < allocations.largest <= one_matrix
    assert case.packed.gate_up_proj.nbytes > 4 * one_matrix


def test_experts_that_are_not_hit_are_not_read() -> None:
    """Scales of 255 are NaN: reading one such expert would show in the output or a gradient."""
    for backend in BACKENDS:
        case = make_case(tokens=3, experts=12, k=2)
        expected = gradients(case.ours(), case.leaves)
        missed = sorted(set(range(12)) - set(case.indices.flatten().tolist()))
        assert missed
        for name in NAMES:
            getattr(case.packed, f"{name}_scales").data[missed] = 255
        case.packed.backend = lambda device, backend=backend: backend()
        found = gradients(case.ours(), case.leaves)
        for name in case.leaves:
            torch.testing.assert_close(found[name], expected[name])
            if name not in ("x", "weights"):
                assert not found[name][missed].any()
