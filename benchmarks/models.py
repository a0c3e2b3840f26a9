"""Models that benchmarks and tests share: random bases, stock transformers, random adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import GptOssForCausalLM, Mxfp4Config

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.model.load import load_model
from gptoss_ft.model.tiny import TinyOptions, write_tiny


def write_base(folder: Path, hidden: int, layers: int, experts: int) -> Path:
    """Writes a random checkpoint in the released layout and proportions, 4 experts for a token."""
    sizes = TinyOptions(
        layers=layers,
        hidden_size=hidden,
        intermediate_size=hidden,
        heads=max(hidden // 64, 1),
        kv_heads=max(hidden // 512, 1),
        experts=experts,
        experts_per_token=min(4, experts),
    )
    write_tiny(folder, sizes)
    return folder


def load_stock(
    base: Path, dtype: torch.dtype = torch.float32, **settings: Any
) -> GptOssForCausalLM:
    """Loads a checkpoint into stock transformers, dequantised; no key may be left over or missing.

    Attention is eager, the only one that knows sinks on a CPU; `settings` go to `from_pretrained`.
    """
    if any("_blocks" in name for file in base.glob("*.safetensors") for name in _names(file)):
        settings["quantization_config"] = Mxfp4Config(dequantize=True)
    model, report = GptOssForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation="eager", output_loading_info=True, **settings
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def random_adapter(
    base: Path, options: AdapterOptions, std: float = 0.02, seed: int = 1
) -> AdaptedModel:
    """Loads a packed checkpoint with an adapter whose factors are random, B too."""
    model = add_adapter(load_model(open_checkpoint(base)), options, AdapterInfo((), "", ""))
    randomise(model, std, seed)
    return model


def randomise(model: nn.Module, std: float = 0.02, seed: int = 1) -> None:
    """Fills A and B with seeded noise, the same by name in our model and in stock PEFT's.

    PEFT starts with B at zero, where an adapter does nothing and A has no gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = {n: p for n, p in model.named_parameters() if "lora_" in n and p.requires_grad}
    for _, parameter in sorted(trained.items()):
        parameter.data = torch.randn(parameter.shape, generator=generator) * std
