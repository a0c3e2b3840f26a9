"""Stock transformers and stock PEFT as oracles: models, adapters and logits not of our making."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from models import load_stock
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TOKENS = 320  # more than two sliding windows


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, read by the safetensors library."""
    files = path.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write_stock_adapter(
    base: Path,
    out: Path,
    *,
    seed: int = 0,
    experts: bool = True,
    std: float = 0.03,
    **settings: Any,
) -> dict[str, torch.Tensor]:
    """Saves a random adapter with stock PEFT; returns its updates, dense, by base name.

    A and B are normal with deviation `std`, so that updates reach a hundredth of the weights.
    An update has the base's orientation in stock transformers: `[out, in]`, experts `[E, in, out]`.
    """
    config = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **settings}
    if experts:
        config.setdefault("target_parameters", EXPERTS)
    model = get_peft_model(load_stock(base), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    model.save_pretrained(out, save_embedding_layers=False)
    before = {name: tensor.clone() for name, tensor in _base_state(model).items()}
    merged = model.merge_and_unload().state_dict()
    return {
        name: merged[name] - tensor
        for name, tensor in before.items()
        if not torch.equal(merged[name], tensor)
    }


def _base_state(model: PeftModel) -> dict[str, torch.Tensor]:
    state = model.get_base_model().state_dict()
    return {name.replace(".base_layer", ""): t for name, t in state.items() if "lora_" not in name}


def write_trained_tensors(base: Path, adapter: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values near the base's for every tensor that `lossless` trains without LoRA."""
    generator = torch.Generator().manual_seed(seed)
    endings = ("router.weight", "router.bias", "_proj_bias", "norm.weight", "sinks")
    trained = {}
    for name, tensor in sorted(load_tensors(base).items()):
        if name.endswith(endings):
            noise = torch.randn(tensor.shape, generator=generator)
            trained[name] = tensor.float() + 0.05 * noise * tensor.float().square().mean().sqrt()
    save_file(trained, adapter / "trained_tensors.safetensors")
    return trained


def set_tensors(model: GptOssForCausalLM, values: dict[str, torch.Tensor]) -> None:
    """Writes values into a stock model."""
    state = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


@torch.no_grad()
def logits_and_experts(model: torch.nn.Module, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Logits `[TOKENS, vocabulary]` on random tokens, and how many experts each layer routed to."""
    hit: list[int] = []
    routers = [m for name, m in model.named_modules() if name.endswith("mlp.router")]
    hooks = [
        router.register_forward_hook(lambda _, __, out: hit.append(out[2].unique().numel()))
        for router in routers
    ]
    ids = torch.randint(0, 199_000, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    logits = model(ids).logits[0].float()
    for hook in hooks:
        hook.remove()
    return logits, hit
