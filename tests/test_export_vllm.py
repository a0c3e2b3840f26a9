"""Folders and adapters for vLLM: its loader's published rules, and the update that they stand for.

vLLM itself runs in `make runtimes VLLM=1`; here its rules are applied to what is written: the names
of `lora/utils.py`, the stacking of `lora/model_manager.py` (gate_up as the inner wrapper), and one
scaling for all, as versions without `alpha_pattern` compute it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from exports import export, linked_copy, refusal
from merges import contents, full, merge_to, small, write_small
from peft import PeftModel
from safetensors.torch import load_file
from stock import load_stock, load_tensors, logits_and_experts, write_stock_adapter

from gptoss_ft.model.tiny import TinyOptions, write_tiny

__all__ = ["full", "small"]

EXPERTS = {"gate_up_proj": "experts.base_layer", "down_proj": "experts"}
PATTERNS = {
    "rank_pattern": {"mlp.experts.down_proj": 2, "q_proj": 8},
    "alpha_pattern": {"v_proj": 3},
    "use_rslora": True,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vllm") / "base"
    write_small(out)
    return out


def _served_deltas(folder: Path, experts: int) -> dict[str, torch.Tensor]:
    """What a vLLM that knows `r` and `lora_alpha` only adds to each base weight, by its name."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["bias"] == "none" and not config["use_rslora"] and not config["modules_to_save"]
    scaling = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", key) for key in tensors]
    modules = {name[1]: f"base_model.model.{name[1]}" for name in names}
    deltas = {}
    for module, key in modules.items():
        A, B = (tensors[f"{key}.lora_{which}.weight"] for which in "AB")
        if ".experts" not in module:
            deltas[f"{module}.weight"] = scaling * B @ A
            continue
        layer = module.partition(".experts")[0]
        assert {f"{layer}.{wrapper}" for wrapper in EXPERTS.values()} <= modules.keys()
        name = next(n for n, wrapper in EXPERTS.items() if module == f"{layer}.{wrapper}")
        stacked_A = A.reshape(experts, -1, A.shape[-1])
        stacked_B = B.reshape(B.shape[0], -1, experts).permute(2, 0, 1)
        deltas[f"{layer}.experts.{name}"] = scaling * (stacked_B @ stacked_A).transpose(1, 2)
    return deltas


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """The same updates, those that are not expected being zero."""
    assert expected.keys() <= found.keys()
    for name, delta in found.items():
        wanted = expected.get(name, torch.zeros_like(delta))
        assert torch.allclose(delta, wanted, atol=1e-6), name


@pytest.mark.parametrize("settings", [{}, PATTERNS], ids=["plain", "patterns"])
def test_the_adapter_stands_for_the_same_update(
    base: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    """One scaling for all, whatever scalings it was trained with."""
    deltas = write_stock_adapter(base, tmp_path / "adapter", **settings)
    out = export(base, tmp_path / "out", "vllm", adapter=str(tmp_path / "adapter"))
    _assert_same(_served_deltas(out, experts=4), deltas)


@pytest.mark.parametrize("parameter", ["gate_up_proj", "down_proj"])
def test_a_lone_expert_projection_gets_its_partner(
    base: Path, tmp_path: Path, parameter: str
) -> None:
    """vLLM asks for both, the inner one being gate_up."""
    adapter = tmp_path / "adapter"
    deltas = write_stock_adapter(base, adapter, target_parameters=[f"mlp.experts.{parameter}"])
    out = export(base, tmp_path / "out", "vllm", adapter=str(adapter))
    _assert_same(_served_deltas(out, experts=4), deltas)


def test_stock_peft_loads_it_with_the_same_logits(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_tiny(base, TinyOptions(layers=2, hidden_size=64, intermediate_size=32))
    write_stock_adapter(base, adapter, **PATTERNS)
    out = export(base, tmp_path / "out", "vllm", adapter=str(adapter))
    logits = [
        logits_and_experts(PeftModel.from_pretrained(load_stock(base), folder).eval())[0]
        for folder in (adapter, out)
    ]
    assert (logits[0] - logits[1]).abs().max() <= 1e-4
    assert (logits[0] - logits_and_experts(load_stock(base))[0]).abs().max() > 0.1


def test_a_folder_keeps_its_tensors_and_gets_both_generations_of_keys(
    base: Path, tmp_path: Path
) -> None:
    out = export(base, tmp_path / "out", "vllm")
    before, after = load_tensors(base), load_tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"]
    assert config["rope_scaling"]["factor"] == config["rope_parameters"]["factor"]
    assert config["experts_per_token"] == config["num_experts_per_tok"]
    kept = {"tokenizer.json", "generation_config.json", "model.safetensors.index.json"}
    assert kept <= contents(out).keys()
    assert f"vllm serve {out}" in (out / "serve.md").read_text()


def test_serving_instructions_hold_the_rank(base: Path, tmp_path: Path) -> None:
    write_stock_adapter(base, tmp_path / "adapter", r=20)
    out = export(base, tmp_path / "out", "vllm", adapter=str(tmp_path / "adapter"), name="mine")
    text = (out / "serve.md").read_text()
    assert "--max-lora-rank 32" in text
    assert f"--lora-modules mine-tuned={out}" in text
    assert f"vllm serve {base}" in text


def test_dense_folders_only_when_asked(small: Path, full: object, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    merge_to(small, full.adapter, dense, "bf16")
    assert "dtype=bf16" in refusal(dense, tmp_path / "o", "vllm")
    out = export(dense, tmp_path / "out", "vllm", dtype="bf16")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert "needs dense experts" in refusal(small, tmp_path / "o", "vllm", dtype="bf16")


def test_what_lora_cannot_carry_is_merged_first(small: Path, full: object, tmp_path: Path) -> None:
    """Norms, biases and sinks go into the weights; the experts' part is carried beside them."""
    text = refusal(small, tmp_path / "o", "vllm", adapter=str(full.adapter))
    assert "vLLM carries LoRA on attention and experts only" in text
    assert "DIR/expert_adapter" in text
    merged = tmp_path / "merged"
    merge_to(small, full.adapter, merged, "mxfp4")
    assert "would leave out what was trained" in refusal(merged, tmp_path / "o", "vllm")
    out = export(merged, tmp_path / "out", "vllm", adapter=str(merged / "expert_adapter"))
    experts = {name: delta for name, delta in full.deltas.items() if ".experts." in name}
    _assert_same(_served_deltas(out, experts=4), experts)


def test_ranks_beyond_what_vllm_serves(base: Path, tmp_path: Path) -> None:
    write_stock_adapter(base, tmp_path / "adapter", r=520, experts=False)
    text = refusal(base, tmp_path / "o", "vllm", adapter=str(tmp_path / "adapter"))
    assert "vLLM serves ranks up to 512" in text


@pytest.mark.parametrize("missing", ["rope_theta", "experts_per_token"])
def test_a_base_without_legacy_keys_is_exported_first(
    base: Path, tmp_path: Path, missing: str
) -> None:
    model = linked_copy(base, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    theta = {"rope_parameters": config["rope_scaling"] | {"rope_theta": config["rope_theta"]}}
    config = {name: value for name, value in (config | theta).items() if name != missing}
    (model / "config.json").write_text(json.dumps(config))
    write_stock_adapter(base, tmp_path / "adapter", experts=False)
    text = refusal(model, tmp_path / "o", "vllm", adapter=str(tmp_path / "adapter"))
    assert f"no {missing}" in text
    assert f"export model={model} to=vllm" in text
