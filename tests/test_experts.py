"""The expert block against dense autograd of transformers' own module, on every inner loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import require_kernel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_ft.model import expert_products, experts
from gptoss_ft.model.expert_products import (
    GroupedProducts,
    LoopedProducts,
    Products,
    TiledProducts,
    products_for,
)
from gptoss_ft.model.experts import LowRank, PackedExperts
from gptoss_ft.mxfp4 import kernel
from gptoss_ft.mxfp4.codec import floor_scales, pack

LOOPS: list[Callable[[], Products]] = [TiledProducts, GroupedProducts, LoopedProducts]
NAMES = ("gate_up_proj", "down_proj")
GRADIENT_ERROR = 1e-4
OUTPUT_ERROR = 1e-5


class Bias(nn.Module):
    """A bias held by an adapter, as `trained_biases` wants it."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, base: torch.Tensor) -> torch.Tensor:
        return self.value


@dataclass
class Case:
    """The same random block, packed and dense, its inputs, and everything that has a gradient.

    Attributes:
        packed, dense: ours, and transformers' with the same values.
        indices: `[tokens, k]`.
        leaves: `x`, `weights`, and per projection its bias and `{name}.A0`, `{name}.B0`, ….
        ranks: of the updates of either projection.
    """

    packed: PackedExperts
    dense: GptOssExperts
    indices: torch.Tensor
    leaves: dict[str, torch.Tensor]
    ranks: tuple[int, ...]

    def updates(self, name: str) -> tuple[LowRank, ...]:
        return tuple(
            LowRank(self.leaves[f"{name}.A{i}"], self.leaves[f"{name}.B{i}"], 0.5 + i)
            for i in range(len(self.ranks))
        )

    def ours(self, *leaves: torch.Tensor) -> torch.Tensor:
        """Our output; `leaves` stand in for `x` and `weights`."""
        x, weights = leaves or (self.leaves["x"], self.leaves["weights"])
        return self.packed(x, self.indices, weights, *map(self.updates, NAMES))

    def theirs(self) -> torch.Tensor:
        """transformers' output with the updates added to its weights."""
        parameters = {}
        for name in NAMES:
            weight = getattr(self.dense, name).data
            for update in self.updates(name):
                weight = weight + update.scaling * (update.B @ update.A).transpose(1, 2)
            parameters |= {name: weight, f"{name}_bias": self.leaves[f"{name}_bias"]}
        arguments = (self.leaves["x"], self.indices, self.leaves["weights"])
        return torch.func.functional_call(self.dense, parameters, arguments)


def make_case(
    tokens: int = 24,
    experts: int = 5,
    hidden: int = 64,
    intermediate: int = 96,
    ranks: tuple[int, ...] = (3,),
    k: int = 2,
    spread: str = "random",
    biases: bool = True,
    seed: int = 0,
) -> Case:
    """A random case; `spread` is `random`, `one` (all tokens to the same experts)."""
    torch.manual_seed(seed)
    k = min(k, experts)
    config = GptOssConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_local_experts=experts,
        num_experts_per_tok=k,
    )
    packed, dense = PackedExperts(config), GptOssExperts(config).requires_grad_(False)
    leaves = {"x": torch.randn(tokens, hidden), "weights": torch.rand(tokens, k)}
    for name in NAMES:
        out, width = getattr(packed, name).shape[1], getattr(packed, name).shape[2] * 32
        # Wide enough that the clamps of the gate act on some values.
        values = 4 * torch.randn(experts, out, width) / width**0.5
        scales = floor_scales(values)
        blocks, bias = pack(values, scales), torch.randn(experts, out)
        getattr(packed, name).data, getattr(packed, f"{name}_scales").data = blocks, scales
        getattr(packed, f"{name}_bias").data = bias
        getattr(dense, name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        leaves[f"{name}_bias"] = bias.clone()
        for i, rank in enumerate(ranks):
            leaves[f"{name}.A{i}"] = torch.randn(experts, rank, width) / width**0.5
            leaves[f"{name}.B{i}"] = torch.randn(experts, out, rank) / rank**0.5
    for leaf in leaves.values():
        leaf.requires_grad_()
    if biases:
        for name in NAMES:
            packed.trained_biases[name] = Bias(leaves[f"{name}_bias"])
            leaves[f"{name}_bias"] = packed.trained_biases[name].value
    choices = [torch.randperm(experts)[:k] for _ in range(1 if spread == "one" else tokens)]
    indices = torch.stack(choices).expand(tokens, k).contiguous()
    return Case(packed, dense, indices, leaves, ranks)


def gradients(
    output: torch.Tensor, leaves: dict[str, torch.Tensor], seed: int = 7
) -> dict[str, torch.Tensor]:
    """Gradients along a fixed direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=generator)
    found = torch.autograd.grad(output, list(leaves.values()), direction, retain_graph=True)
    return dict(zip(leaves, found, strict=True))


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, bound: float, what: str) -> None:
    error = float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-6))
    assert error <= bound, f"{what}: {error:.1e}"


def assert_equal_to_dense(case: Case) -> None:
    """Output and every gradient equal those of dense autograd.

    With one token, the gradient of its routing weight is a single scalar product, which may cancel
    along one direction; rounding is measured against the largest gradient of several directions.
    """
    ours, theirs = case.ours(), case.theirs()
    assert_near(ours, theirs, OUTPUT_ERROR, "output")
    found = gradients(ours, case.leaves)
    expected = [gradients(theirs, case.leaves, seed) for seed in (7, 8, 9)]
    for name in case.leaves:
        assert found[name].shape == case.leaves[name].shape
        size = max(float(gradient[name].norm()) for gradient in expected)
        error = float((found[name] - expected[0][name]).norm()) / max(size, 1e-6)
        assert error <= GRADIENT_ERROR, f"{name}: {error:.1e}"


@pytest.fixture(params=[True, False], ids=["kernel", "table"], scope="module")
def unpacking(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways of unpacking."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setenv(kernel.SWITCH, "0")
        else:
            require_kernel()
        yield


@pytest.mark.parametrize("loop", LOOPS)
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
    loop: Callable[[], Products],
    keep: bool,
    at_once: int,
    values_per_tile: int,
    **sizes: Any,
) -> None:
    case = make_case(**sizes)
    case.packed.products = lambda device: loop()
    case.packed.save_pre_activation = keep
    largest = 2 * max(getattr(case.packed, name)[0].numel() * 2 for name in NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_products, "TILE_VALUES", values_per_tile)
        patch.setattr(expert_products, "CHUNK_BYTES", at_once * largest)
        assert_equal_to_dense(case)


@pytest.mark.parametrize("loop", LOOPS)
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
def test_corners(loop: Callable[[], Products], sizes: dict[str, Any]) -> None:
    case = make_case(**sizes)
    case.packed.products = lambda device: loop()
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


@pytest.mark.parametrize("loop", LOOPS)
def test_only_wanted_gradients_are_formed(loop: Callable[[], Products]) -> None:
    """Any subset of the leaves may require gradients; the others get None and cost nothing."""
    case = make_case(ranks=(2, 3))
    case.packed.products = lambda device: loop()
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
    for loop in LOOPS:
        case = make_case(tokens=3, experts=12, k=2)
        expected = gradients(case.ours(), case.leaves)
        missed = sorted(set(range(12)) - set(case.indices.flatten().tolist()))
        assert missed
        for name in NAMES:
            getattr(case.packed, f"{name}_scales").data[missed] = 255
        case.packed.products = lambda device, loop=loop: loop()
        found = gradients(case.ours(), case.leaves)
        for name in case.leaves:
            torch.testing.assert_close(found[name], expected[name])
            if name not in ("x", "weights"):
                assert not found[name][missed].any()


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


@pytest.mark.parametrize("loop", [GroupedProducts, LoopedProducts])
def test_bfloat16_in_the_loops_of_a_gpu(loop: Callable[[], Products]) -> None:
    """Values on the CPU in the GPU's dtype, as near as bfloat16 is."""
    case = make_case(tokens=40, ranks=(8,))
    expected_output = case.theirs().detach()
    expected = gradients(case.theirs(), case.leaves)
    case.packed.products = lambda device: loop()
    x = case.leaves["x"].detach().bfloat16().requires_grad_()
    weights = case.leaves["weights"].detach().bfloat16().requires_grad_()
    output = case.ours(x, weights)
    assert output.dtype == torch.bfloat16
    assert_near(output.float(), expected_output, 0.02, "output")
    found = gradients(output, case.leaves | {"x": x, "weights": weights})
    for name, gradient in found.items():
        assert gradient.dtype == (torch.bfloat16 if name in ("x", "weights") else torch.float32)
        assert_near(gradient.float(), expected[name], 0.05, name)


@pytest.mark.parametrize("loop", [GroupedProducts, LoopedProducts])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
@pytest.mark.parametrize("save", [True, False])
def test_gpu_loops_on_meta_tensors(
    loop: Callable[[], Products], chunk_bytes: int, save: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and dtypes are right, and only the count of pairs is copied to the host, once.

    Any other copy to the host raises: meta tensors have no values.
    """
    case = make_case(tokens=40, ranks=(3, 8))
    monkeypatch.setattr(expert_products, "CHUNK_BYTES", chunk_bytes)
    counts = experts.count_pairs(case.indices, 5)
    copies = []
    monkeypatch.setattr(experts, "count_pairs", lambda *_: copies.append(1) or counts)
    case.packed.products = lambda device: loop()
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
    """What the test above relies on."""
    with pytest.raises(RuntimeError):
        experts.count_pairs(torch.zeros(4, 2, dtype=torch.int64, device="meta"), 3)


def test_the_loop_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(products_for(torch.device("cpu")), TiledProducts)
    for capability, expected in (
        ((8, 0), LoopedProducts),
        ((8, 9), LoopedProducts),
        ((9, 0), GroupedProducts),
        ((12, 0), GroupedProducts),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert type(products_for(torch.device("cuda"))) is expected
