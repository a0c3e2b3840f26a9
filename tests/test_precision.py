"""What is stored and what is computed in which dtype, and that a CPU gives the same bits twice.

The dtypes on a GPU are tested on meta tensors in test_host_sync.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.errors import CheckpointError
from gptoss_ft.model.load import compute_dtype, load_model

WATCHED = ("self_attn", "mlp", "input_layernorm", "q_proj", "o_proj", "experts", "norm", "router")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> AdaptedModel:
    torch.manual_seed(0)
    options = AdapterOptions(["attention", "experts", "lossless"], r=8)
    adapted = add_adapter(
        load_model(open_checkpoint(tiny_checkpoint), torch.device("cpu")),
        options,
        AdapterInfo((), "", ""),
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return adapted.train()


def _batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 199_000, (2, 60), generator=torch.Generator().manual_seed(0))
    weights = (torch.arange(120).view(2, 60) % 3 == 0).float()
    return {"input_ids": ids, "labels": ids, "loss_weights": weights}


def test_the_dtype_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch emulates bfloat16 on a T4, slowly; and float16 overflows in gpt-oss."""
    asked: list[bool] = []

    def supported(answer: bool) -> Callable[..., bool]:
        def is_bf16_supported(including_emulation: bool = True) -> bool:
            asked.append(including_emulation)
            return answer

        return is_bf16_supported

    assert compute_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported(True))
    assert compute_dtype(torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported(False))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(CheckpointError, match="no bfloat16 units") as refused:
        compute_dtype(torch.device("cuda"))
    assert "Tesla T4" in str(refused.value) and "CUDA_VISIBLE_DEVICES=''" in str(refused.value)
    assert asked == [False, False]


def test_the_base_is_stored_as_it_came_and_what_is_trained_in_float32(model: AdaptedModel) -> None:
    stored = {"base": set(), "trained": set()}
    for parameter in model.parameters():
        stored["trained" if parameter.requires_grad else "base"].add(parameter.dtype)
    assert stored == {"base": {torch.bfloat16, torch.uint8}, "trained": {torch.float32}}


def test_a_cpu_computes_in_float32_and_gives_float32_gradients(model: AdaptedModel) -> None:
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            seen.setdefault(name, set()).add(first.dtype)

        return hook

    ends = {name: name.rpartition(".")[2] for name, _ in model.named_modules()}
    hooks = [
        module.register_forward_hook(note(ends[name]))
        for name, module in model.named_modules()
        if ends[name] in WATCHED
    ]
    output = model(**_batch(), use_cache=False)
    output.loss.backward()
    for hook in hooks:
        hook.remove()
    assert seen == {name: {torch.float32} for name in WATCHED}
    assert output.loss.dtype == output.weight.dtype == torch.float32
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}
    assert all(parameter.grad is not None for parameter in trained)


def test_two_passes_give_the_same_bits(model: AdaptedModel) -> None:
    def results() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = model(**_batch(), use_cache=False).loss
        loss.backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **trained}

    first, second = results(), results()
    assert len(first) > 50
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
