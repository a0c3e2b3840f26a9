"""Merging: what stock transformers and stock PEFT compute is what the merged checkpoint holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from merges import (
    Case,
    assert_rounded,
    edit_tensor,
    full,
    lossless,
    make_case,
    merge_to,
    same_bytes,
    small,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from stock import (
    EXPERTS,
    load_stock,
    load_tensors,
    logits_and_experts,
    set_tensors,
    write_stock_adapter,
)

from gptoss_ft.adapters.combine import LoraFactors
from gptoss_ft.merge import values
from gptoss_ft.merge.planned import MergeAction
from gptoss_ft.merge.values import add_low_rank

__all__ = ["full", "lossless", "small"]


def _assert_parity(base: Path, out: Path, case: Case) -> None:
    """Logits differ from base + adapter as much as rounding alone makes stock's differ."""
    model = load_stock(base)
    base_logits, _ = logits_and_experts(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_tensors(model, case.trained)
    adapted = PeftModel.from_pretrained(model, case.adapter)
    logits, hit = logits_and_experts(adapted)
    assert hit == [8] * 4, "a router left some expert out"

    stock = adapted.merge_and_unload()
    merged = load_tensors(out)
    for name, exact in stock.state_dict().items():
        change = (exact - weights[name]).norm() / weights[name].norm()
        assert change == 0 or change >= 1e-2, name
        if name in merged:
            assert_rounded(merged[name], exact, name)
    changed = {
        name for name, tensor in stock.state_dict().items() if (tensor != weights[name]).any()
    }
    assert changed == case.deltas.keys() | case.trained.keys()

    state = stock.state_dict()
    set_tensors(stock, {name: tensor.to(torch.bfloat16) for name, tensor in state.items()})
    rounded, _ = logits_and_experts(stock)
    found, hit = logits_and_experts(load_stock(out))
    assert hit == [8] * 4
    rounding = (rounded - logits).norm()
    assert rounding < 0.3 * (logits - base_logits).norm(), "nothing but rounding to be seen"
    assert (found - logits).norm() <= 1.02 * rounding
    assert (found - rounded).norm() <= 0.05 * rounding


def test_bf16_with_experts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    case = make_case(tiny_checkpoint, tmp_path / "adapter", experts=True)
    merge_to(tiny_checkpoint, case.adapter, tmp_path / "out", "bf16")
    merged, base = load_tensors(tmp_path / "out"), load_tensors(tiny_checkpoint)
    assert len(case.deltas) == 4 * 6
    assert merged.keys() == {
        name.removesuffix("_blocks") for name in base if not name.endswith("_scales")
    }
    _assert_parity(tiny_checkpoint, tmp_path / "out", case)


def test_mxfp4_without_experts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    case = make_case(tiny_checkpoint, tmp_path / "adapter", experts=False)
    merge_to(tiny_checkpoint, case.adapter, tmp_path / "out", "mxfp4")
    merged, base = load_tensors(tmp_path / "out"), load_tensors(tiny_checkpoint)
    assert merged.keys() == base.keys()
    packed = {name for name in base if name.endswith(("_blocks", "_scales"))}
    assert len(packed) == 4 * 4
    changed = {name for name in base if not same_bytes(merged[name], base[name])}
    assert changed == case.deltas.keys() | case.trained.keys()
    assert not changed & packed
    _assert_parity(tiny_checkpoint, tmp_path / "out", case)


def _negative_zeros(weight: torch.Tensor) -> None:
    weight[0] = -0.0


@pytest.mark.parametrize(
    ("to", "experts"), [("mxfp4", "copy"), ("mxfp4", "adapter"), ("mxfp4", "nearest"), ("bf16", "")]
)
def test_zero_adapter_changes_no_byte(small: Path, tmp_path: Path, to: str, experts: str) -> None:
    """Fresh PEFT adapters have B = 0, here negative zeros; trained values are the base's."""
    base_copy = tmp_path / "base"
    shutil.copytree(small, base_copy)
    edit_tensor(base_copy, "model.layers.1.self_attn.q_proj.weight", _negative_zeros)
    adapter = tmp_path / "adapter"
    write_stock_adapter(base_copy, adapter, experts=experts != "copy")
    tensors = load_file(adapter / "adapter_model.safetensors")
    zero = {n: -t.abs() * 0.0 if ".lora_B." in n else t for n, t in tensors.items()}
    save_file(zero, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    base = load_tensors(base_copy)
    trained = {
        n: t.float() for n, t in base.items() if "sinks" in n or "norm" in n or "router" in n
    }
    save_file(trained, adapter / "trained_tensors.safetensors")

    force = experts == "nearest"
    plan = merge_to(base_copy, adapter, tmp_path / "out", to, experts=experts, force=force)

    merged = load_tensors(tmp_path / "out")
    if to == "bf16":
        assert plan.totals()[MergeAction.DEQUANTIZE_ADD]["tensors"] == 4
        base = load_stock(base_copy, torch.bfloat16).state_dict()
        dense = base["model.layers.0.mlp.experts.gate_up_proj"]
        assert (torch.signbit(dense) & (dense == 0)).any(), "no negative zero to keep"
    assert merged.keys() == base.keys()
    assert [name for name in base if not same_bytes(merged[name], base[name])] == []


def test_bf16_without_expert_updates_is_stock_dequantisation(
    small: Path, lossless: Case, tmp_path: Path
) -> None:
    plan = merge_to(small, lossless.adapter, tmp_path / "out", "bf16")
    assert plan.totals()[MergeAction.DEQUANTIZE]["tensors"] == 4
    assert MergeAction.DEQUANTIZE_ADD not in plan.totals()
    merged = load_tensors(tmp_path / "out")
    stock = load_stock(small, torch.bfloat16).state_dict()
    for name in [name for name in stock if name.endswith(("gate_up_proj", "down_proj"))]:
        assert same_bytes(merged[name], stock[name]), name


def test_dense_base(small: Path, full: Case, tmp_path: Path) -> None:
    """A dense base of the same values gives the same merged bytes as the packed one."""
    zero = tmp_path / "zero"
    write_stock_adapter(small, zero, std=0.0)
    dense = tmp_path / "dense"
    merge_to(small, zero, dense, "bf16")
    merge_to(small, full.adapter, tmp_path / "from_packed", "bf16")
    plan = merge_to(dense, full.adapter, tmp_path / "from_dense", "bf16")
    assert plan.totals().keys() == {"copy", "add", "replace"}
    packed, unpacked = load_tensors(tmp_path / "from_packed"), load_tensors(tmp_path / "from_dense")
    assert packed.keys() == unpacked.keys()
    assert [name for name in packed if not same_bytes(packed[name], unpacked[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param(
            {
                "rank_pattern": {"mlp.experts.down_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
                "alpha_pattern": {"k_proj": 32, "model.layers.0.mlp.experts.gate_up_proj": 2},
            },
            id="patterns",
        ),
        pytest.param(
            {"use_rslora": True, "rank_pattern": {".*_proj": 2, "q_proj": 8}},
            id="first-pattern-wins",
        ),
        pytest.param({"target_parameters": [EXPERTS[0]]}, id="gate-up-only"),
        pytest.param({"target_parameters": [EXPERTS[1]]}, id="down-only"),
        pytest.param({"target_modules": [], "target_parameters": EXPERTS}, id="experts-only"),
        pytest.param({"target_parameters": ["router.weight"]}, id="router"),
        pytest.param({"target_modules": ["lm_head"], "experts": False}, id="head"),
    ],
)
def test_ranks_scalings_and_targets_as_in_peft(
    small: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    adapter = tmp_path / "adapter"
    deltas = write_stock_adapter(small, adapter, **settings)
    assert deltas
    merge_to(small, adapter, tmp_path / "out", "bf16")
    merged = load_tensors(tmp_path / "out")
    base = load_stock(small, torch.bfloat16).state_dict()
    for name, tensor in base.items():
        if name in deltas:
            assert_rounded(merged[name], tensor.float() + deltas[name], name)
        else:
            assert same_bytes(merged[name], tensor), name


def test_large_tensors_in_parts(
    small: Path, full: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of rows held at a time changes nothing but float32 noise in the products."""
    merge_to(small, full.adapter, tmp_path / "whole", "bf16")
    monkeypatch.setattr(values, "TILE_BYTES", 7 * 4 * 64)
    merge_to(small, full.adapter, tmp_path / "parts", "bf16")
    whole, parts = load_tensors(tmp_path / "whole"), load_tensors(tmp_path / "parts")
    for name in whole:
        if name in full.deltas:
            assert (whole[name] == parts[name]).float().mean() > 0.999, name
        else:
            assert same_bytes(whole[name], parts[name]), name


def test_zero_update_keeps_the_base_bits() -> None:
    base = torch.tensor([[-0.0, 0.0, 1.5, -2.0]])
    A, B = torch.tensor([[1.0, -1.0, 0.0, 0.5]]), torch.tensor([[0.0]])
    kept = add_low_rank(base, LoraFactors(A, B, -1.0))
    assert torch.equal(kept.view(torch.int32), base.view(torch.int32))
    added = add_low_rank(base, LoraFactors(A, torch.tensor([[2.0]]), 0.5))
    assert torch.equal(added, torch.tensor([[1.0, -1.0, 1.5, -1.5]]))
