"""Merging trained experts to MXFP4: the separate adapter, rounding, several adapters at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import SMALL, Case, assert_rounded, full, make_case, merge_to, same_bytes, small
from peft import PeftModel
from safetensors.torch import load_file
from stock import (
    EXPERTS,
    load_stock,
    load_tensors,
    logits_and_experts,
    set_tensors,
    write_stock_adapter,
)

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.cli import run
from gptoss_ft.model.tiny import write_tiny
from gptoss_ft.mxfp4.codec import FP4_VALUES

__all__ = ["full", "small"]

PACKED = ("_blocks", "_scales")
CHATS = Path(__file__).parents[1] / "data" / "lighthouse.jsonl"


def _report(out: Path) -> dict[str, dict[str, float]]:
    return json.loads((out / "merge_report.json").read_text())["tensors"]


def test_separate_adapter_on_the_merged_base_is_the_fine_tune(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """In stock PEFT on stock transformers, but for the rounding of what is not an expert."""
    case = make_case(tiny_checkpoint, tmp_path / "adapter", experts=True)
    out = tmp_path / "out"
    plan = merge_to(tiny_checkpoint, case.adapter, out, "mxfp4")
    assert plan.options.experts == "adapter"

    model = load_stock(tiny_checkpoint)
    base_logits, _ = logits_and_experts(model)
    set_tensors(model, case.trained)
    adapted = PeftModel.from_pretrained(model, case.adapter)
    exact, _ = logits_and_experts(adapted)
    stock = adapted.merge_and_unload()
    rounded = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in stock.state_dict().items()
        if not name.endswith(("gate_up_proj", "down_proj"))
    }
    set_tensors(stock, rounded)
    wanted, hit = logits_and_experts(stock)

    merged = load_stock(out)
    alone, _ = logits_and_experts(merged)
    found, _ = logits_and_experts(PeftModel.from_pretrained(merged, out / "expert_adapter"))
    assert hit == [8] * 4, "a router left some expert out"
    assert (found - wanted).norm() < 0.02 * (wanted - exact).norm() + 1e-4 * wanted.norm()
    assert (wanted - exact).norm() < 0.3 * (exact - base_logits).norm()
    assert (alone - exact).norm() > 0.3 * (exact - base_logits).norm(), "the experts do nothing"


def test_separate_adapter_copies_every_byte(small: Path, full: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_to(small, full.adapter, out, "mxfp4", experts="adapter")
    base, merged = load_tensors(small), load_tensors(out)
    packed = [name for name in base if name.endswith(PACKED)]
    assert len(packed) == 8
    assert all(same_bytes(base[name], merged[name]) for name in packed)
    source = load_file(full.adapter / "adapter_model.safetensors")
    factors = load_tensors(out / "expert_adapter")
    assert factors.keys() == {name for name in source if ".experts." in name}
    assert all(same_bytes(source[name], tensor) for name, tensor in factors.items())
    adapter = open_adapter(out / "expert_adapter")
    check_adapter(adapter, open_checkpoint(out))
    assert adapter.kinds == ("experts",)
    source_updates = open_adapter(full.adapter).updates
    for stem, update in adapter.updates.items():
        assert update.scaling == source_updates[stem].scaling


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"use_rslora": True, "rank_pattern": {"mlp.experts.down_proj": 2}}, id="rslora"
        ),
        pytest.param({"target_parameters": [EXPERTS[1]]}, id="down-only"),
        pytest.param(
            {"target_parameters": ["layers.1.mlp.experts.gate_up_proj"]}, id="one-of-one-layer"
        ),
        pytest.param({"target_modules": [], "target_parameters": EXPERTS}, id="experts-only"),
    ],
)
def test_separate_adapters_updates_in_stock_peft(
    small: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    deltas = write_stock_adapter(small, tmp_path / "adapter", **settings)
    merge_to(small, tmp_path / "adapter", tmp_path / "out", "mxfp4")
    found = _stock_deltas(small, tmp_path / "out" / "expert_adapter")
    experts = {name: delta for name, delta in deltas.items() if ".experts." in name}
    assert found.keys() == experts.keys() != set()
    for name, delta in experts.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-8)


def _stock_deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, by stock PEFT."""
    model = load_stock(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {
        name: after[name] - tensor
        for name, tensor in before.items()
        if not torch.equal(after[name], tensor)
    }


@pytest.fixture(scope="module")
def second(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Another adapter: other matrices, another rank, trained tensors of its own."""
    folder = tmp_path_factory.mktemp("second") / "adapter"
    settings = {"r": 3, "target_modules": ["q_proj"], "target_parameters": [EXPERTS[1]]}
    deltas = write_stock_adapter(small, folder, seed=1, **settings)
    return Case(folder, deltas, {})


WEIGHTS = (0.5, -1.5)


def test_several_adapters_to_bf16(small: Path, full: Case, second: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapters = [full.adapter, second.adapter]
    merge_to(small, adapters, out, "bf16", weights=list(WEIGHTS))
    merged, base = load_tensors(out), load_stock(small, torch.bfloat16).state_dict()
    for name, tensor in base.items():
        exact = tensor.float()
        if name in full.trained:
            exact = exact + WEIGHTS[0] * (full.trained[name] - tensor.float())
        for weight, case in zip(WEIGHTS, (full, second), strict=True):
            exact = exact + weight * case.deltas.get(name, torch.tensor(0.0))
        assert_rounded(merged[name], exact, name)


def test_several_adapters_beside_the_base(
    small: Path, full: Case, second: Case, tmp_path: Path
) -> None:
    adapters = [full.adapter, second.adapter]
    merge_to(small, adapters, tmp_path / "out", "mxfp4", weights=list(WEIGHTS))
    found = _stock_deltas(small, tmp_path / "out" / "expert_adapter")
    names = {name for name in full.deltas if ".experts." in name}
    assert found.keys() == names
    for name in names:
        wanted = WEIGHTS[0] * full.deltas[name]
        if name in second.deltas:
            wanted = wanted + WEIGHTS[1] * second.deltas[name]
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-7)


def test_nearest_is_the_nearest(small: Path, tmp_path: Path) -> None:
    """By brute force over the 16 values, and the report's numbers by dense arithmetic."""
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    deltas = write_stock_adapter(small, adapter, std=0.2)
    merge_to(small, adapter, out, "mxfp4", experts="nearest", force=True)
    base, merged = load_tensors(small), load_tensors(out)
    before, after = load_stock(small).state_dict(), load_stock(out).state_dict()
    report = _report(out)
    for name in (name for name in deltas if ".experts." in name):
        scales = base[f"{name}_scales"]
        assert same_bytes(scales, merged[f"{name}_scales"])
        weight, delta = before[name].mT.double(), deltas[name].mT.double()
        exact = weight + delta
        factors = torch.exp2(scales.double() - 127).repeat_interleave(32, -1)
        grid = torch.tensor(FP4_VALUES, dtype=torch.float64)
        best = (grid * factors.unsqueeze(-1) - exact.unsqueeze(-1)).abs().amin(-1)
        error = (after[name].mT.double() - exact).abs()
        assert (error <= best * (1 + 1e-6)).all(), name
        numbers = report[f"{name}_blocks"]
        assert numbers["action"] == "nearest" and numbers["rho"] is None
        assert numbers["epsilon"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-5)
        assert numbers["max_error"] == pytest.approx(float(error.max()), rel=1e-5)
        assert numbers["saturated"] == int((exact.abs() >= 7 * factors).sum()) > 0
        changed = (base[f"{name}_blocks"] != merged[f"{name}_blocks"]).any(-1)
        assert (numbers["changed"], numbers["parts"]) == (int(changed.sum()), changed.numel())


def test_report_of_bf16_by_dense_arithmetic(small: Path, full: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_to(small, full.adapter, out, "bf16")
    report, merged = _report(out), load_tensors(out)
    base = load_stock(small, torch.bfloat16).state_dict()
    changed = full.deltas.keys() | full.trained.keys()
    assert report.keys() == changed
    for name in changed:
        weight = base[name].double()
        delta = full.deltas[name] if name in full.deltas else full.trained[name] - weight
        error = (merged[name].double() - (weight + delta)).abs().max()
        numbers = report[name]
        epsilon = float(delta.double().norm() / weight.norm())
        assert numbers["epsilon"] == pytest.approx(epsilon, rel=1e-3)
        assert numbers["max_error"] == pytest.approx(float(error), rel=1e-2, abs=1e-7)
        assert numbers["changed"] == int((merged[name] != base[name]).sum())
        assert numbers["parts"] == weight.numel()


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small layer with the whole vocabulary, so that conversations can be read."""
    out = tmp_path_factory.mktemp("shallow") / "model"
    write_tiny(out, replace(SMALL, layers=1))
    return out


def test_gptq_stops_at_the_limit(
    shallow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rho above the limit leaves the merge unfinished, exit code 1; `force` finishes it."""
    adapter, out, chats = tmp_path / "adapter", tmp_path / "out", tmp_path / "chats.jsonl"
    write_stock_adapter(shallow, adapter, std=0.05)
    chats.write_text("".join(CHATS.open().readlines()[:32]))
    arguments = [f"base={shallow}", f"adapter={adapter}", f"out={out}", "experts=gptq"]
    arguments.append(f"calibration={chats}")
    assert run("merge", [*arguments, "dry_run=true"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    actions = {line[0]: line[1] for line in lines if len(line) == 6 and line[-1] == "s"}
    assert actions["model.layers.0.mlp.experts.down_proj_bias"] == "correct"
    assert actions["model.layers.0.mlp.experts.down_proj_blocks"] == "gptq"

    assert run("merge", arguments) == 1
    text = capsys.readouterr().err
    name = "model.layers.0.mlp.experts.down_proj_blocks"
    assert f"{name}: rounding loses too much of the fine-tune here" in text
    rhos = {name: item["rho"] for name, item in _report(out).items() if item["rho"] is not None}
    assert rhos.keys() == {name, name.replace("down", "gate_up")} and rhos[name] > 0.5
    assert not (out / "manifest.json").exists() and not (out / "config.json").exists()
    shards = {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}

    assert run("merge", [*arguments, "force=true"]) == 0
    assert shards == {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    assert not (out / ".calibration").exists()
    base, merged = load_tensors(shallow), load_tensors(out)
    for name, tensor in base.items():
        changes = ".experts." in name and not name.endswith("_scales")
        changes |= name.endswith("_proj.weight")
        assert same_bytes(tensor, merged[name]) != changes, name
    load_stock(out)
