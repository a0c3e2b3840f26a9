"""The packed model against stock transformers on the dequantised one, float32 on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stock import TOKENS, load_stock, logits_and_experts
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssForCausalLM

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.checkpoint.locate import locate_checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.errors import CheckpointError
from gptoss_ft.model.experts.low_rank import low_rank_update
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.load import load_model
from gptoss_ft.model.storage import linear
from gptoss_ft.mxfp4.codec import floor_scales, pack


def _ids(length: int) -> torch.Tensor:
    return torch.randint(0, 199_000, (1, length), generator=torch.Generator().manual_seed(1))


def test_logits_equal_stock_transformers(tiny_checkpoint: Path) -> None:
    theirs, hit = logits_and_experts(load_stock(tiny_checkpoint))
    ours, ours_hit = logits_and_experts(load_model(open_checkpoint(tiny_checkpoint)))
    assert hit == ours_hit == [8] * 4, "the tokens must hit every expert of every layer"
    assert (ours - theirs).abs().max() <= 1e-4


def test_left_padding_changes_nothing(tiny_checkpoint: Path) -> None:
    model = load_model(open_checkpoint(tiny_checkpoint))
    ids = _ids(TOKENS)
    padded = F.pad(ids, (40, 0), value=199999)
    mask = F.pad(torch.ones_like(ids), (40, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(ids, logits_to_keep=8).logits
        beside = model(padded, attention_mask=mask, position_ids=positions, logits_to_keep=8).logits
    torch.testing.assert_close(beside, alone, atol=1e-4, rtol=1e-4)


def test_weights_stay_packed_stored_and_frozen(tiny_checkpoint: Path) -> None:
    model = load_model(open_checkpoint(tiny_checkpoint))
    stored = {
        name: (parameter.dtype, parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    for name, (dtype, requires_grad) in stored.items():
        packed = name.endswith(("_proj", "_scales"))
        assert dtype == (torch.uint8 if packed else torch.bfloat16), name
        assert not requires_grad, name


def _anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_does_not_copy_the_files(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    load_model(checkpoint)  # the first load also imports and caches
    before = _anonymous_kib()
    model = load_model(checkpoint)
    grown = (_anonymous_kib() - before) * 1024
    assert model is not None
    assert checkpoint.nbytes > 100e6
    assert grown < 0.1 * checkpoint.nbytes, f"{grown / 1e6:.0f} MB were copied"


def test_dense_checkpoints_are_refused_for_training(tmp_path: Path, tiny_checkpoint: Path) -> None:
    dense = tmp_path / "dense"
    load_stock(tiny_checkpoint, torch.bfloat16).save_pretrained(dense, save_original_format=False)
    checkpoint = open_checkpoint(dense)
    assert not checkpoint.is_packed
    with pytest.raises(CheckpointError, match="train on the MXFP4 checkpoint"):
        checkpoint.require_packed()


@pytest.mark.parametrize("hub", [False, True])
def test_a_missing_folder_names_the_setting(hub: bool) -> None:
    with pytest.raises(CheckpointError, match=r"model\.path: there is no model folder here"):
        locate_checkpoint("./no/such/folder", hub, "model.path")


def test_a_hub_id_needs_permission() -> None:
    with pytest.raises(CheckpointError, match="add hub=true to download openai/gpt-oss-20b"):
        locate_checkpoint("openai/gpt-oss-20b", False, "model.path")


def _small_config(hidden: int, intermediate: int, experts: int) -> GptOssConfig:
    return GptOssConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_local_experts=experts,
        num_experts_per_tok=min(2, experts),
    )


def _pair(config: GptOssConfig) -> tuple[PackedExperts, GptOssExperts]:
    """The same random experts, packed and as transformers' dense module."""
    packed, dense = PackedExperts(config), GptOssExperts(config)
    for name in ("gate_up_proj", "down_proj"):
        out, width = getattr(packed, name).shape[1], getattr(packed, name).shape[2] * 32
        values = torch.randn(config.num_local_experts, out, width) / width**0.5
        scales = floor_scales(values)
        blocks = pack(values, scales)
        getattr(packed, name).data = blocks
        getattr(packed, f"{name}_scales").data = scales
        bias = torch.randn(config.num_local_experts, out)
        getattr(packed, f"{name}_bias").data = bias
        getattr(dense, f"{name}_bias").data = bias.clone()
        getattr(dense, name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return packed, dense.requires_grad_(False)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 6),
    hidden=st.sampled_from([32, 64, 96]),
    intermediate=st.sampled_from([32, 64]),
    rank=st.integers(1, 5),
    collapse=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_expert_gradients_equal_dense_autograd(
    tokens: int,
    experts: int,
    hidden: int,
    intermediate: int,
    rank: int,
    collapse: bool,
    seed: int,
) -> None:
    """Gradients of input, routing weights and factors: one token, empty experts, all in one."""
    torch.manual_seed(seed)
    config = _small_config(hidden, intermediate, experts)
    packed, dense = _pair(config)
    k = config.num_experts_per_tok
    indices = torch.stack([torch.randperm(experts)[:k] for _ in range(tokens)])
    if collapse:
        indices = indices[:1].repeat(tokens, 1)
    x = torch.randn(tokens, hidden, requires_grad=True)
    weights = torch.rand(tokens, k, requires_grad=True)
    factors = {
        name: (
            torch.randn(experts, rank, width, requires_grad=True),
            torch.randn(experts, out, rank, requires_grad=True),
        )
        for name, out, width in (
            ("gate_up_proj", 2 * intermediate, hidden),
            ("down_proj", hidden, intermediate),
        )
    }
    updates = [(low_rank_update((A, B, 0.5)),) for A, B in factors.values()]
    ours = packed(x, indices, weights, *updates)

    weights_of = {
        name: getattr(dense, name).data + 0.5 * (B @ A).transpose(1, 2)
        for name, (A, B) in factors.items()
    }
    reference = torch.func.functional_call(dense, weights_of, (x, indices, weights))
    assert (ours - reference).norm() <= 1e-5 * reference.norm()
    leaves = [x, weights, *(leaf for pair in factors.values() for leaf in pair)]
    direction = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, leaves, direction),
        torch.autograd.grad(reference, leaves, direction),
        strict=True,
    ):
        scale = theirs.norm().clamp(min=1e-6)
        assert (mine - theirs).norm() / scale <= 1e-4


@pytest.mark.parametrize("leading", [(), (7,), (3, 5)])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_linear_on_stored_weights_has_the_gradients_of_a_dense_one(
    leading: tuple[int, ...], stored: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 16).to(stored)
    bias = torch.randn(24).to(stored).requires_grad_()
    x = torch.randn(*leading, 16, requires_grad=True)
    direction = torch.randn(*leading, 24)
    ours = linear(x, weight, bias)
    reference = F.linear(x, weight.float(), bias.float())
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, bias), direction),
        torch.autograd.grad(reference, (x, bias), direction),
    )


def test_generation_equals_stock_greedy_decoding(tiny_checkpoint: Path) -> None:
    ids = _ids(150)  # longer than the sliding window, so its cache is trimmed
    stock: GptOssForCausalLM = load_stock(tiny_checkpoint)
    ours = load_model(open_checkpoint(tiny_checkpoint))
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 199999}
    assert torch.equal(ours.generate(ids, **arguments), stock.generate(ids, **arguments))


def test_packed_documents_do_not_see_each_other(tiny_checkpoint: Path) -> None:
    """Logits of two documents in one padded row are those of each one alone."""
    model = load_model(open_checkpoint(tiny_checkpoint))
    lengths = (180, 140)  # the first longer than the sliding window
    ids = _ids(sum(lengths))
    row = {
        "input_ids": ids[0].tolist(),
        "labels": ids[0].tolist(),
        "loss_weights": [1.0] * ids.shape[1],
        "documents": list(lengths),
    }
    short = {name: value[:100] for name, value in row.items()} | {"documents": [100]}
    batch = Collator()([row, short])
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "documents")}
    with torch.no_grad():
        packed = model(**inputs).logits
        first, second = (model(input_ids=part).logits[0] for part in ids.split(lengths, dim=1))
    assert (packed[0, :180] - first).abs().max() <= 1e-4
    assert (packed[0, 180:] - second).abs().max() <= 1e-4
    assert (packed[1, :100] - first[:100]).abs().max() <= 1e-4
    assert torch.isfinite(packed).all()
