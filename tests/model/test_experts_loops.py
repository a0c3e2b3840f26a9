"""The expert block's dtypes, and the inner loops of a GPU as far as a CPU can run them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expert_cases import NAMES, Bias, assert_near, gradients, make_case

from gptoss_ft.model.experts import module as experts
from gptoss_ft.model.experts import products as expert_products
from gptoss_ft.model.experts.products import (
    GroupedProducts,
    LoopedProducts,
    Products,
    TiledProducts,
    products_for,
)


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
