"""Adapters on the packed model against stock PEFT on the dequantised one and the bare base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from stock import ATTENTION, EXPERTS, TOKENS, load_stock

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.adapters.lora import lora_config
from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter, load_adapter
from gptoss_ft.adapters.options import AdapterOptions, trained_tensors
from gptoss_ft.adapters.trained import trained_layers
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint, read_config
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.errors import AdapterError
from gptoss_ft.model.load import load_model

KINDS = [
    ["attention"],
    ["experts"],
    ["router"],
    ["lossless"],
    ["attention", "experts"],
    ["experts", "lossless"],
]


def _ids() -> torch.Tensor:
    return torch.randint(0, 199_000, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def _adapted(base: Path, options: AdapterOptions) -> AdaptedModel:
    torch.manual_seed(0)  # PEFT initialises lora_A from the global generator
    checkpoint = open_checkpoint(base)
    info = AdapterInfo(tuple(options.kinds), str(base), fingerprint(checkpoint))
    return add_adapter(load_model(checkpoint), options, info)


def _randomise(model: AdaptedModel, seed: int = 0) -> None:
    """Every trained tensor random, B too, with updates of at least a hundredth of the weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=_ids()).logits[0]


def _loss(model: torch.nn.Module, scored: int = TOKENS) -> torch.Tensor:
    """Sum over the last `scored` tokens."""
    ids = _ids()
    weights = torch.zeros(ids.shape)
    weights[:, -scored:] = 1.0
    return model(input_ids=ids, labels=ids, loss_weights=weights).loss


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def _updates(model: AdaptedModel) -> dict[str, float]:
    """Size of every update relative to its weight, by module."""
    sizes = {}
    for name, module in model.named_modules():
        if name.endswith("_proj") and hasattr(module, "lora_A"):
            delta = module.get_delta_weight("default")
            sizes[name] = (delta.norm() / module.get_base_layer().weight.float().norm()).item()
    return sizes


@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_and_logits_equal_stock_peft(
    tiny_checkpoint: Path, tmp_path: Path, rslora: bool
) -> None:
    options = AdapterOptions(["attention", "experts"], r=8, expert_r=3, alpha=16, rslora=rslora)
    ours = _adapted(tiny_checkpoint, options)
    _randomise(ours)
    assert min(_updates(ours).values()) >= 1e-2
    ours.save_pretrained(str(tmp_path))

    stock = PeftModel.from_pretrained(load_stock(tiny_checkpoint), tmp_path, is_trainable=True)
    assert (_logits(ours) - _logits(stock)).abs().max() <= 1e-4

    _loss(ours).backward()
    ids = _ids()
    (stock(input_ids=ids, labels=ids).loss * (TOKENS - 1)).backward()
    theirs = {name: p.grad for name, p in stock.named_parameters() if p.requires_grad}
    mine = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert mine.keys() == theirs.keys()
    assert len(theirs) == 4 * 2 * (4 + 2)
    worst = max((_relative(mine[name], theirs[name]), name) for name in theirs)
    assert worst[0] <= 1e-4, worst


def test_keys_and_config_are_what_stock_peft_writes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours = _adapted(tiny_checkpoint, AdapterOptions(["attention", "experts"], r=8, expert_r=8))
    ours.save_pretrained(str(tmp_path / "ours"))
    config = LoraConfig(
        r=8,
        lora_alpha=32,
        target_modules=ATTENTION,
        target_parameters=EXPERTS,
        task_type="CAUSAL_LM",
    )
    get_peft_model(load_stock(tiny_checkpoint), config).save_pretrained(tmp_path / "theirs")
    shapes = [
        {k: v.shape for k, v in load_file(tmp_path / who / "adapter_model.safetensors").items()}
        for who in ("ours", "theirs")
    ]
    assert shapes[0] == shapes[1]
    configs = [
        json.loads((tmp_path / who / "adapter_config.json").read_text())
        for who in ("ours", "theirs")
    ]
    differing = {key for key in configs[1] if configs[0][key] != configs[1][key]}
    assert differing <= {"base_model_name_or_path", "target_modules", "lora_alpha"}
    assert set(configs[0]["target_modules"]) == set(configs[1]["target_modules"])


def test_full_tensor_gradients_equal_plain_autograd(tiny_checkpoint: Path) -> None:
    """Routers, biases, norms and sinks against the same tensors unfrozen in the stock model."""
    ours = _adapted(tiny_checkpoint, AdapterOptions(["lossless"], r=4))
    _loss(ours).backward()
    stock = load_stock(tiny_checkpoint)
    ids = _ids()
    (stock(input_ids=ids, labels=ids).loss * (TOKENS - 1)).backward()
    theirs = dict(stock.named_parameters())
    layers = trained_layers(ours)
    assert len(layers) == 4 * (2 + 2 + 2 + 1) + 1
    for name, layer in layers.items():
        assert _relative(layer.values["default"].grad, theirs[name].grad) <= 1e-4, name


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_a_disabled_adapter_is_the_base_after_training(
    tiny_checkpoint: Path, tmp_path: Path, kinds: list[str]
) -> None:
    base = _logits(load_model(open_checkpoint(tiny_checkpoint)))
    model = _adapted(tiny_checkpoint, AdapterOptions(kinds, r=4))
    assert (_logits(model) - base).abs().max() <= 1e-6, "a fresh adapter changes nothing"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        _loss(model, scored=64).backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned = _logits(model)
    assert (tuned - base).abs().max() > 0.1, "five steps must have changed something"
    with model.disable_adapter():
        assert (_logits(model) - base).abs().max() <= 1e-6
    assert torch.equal(_logits(model), tuned), "enabling again restores the adapter"
    assert sum(p.requires_grad for p in model.parameters()) > 0

    model.save_pretrained(str(tmp_path / "adapter"))
    checkpoint = open_checkpoint(tiny_checkpoint)
    saved = open_adapter(tmp_path / "adapter")
    check_adapter(saved, checkpoint)
    assert list(saved.kinds) == kinds
    loaded = load_adapter(load_model(checkpoint), saved)
    assert torch.equal(_logits(loaded), tuned)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_gradient_checkpointing_changes_nothing(tiny_checkpoint: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = _adapted(tiny_checkpoint, AdapterOptions(["experts", "lossless"], r=4))
        _randomise(model)
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        _loss(model, scored=64).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert _relative(gradients[1][name], gradient) <= 1e-6, name


def test_adapters_and_full_tensors_are_float32(tiny_checkpoint: Path) -> None:
    model = _adapted(tiny_checkpoint, AdapterOptions(["experts", "lossless"]))
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}


def test_merging_in_memory_is_refused_with_the_command_to_use(tiny_checkpoint: Path) -> None:
    model = _adapted(tiny_checkpoint, AdapterOptions(["experts"]))
    with pytest.raises(AdapterError, match="gptoss-ft merge base=DIR"):
        model.merge_and_unload()


def test_lossless_trains_no_tensor_that_is_packed(tiny_checkpoint: Path) -> None:
    names = list(expected_shapes(read_config(tiny_checkpoint), packed=True))
    trained = trained_tensors(AdapterOptions(["lossless"]), names)
    assert not any(name.endswith(("_blocks", "_scales")) for name in trained)
    assert "model.norm.weight" in trained
    assert lora_config(AdapterOptions(["lossless"]), 4).target_parameters is None


def test_expert_rank_is_divided_by_the_active_experts() -> None:
    config = lora_config(AdapterOptions(["attention", "experts"], r=32), 4)
    assert config.r == 8
    assert config.rank_pattern == dict.fromkeys(ATTENTION, 32)
    assert AdapterOptions(r=2).expert_rank(4) == 1
    assert AdapterOptions(r=32, expert_r=5).expert_rank(4) == 5


def test_problems_of_options_are_all_named() -> None:
    options = AdapterOptions(kinds=["atention"], r=0, alpha=-1, expert_r=-2)
    text = "\n".join(map(str, options.problems("adapter")))
    for key in ("adapter.kinds", "adapter.r", "adapter.alpha", "adapter.expert_r"):
        assert key in text
    assert AdapterOptions(kinds=[]).problems()
    assert not AdapterOptions().problems()
