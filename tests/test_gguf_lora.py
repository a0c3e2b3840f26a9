"""GGUF adapters: what llama.cpp adds to each weight is what stock PEFT adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exports import export, refusal
from gguf import GGUFReader
from gguf_files import tensors_of
from merges import Case, full, lossless, small
from stock import ATTENTION, write_stock_adapter

__all__ = ["full", "lossless", "small"]  # fixtures

NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
EXPERTS = {
    "ffn_gate_exps": ("gate_up_proj", slice(0, None, 2)),
    "ffn_up_exps": ("gate_up_proj", slice(1, None, 2)),
    "ffn_down_exps": ("down_proj", slice(None)),
}


def _added(file: Path) -> dict[str, torch.Tensor]:
    """What llama.cpp adds to every tensor at scale 1: `alpha / r * B @ A`."""
    alpha = GGUFReader(file).fields["adapter.lora.alpha"].contents()
    tensors = {
        name: torch.from_numpy(tensor.data.copy()).float()
        for name, tensor in tensors_of(file).items()
    }
    names = {name.rpartition(".")[0] for name in tensors}
    assert tensors.keys() == {f"{name}.lora_{part}" for name in names for part in "ab"}
    return {
        name: alpha / tensors[f"{name}.lora_b"].shape[-1]
        * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
        for name in names
    }  # fmt: skip


def _expected(deltas: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """PEFT's deltas under the names and in the orientation of a GGUF file."""
    found = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for module, name in NAMES.items():
            found[f"blk.{layer}.{name}.weight"] = deltas[f"{prefix}.self_attn.{module}.weight"]
        for name, (projection, rows) in EXPERTS.items():
            delta = deltas.get(f"{prefix}.mlp.experts.{projection}")
            if delta is not None:
                found[f"blk.{layer}.{name}.weight"] = delta.mT[:, rows]
    return found


SETTINGS = (
    {},
    {"rank_pattern": {"mlp.experts.down_proj": 2, "q_proj": 3}, "use_rslora": True},
    {"alpha_pattern": {"mlp.experts.gate_up_proj": 5}},
    {"experts": False},
    {"lora_alpha": 0},
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_updates(small: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    adapter = tmp_path / "adapter"
    deltas = write_stock_adapter(small, adapter, **settings)
    file = export(small, tmp_path / "lora.gguf", "gguf-lora", adapter=str(adapter))
    added = _added(file)
    if settings == {"lora_alpha": 0}:
        assert not deltas and not any(tensor.any() for tensor in added.values())
        return
    expected = _expected(deltas, layers=2)
    assert added.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.any()
        torch.testing.assert_close(added[name], tensor, rtol=1e-4, atol=1e-6)


def test_header(small: Path, tmp_path: Path) -> None:
    """What llama.cpp's loader asks for, and one alpha with rsLoRA's root folded in."""
    adapter = tmp_path / "adapter"
    write_stock_adapter(small, adapter, use_rslora=True, experts=False)  # r 4, alpha 8
    file = export(small, tmp_path / "lora.gguf", "gguf-lora", adapter=str(adapter), name="x")
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    expected = {
        "general.architecture": "gpt-oss",
        "general.type": "adapter",
        "general.name": "x adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 16.0,
    }
    assert {name: fields[name] for name in expected} == expected


def test_float16(small: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_stock_adapter(small, adapter)
    settings = {"to": "gguf-lora", "adapter": str(adapter)}
    whole = tensors_of(export(small, tmp_path / "f32.gguf", **settings))
    half = tensors_of(export(small, tmp_path / "f16.gguf", dtype="f16", **settings))
    for name, tensor in whole.items():
        assert half[name].tensor_type.name == "F16"
        assert (half[name].data == tensor.data.astype("float16")).all()


def test_no_adapter(small: Path, tmp_path: Path) -> None:
    message = refusal(small, tmp_path / "lora.gguf", "gguf-lora")
    assert "to=gguf-lora needs an adapter" in message and "say adapter=DIR" in message


def test_trained_tensors(small: Path, lossless: Case, full: Case, tmp_path: Path) -> None:
    """Biases, norms, sinks and routers have no place; the experts' LoRA can be kept apart."""
    for case, route in ((lossless, "to=mxfp4, then export DIR"), (full, "experts=adapter, then")):
        message = refusal(small, tmp_path / "x.gguf", "gguf-lora", adapter=str(case.adapter))
        assert "holds LoRA only, and this one also trains whole tensors" in message
        assert "such as model.layers.0.input_layernorm.weight" in message
        assert f"gptoss-ft merge base={small} adapter={case.adapter} out=DIR" in message
        assert route in message


def test_head_and_router_are_carried(small: Path, tmp_path: Path) -> None:
    """llama.cpp applies LoRA to them too."""
    adapter = tmp_path / "adapter"
    targets = {"target_modules": [*ATTENTION, "lm_head"], "target_parameters": ["router.weight"]}
    deltas = write_stock_adapter(small, adapter, experts=False, **targets)
    added = _added(export(small, tmp_path / "x.gguf", "gguf-lora", adapter=str(adapter)))
    expected = {
        "output.weight": deltas["lm_head.weight"],
        "blk.1.ffn_gate_inp.weight": deltas["model.layers.1.mlp.router.weight"],
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(added[name], tensor, rtol=1e-4, atol=1e-6)
