"""A whole model, every part of ours in it, against dense autograd of stock transformers and PEFT.

Small random models of random shape: the loss and the gradient of every tensor that any adapter can
train, ours in float32. The reference is in float64, because its own rounding in float32 reaches
1e-4 where a gradient is small. The parts alone are in `test_experts`, `test_attention` and
`test_loss`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from stock import ATTENTION, EXPERTS
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_ft.adapters.experts import register_packed_experts
from gptoss_ft.adapters.options import LOSSLESS_TENSORS
from gptoss_ft.adapters.trained import attach_trained, base_name, trained_layers
from gptoss_ft.model.attention.sinks import SINK_ATTENTION, register_sink_attention
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.load import replace_layers
from gptoss_ft.mxfp4.codec import floor_scales, pack

VOCABULARY = 301
WINDOW = 5
ERROR = 1e-4
# Below this share of all gradients' norm a tensor's gradient is the rounding of larger terms that
# cancel, such as that of a query which sees a single key.
FLOOR = 1e-2


@dataclass(frozen=True)
class Sizes:
    """Of a model and its batch; `one_expert` sends all tokens of a layer to the same experts."""

    hidden: int = 64
    intermediate: int = 32
    experts: int = 4
    k: int = 2
    heads: int = 4
    kv_heads: int = 2
    rank: int = 3
    one_expert: bool = False
    lengths: tuple[int, ...] = (12, 7)
    share: float = 0.5
    seed: int = 0


def make_pair(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    """Ours on packed weights, and stock on the same weights, dense and float64."""
    torch.manual_seed(sizes.seed)
    config = GptOssConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_local_experts=sizes.experts,
        num_experts_per_tok=min(sizes.k, sizes.experts),
        num_hidden_layers=2,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=16,
        sliding_window=WINDOW,
        pad_token_id=0,
        dtype=torch.bfloat16,
    )
    dense_config = copy.deepcopy(config)  # a model writes its choices into its config
    dense_config._experts_implementation = "eager"
    stock = GptOssForCausalLM._from_config(dense_config, attn_implementation="eager").double()
    register_sink_attention()
    ours = WeightedGptOss._from_config(config, attn_implementation=SINK_ATTENTION)
    replace_layers(ours, config)
    packed = dict(ours.named_parameters())
    with torch.no_grad():
        for name, dense in stock.named_parameters():
            dense.copy_(random_values(name, dense.shape, sizes))
            mine = packed[name]
            if mine.dtype == torch.uint8:
                values = dense.float().transpose(1, 2).contiguous()
                scales = floor_scales(values)
                mine.data, packed[f"{name}_scales"].data = pack(values, scales), scales
                dense.copy_(convert_moe_packed_tensors(mine.data, scales, dtype=torch.float32))
            else:
                mine.data = dense.bfloat16()
                dense.copy_(mine)
    return ours.requires_grad_(False), stock.requires_grad_(False)


def random_values(name: str, shape: torch.Size, sizes: Sizes) -> torch.Tensor:
    """Of a size that lets every part matter; the router's weight is 0 where its bias decides."""
    values = torch.randn(shape)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * values
    if name.endswith("router.weight") and sizes.one_expert:
        return 0 * values
    if values.dim() == 1 or "embed" in name:
        return values
    return values / shape[-1] ** 0.5


def add_adapters(ours: nn.Module, stock: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
    """The same random LoRA on attention and experts, and every lossless tensor trained in full."""
    names = [name for name, _ in stock.named_parameters() if name.endswith(LOSSLESS_TENSORS)]
    attach_trained(ours, names)
    adapted = []
    for model in (ours, stock):
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=ATTENTION, target_parameters=EXPERTS
        )
        register_packed_experts(config)
        adapted.append(get_peft_model(model, config))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in sorted(adapted[-1].named_parameters()):
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.data = values.to(torch.float64 if model is stock else torch.float32)
            elif model is stock and base_name(name) in names:
                parameter.requires_grad_()
    return adapted[0], adapted[1]


def make_batch(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Right-padded rows with random weights; at least one position has some."""
    lengths = torch.tensor(sizes.lengths)[:, None]
    shape = (len(sizes.lengths), max(*sizes.lengths, 2))
    mask = (torch.arange(shape[1]) < lengths).long()
    weights = torch.rand(shape) * (torch.rand(shape) < sizes.share) * mask
    ids = torch.randint(1, VOCABULARY, shape)
    weights[0, 1] = 0.7
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": ids,
        "loss_weights": weights,
    }


def stock_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted sum of cross-entropies from all logits."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    nll = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
    )
    return (nll * batch["loss_weights"][:, 1:].flatten()).sum()


def all_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """By the stock model's names, LoRA's and others."""
    found = {name: layer.values["default"].grad for name, layer in trained_layers(model).items()}
    for name, parameter in model.named_parameters():
        if "lora_" in name or (parameter.requires_grad and ".values." not in name):
            found[name if "lora_" in name else base_name(name)] = parameter.grad
    return found


sizes_of_models = st.builds(
    Sizes,
    hidden=st.sampled_from([32, 64]),
    intermediate=st.sampled_from([32, 64]),
    experts=st.integers(2, 6),  # stock PEFT drops the dimension of a single one
    k=st.integers(1, 3),
    heads=st.sampled_from([2, 4]),
    kv_heads=st.sampled_from([1, 2]),
    rank=st.integers(1, 5),
    one_expert=st.booleans(),
    lengths=st.lists(st.integers(2, 20), min_size=1, max_size=3).map(tuple),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=20, deadline=None)
@given(sizes=sizes_of_models)
@example(sizes=Sizes(lengths=(2,), share=0.0))  # one token is scored
@example(sizes=Sizes(experts=6, k=1, lengths=(3,)))  # most experts are empty
@example(sizes=Sizes(one_expert=True, k=1, lengths=(20, 20)))
def test_every_gradient_equals_dense_autograd(sizes: Sizes) -> None:
    ours, stock = add_adapters(*make_pair(sizes), sizes.rank)
    batch = make_batch(sizes)
    mine, theirs = ours(**batch).loss, stock_loss(stock, batch)
    assert abs(mine.item() - theirs.item()) <= ERROR * theirs.item()
    mine.backward()
    theirs.backward()
    found, expected = all_gradients(ours), all_gradients(stock)
    assert found.keys() == expected.keys()
    assert len(found) == 2 * (2 * (4 + 2) + 2 + 2 + 2 + 1) + 1
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / torch.maximum(gradient.norm(), FLOOR * total)
        assert error <= ERROR, f"{name}: {error:.1e}"


def test_the_sinks_and_every_kind_of_tensor_have_a_gradient() -> None:
    """Nothing above is compared as zero with zero."""
    ours, _ = add_adapters(*make_pair(Sizes()), 3)
    arguments: dict[str, Any] = make_batch(Sizes(share=1.0))
    ours(**arguments).loss.backward()
    for name, gradient in all_gradients(ours).items():
        assert gradient.norm() > 1e-3, name
