"""Attention with sinks against transformers' eager attention, document by document."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_oracle import (
    SCALING,
    assert_equals_stock,
    attention_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from stock import load_stock
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    eager_mask,
)

from gptoss_ft.adapters.trained import attach_trained, trained_layers
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.documents import Documents, documents_from_lengths, whole_rows
from gptoss_ft.model.attention.masks import document_ids, documents_of
from gptoss_ft.model.attention.sinks import (
    SINK_ATTENTION,
    register_sink_attention,
    sink_attention,
    sink_attention_forward,
    sink_attention_mask,
)
from gptoss_ft.model.load import load_model


@st.composite
def _documents(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Documents' numbers `[batch, length]` with padding anywhere, and a window."""
    window = draw(st.sampled_from([1, 7, 64, 100, 128]))
    length = draw(
        st.one_of(
            st.integers(1, 40),
            st.integers(1, 700),
            st.builds(
                lambda n, d: max(1, n * window + d),
                st.integers(1, 640 // window),
                st.integers(-2, 2),
            ),
        )
    )
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
        numbers = [draw(st.booleans()) * n for n in range(1, len(lengths) + 1)]
        rows.append(torch.repeat_interleave(torch.tensor(numbers), torch.tensor(lengths)))
    if draw(st.booleans()):
        rows = rows[:1] * len(rows)  # documents at the same place in all rows
    return torch.stack(rows), window


@settings(max_examples=60, deadline=None)
@given(
    case=_documents(),
    sliding=st.booleans(),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
def test_output_and_gradients_equal_stock(
    case: tuple[torch.Tensor, int], sliding: bool, kv_heads: int, group: int, seed: int
) -> None:
    ids, window = case
    torch.manual_seed(seed)
    inputs = attention_inputs(ids.shape[0], kv_heads * group, kv_heads, ids.shape[1])
    assert_equals_stock(inputs, ids, window if sliding else None)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 191, 192, 193, 256, 257, 700])
def test_lengths_around_the_blocks_of_gpt_oss(length: int, window: int | None) -> None:
    torch.manual_seed(length)
    ids = torch.ones(2, length, dtype=torch.int64)
    assert_equals_stock(attention_inputs(2, 8, 1, length, width=64), ids, window)


def test_a_wide_window_spans_several_blocks_of_the_kernel() -> None:
    torch.manual_seed(0)
    assert_equals_stock(
        attention_inputs(1, 2, 1, 1500), torch.ones(1, 1500, dtype=torch.int64), 700
    )


@pytest.mark.parametrize("window", [None, 3, 70])
def test_gradients_by_finite_differences(window: int | None) -> None:
    torch.manual_seed(0)
    length = 5 if window == 3 else 73
    inputs = attention_inputs(1, 2, 1, length, width=2, dtype=torch.float64)
    ids = torch.ones(1, length, dtype=torch.int64)
    ids[0, -1] = 0
    documents = documents_of(ids)
    assert torch.autograd.gradcheck(
        lambda *x: sink_attention(*x, documents, SCALING, window), inputs, fast_mode=True
    )


@pytest.mark.parametrize("sink", [-60.0, 60.0])
def test_sinks_far_from_the_scores(sink: float) -> None:
    """Attention without a sink on one side, no attention at all on the other."""
    torch.manual_seed(0)
    query, key, value, sinks = attention_inputs(1, 2, 2, 50)
    sinks.data.fill_(sink)
    output = sink_attention(query, key, value, sinks, whole_rows(1, 50), SCALING)
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALING)
    torch.testing.assert_close(output, plain if sink < 0 else torch.zeros_like(plain))
    gradients = torch.autograd.grad(output, [query, key, value, sinks], torch.ones_like(output))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_sinks_gradient_has_their_dtype() -> None:
    query, key, value, sinks = attention_inputs(1, 4, 2, 30)
    stored = sinks.detach().bfloat16().requires_grad_()
    sink_attention(query, key, value, stored, whole_rows(1, 30), SCALING).sum().backward()
    assert stored.grad is not None and stored.grad.dtype == torch.bfloat16
    rounded = stored.detach().float().requires_grad_()
    sink_attention(query, key, value, rounded, whole_rows(1, 30), SCALING).sum().backward()
    assert rounded.grad is not None
    torch.testing.assert_close(stored.grad.float(), rounded.grad, atol=1e-6, rtol=1e-2)


@pytest.mark.parametrize("window", [None, 64])
def test_a_document_does_not_see_its_neighbours(window: int | None) -> None:
    """Bit for bit: output and gradients of one document while everything around it changes."""
    torch.manual_seed(0)
    ids = torch.repeat_interleave(torch.tensor([1, 2, 0, 3]), torch.tensor([90, 150, 5, 60]))[None]
    documents = documents_of(ids)
    assert documents is not None
    inside = (ids[0] == 2)[:, None]
    first = attention_inputs(1, 4, 2, ids.shape[1])
    other = attention_inputs(1, 4, 2, ids.shape[1])
    mixed = [torch.where(inside, a, b) for a, b in zip(first[:3], other[:3], strict=True)]
    results = []
    for tensors in (first[:3], mixed):
        leaves = [x.detach().requires_grad_() for x in tensors]
        output = sink_attention(*leaves, first[3], documents, SCALING, window)
        shown = torch.where(inside, output, 0)
        gradients = torch.autograd.grad(shown.square().sum(), leaves)
        assert not any(torch.where(inside, 0, gradient).any() for gradient in gradients)
        results.append([shown, *(torch.where(inside, x, 0) for x in gradients)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(x.any() for x in results[0])


def test_documents_of_another_shape_are_refused() -> None:
    inputs = attention_inputs(1, 2, 2, 8)
    with pytest.raises(ValueError, match=r"documents of shape \(1, 9\)"):
        sink_attention(*inputs, whole_rows(1, 9), SCALING)


def test_documents_come_from_their_numbers() -> None:
    ids = torch.tensor([[0, 5, 5, 2], [0, 5, 5, 2], [1, 1, 1, 1]])
    documents = documents_of(ids)
    assert documents is not None
    again = document_ids(documents, torch.device("cpu"))
    assert again.tolist() == [[0, 1, 1, 2], [0, 1, 1, 2], [3, 3, 3, 3]]
    assert documents_of(torch.tensor([[1, 1, 2, 1]])) is None
    assert documents_of(torch.tensor([[1, 0, 1]], dtype=torch.bool)) is None
    assert documents_of(torch.ones(2, 3)) == whole_rows(2, 3)


# --- the whole tiny model ---------------------------------------------------------------------


def _batch() -> dict[str, torch.Tensor]:
    """A row padded on the left and one padded on the right, both longer than the window."""
    ids = torch.randint(0, 199_000, (2, 300), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :50], mask[1, 230:] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


TRAINED = [
    f"model.layers.{layer}.self_attn.{tensor}"
    for layer in range(4)
    for tensor in ("sinks", "q_proj.bias", "k_proj.bias", "v_proj.bias")
]


def _logits_and_gradients(
    model: torch.nn.Module, trained: list[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of the last tokens that are no padding, and gradients of their next-token loss."""
    batch, last = _batch(), 120
    seen = batch["attention_mask"][:, -last:].bool()
    logits = model(**batch, logits_to_keep=last).logits[seen]
    loss = F.cross_entropy(logits[:-1], batch["input_ids"][:, -last:][seen][1:])
    return logits.detach(), list(torch.autograd.grad(loss, trained))


@pytest.fixture(scope="module")
def stock_results(tiny_checkpoint: Path) -> tuple[torch.Tensor, list[torch.Tensor]]:
    stock = load_stock(tiny_checkpoint)
    return _logits_and_gradients(stock, [stock.get_parameter(name) for name in TRAINED])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_equals_stock_in_logits_and_gradients(
    tiny_checkpoint: Path,
    stock_results: tuple[torch.Tensor, list[torch.Tensor]],
    checkpointing: bool,
) -> None:
    model = load_model(open_checkpoint(tiny_checkpoint))
    assert model.config._attn_implementation == SINK_ATTENTION
    attach_trained(model, TRAINED)
    layers = trained_layers(model)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ours, mine = _logits_and_gradients(model, [layers[name].values["default"] for name in TRAINED])
    theirs, reference = stock_results
    assert (ours - theirs).abs().max() <= 1e-4
    for name, a, b in zip(TRAINED, mine, reference, strict=True):
        assert b.any(), name
        error = (a - b).norm() / b.norm()
        assert error <= 1e-4, f"{name}: {error:.1e}"


def test_a_mask_with_a_hole_equals_stock(tiny_checkpoint: Path) -> None:
    batch = _batch()
    batch["attention_mask"][:, 100:110] = 0
    model = load_model(open_checkpoint(tiny_checkpoint))
    with torch.no_grad():
        ours = model(**batch, logits_to_keep=60).logits
        theirs = load_stock(tiny_checkpoint)(**batch, logits_to_keep=60).logits
    kept = batch["attention_mask"][:, -60:].bool()
    assert kept.any()
    assert (ours - theirs)[kept].abs().max() <= 1e-4


def test_documents_on_another_attention_are_dense_masks(tiny_checkpoint: Path) -> None:
    """Packed rows with padding in transformers' own eager attention."""
    model = load_model(open_checkpoint(tiny_checkpoint))
    ids = _batch()["input_ids"]
    documents = documents_from_lengths([[150, 140], [300]], 300)
    positions = torch.tensor([[*range(150), *range(150)], [*range(300)]])
    batch = {"input_ids": ids, "position_ids": positions, "documents": documents}
    with torch.no_grad():
        ours = model(**batch, logits_to_keep=60).logits
        model.set_attn_implementation("eager")
        theirs = model(**batch, logits_to_keep=60).logits
    kept = document_ids(documents, ids.device)[:, -60:] != 0
    assert (ours - theirs)[kept].abs().max() <= 1e-4


def test_generation_with_left_padding_equals_stock(tiny_checkpoint: Path) -> None:
    batch = _batch()
    ids, mask = batch["input_ids"][:, :170], batch["attention_mask"][:, :170]
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 199999}
    stock = load_stock(tiny_checkpoint)
    model = load_model(open_checkpoint(tiny_checkpoint))
    for cache in ("dynamic", "static"):
        ours = model.generate(
            ids, attention_mask=mask, cache_implementation=cache, disable_compile=True, **arguments
        )
        theirs = stock.generate(
            ids, attention_mask=mask, cache_implementation=cache, disable_compile=True, **arguments
        )
        assert torch.equal(ours, theirs), cache


# --- the interface ----------------------------------------------------------------------------


def test_registering_again_changes_nothing() -> None:
    register_sink_attention()
    register_sink_attention()
    assert AttentionInterface()[SINK_ATTENTION] is sink_attention_forward
    assert AttentionMaskInterface()[SINK_ATTENTION] is sink_attention_mask


def test_masks_are_documents_only_where_queries_are_keys() -> None:
    mask = torch.tensor([[0, 1, 1, 1]])
    assert sink_attention_mask(1, 4, 4) == whole_rows(1, 4)
    assert isinstance(sink_attention_mask(1, 4, 4, attention_mask=mask.bool()), Documents)
    for arguments in (
        {"q_length": 1, "kv_length": 4, "q_offset": 3},
        {"q_length": 4, "kv_length": 4, "q_offset": 4},
        {"q_length": 4, "kv_length": 4, "kv_offset": 1},
        {"q_length": 4, "kv_length": 4, "q_offset": torch.tensor(0)},
    ):
        dense = sink_attention_mask(1, **arguments)
        assert torch.equal(dense, eager_mask(1, **arguments))


@pytest.mark.parametrize("window", [None, 7])
def test_without_a_kernel_the_dense_path_gives_the_same(window: int | None) -> None:
    """bfloat16 on a CPU has none; and nobody gets attention weights."""
    torch.manual_seed(0)
    query, key, value, sinks = attention_inputs(2, 4, 2, 40)
    ids = torch.tensor([[0] * 5 + [1] * 20 + [2] * 15, [1] * 30 + [0] * 10])
    documents = documents_of(ids)
    module: Any = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=True)
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        output, weights = sink_attention_forward(
            module,
            *(x.to(dtype) for x in (query, key, value)),
            documents,
            SCALING,
            sliding_window=window,
            s_aux=sinks,
        )
        assert weights is None and output.dtype == dtype and output.shape == (2, 40, 4, 16)
        outputs.append(output.float()[ids != 0])
    assert (outputs[0] - outputs[1]).norm() <= 0.02 * outputs[0].norm()


# --- cost -------------------------------------------------------------------------------------


class _Cost(TorchDispatchMode):
    """Query-key pairs that kernels compute, and the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = 0.0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "attention_for_cpu" in func.name():
            backward = "backward" in func.name()
            query, key = args[1:3] if backward else args[:2]
            causal = (args + (False,) * 9)[7 if backward else 4]  # trailing defaults are left out
            batch, heads, length, _ = query.shape
            self.pairs += batch * heads * length * (length / 2 if causal else key.shape[2])
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                owns = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.largest = max(self.largest, owns)
        return result


def _cost(length: int, window: int | None) -> _Cost:
    query, key, value, sinks = attention_inputs(1, 4, 2, length, width=8)
    with _Cost() as cost:
        output = sink_attention(query, key, value, sinks, whole_rows(1, length), SCALING, window)
        output.sum().backward()
    return cost


def test_a_sliding_layer_costs_in_proportion_to_the_length() -> None:
    short, long = _cost(2048, 128), _cost(16384, 128)
    assert short.pairs > 0
    assert math.log(long.pairs / short.pairs, 8) <= 1.05
    assert long.pairs <= 2 * 4 * 16384 * (128 + 64), "forward and backward, 4 heads"
    assert math.log(long.largest / short.largest, 8) <= 1.05
    assert long.largest <= 2 * 4 * 16384 * 8, "elements; the queries have half of that"


def test_a_full_layer_computes_half_the_square_and_never_stores_it() -> None:
    cost = _cost(4096, None)
    assert cost.pairs <= 2 * 4 * 4096 * 4096 / 2
    assert cost.largest < 4096 * 4096 // 8
