"""Attention with sinks against transformers' eager attention, document by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stock import load_stock
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from gptoss_ft.adapters.trained import attach_trained, trained_layers
from gptoss_ft.model import attention_cpu, attention_cuda
from gptoss_ft.model.attention import (
    SINK_ATTENTION,
    register_sink_attention,
    sink_attention,
    sink_attention_forward,
    sink_attention_mask,
)
from gptoss_ft.model.attention_documents import Documents, documents_of, whole_rows
from gptoss_ft.model.checkpoint import open_checkpoint
from gptoss_ft.model.load import load_model

SCALING = 0.125
Tensors = list[torch.Tensor]
Kernel = Callable[..., torch.Tensor]


def _stock(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    ids: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """Stock attention of every document alone, `[batch, heads, length, d]`; zero in padding."""
    groups = query.shape[1] // key.shape[1]
    module: Any = SimpleNamespace(sinks=sinks, num_key_value_groups=groups, training=False)
    rule = causal_mask_function
    if window is not None:
        rule = sliding_window_causal_mask_function(window)
    output = 0 * (query + key.sum() + value.sum() + sinks.sum())  # all padding has gradients too
    for row in range(ids.shape[0]):
        for number in ids[row].unique():
            if number:
                at = torch.where(ids[row] == number)[0]
                part = [x[row : row + 1, :, at] for x in (query, key, value)]
                mask = eager_mask(1, len(at), len(at), mask_function=rule, dtype=query.dtype)
                out, _ = eager_attention_forward(module, *part, mask, SCALING)
                output[row, :, at] = out[0].transpose(0, 1)
    return output


def _inputs(
    batch: int, heads: int, kv_heads: int, length: int, width: int = 16, dtype: Any = torch.float32
) -> Tensors:
    """Query, key and value in the memory order of gpt-oss, and sinks near the scores' size."""
    shapes = [(batch, length, h, width) for h in (heads, kv_heads, kv_heads)]
    made = [2 * torch.randn(shape, dtype=dtype) for shape in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in made] + [
        (2 * torch.randn(heads, dtype=dtype) + 1).requires_grad_()
    ]


def _assert_near(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
    assert error <= 1e-4, f"{name}: {error:.1e}"


def _assert_equals_stock(inputs: Tensors, ids: torch.Tensor, window: int | None) -> None:
    documents = documents_of(ids)
    assert documents is not None
    ours = sink_attention(*inputs, documents, SCALING, window)
    theirs = _stock(*inputs, ids, window)
    _assert_near(ours, theirs, "output")
    assert not ours.detach().movedim(1, -1)[ids == 0].any(), "padding has an output"
    direction = torch.randn_like(ours)
    gradients = zip(
        ("query", "key", "value", "sinks"),
        torch.autograd.grad(ours, inputs, direction),
        torch.autograd.grad(theirs, inputs, direction),
        strict=True,
    )
    for name, mine, reference in gradients:
        _assert_near(mine, reference, f"gradient of {name}")


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
    inputs = _inputs(ids.shape[0], kv_heads * group, kv_heads, ids.shape[1])
    _assert_equals_stock(inputs, ids, window if sliding else None)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 191, 192, 193, 256, 257, 700])
def test_lengths_around_the_blocks_of_gpt_oss(length: int, window: int | None) -> None:
    torch.manual_seed(length)
    ids = torch.ones(2, length, dtype=torch.int64)
    _assert_equals_stock(_inputs(2, 8, 1, length, width=64), ids, window)


def test_a_wide_window_spans_several_blocks_of_the_kernel() -> None:
    torch.manual_seed(0)
    _assert_equals_stock(_inputs(1, 2, 1, 1500), torch.ones(1, 1500, dtype=torch.int64), 700)


@pytest.mark.parametrize("window", [None, 3, 70])
def test_gradients_by_finite_differences(window: int | None) -> None:
    torch.manual_seed(0)
    length = 5 if window == 3 else 73
    inputs = _inputs(1, 2, 1, length, width=2, dtype=torch.float64)
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
    query, key, value, sinks = _inputs(1, 2, 2, 50)
    sinks.data.fill_(sink)
    output = sink_attention(query, key, value, sinks, whole_rows(1, 50), SCALING)
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALING)
    torch.testing.assert_close(output, plain if sink < 0 else torch.zeros_like(plain))
    gradients = torch.autograd.grad(output, [query, key, value, sinks], torch.ones_like(output))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_sinks_gradient_has_their_dtype() -> None:
    query, key, value, sinks = _inputs(1, 4, 2, 30)
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
    first = _inputs(1, 4, 2, ids.shape[1])
    other = _inputs(1, 4, 2, ids.shape[1])
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
    inputs = _inputs(1, 2, 2, 8)
    with pytest.raises(ValueError, match=r"documents of shape \(1, 9\)"):
        sink_attention(*inputs, whole_rows(1, 9), SCALING)


def test_documents_come_from_their_numbers() -> None:
    ids = torch.tensor([[0, 5, 5, 2], [0, 5, 5, 2], [1, 1, 1, 1]])
    documents = documents_of(ids)
    assert documents is not None
    again = documents.ids(torch.device("cpu"))
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


def test_a_document_in_two_pieces_is_one_document(tiny_checkpoint: Path) -> None:
    """Only a dense mask can say so; `eager` is the reference."""
    model = load_model(open_checkpoint(tiny_checkpoint))
    batch = {"input_ids": _batch()["input_ids"][:1, :40]}
    batch["document_ids"] = torch.tensor([[1] * 15 + [2] * 10 + [1] * 15])
    with torch.no_grad():
        ours = model(**batch).logits
        model.set_attn_implementation("eager")
        assert torch.equal(model(**batch).logits, ours)


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
    query, key, value, sinks = _inputs(2, 4, 2, 40)
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
    query, key, value, sinks = _inputs(1, 4, 2, length, width=8)
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


# --- CUDA -------------------------------------------------------------------------------------


def _per_sequence(
    offsets: torch.Tensor, causal: bool, left: int, right: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Tokens and seen pairs of every sequence, by the flash kernel's rules."""
    assert right == 0 and (causal == (left == -1)), "the kernel knows causal or a window"
    for start, stop in zip(offsets.tolist(), offsets.tolist()[1:], strict=False):
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        yield slice(start, stop), (distance >= 0) & ((left < 0) | (distance <= left))


def _scores(query: Any, key: Any, seen: torch.Tensor, scale: float) -> torch.Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("ihd,jhd->hij", query, key) * scale
    return scores.masked_fill(~seen, -torch.inf)


def _math_forward(
    query: Any, key: Any, value: Any, offsets: Any, _: Any, longest: int, __: int,
    dropout: float, causal: bool, debug: bool, *, scale: float,
    window_size_left: int, window_size_right: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`aten._flash_attention_forward` in plain arithmetic."""
    assert query.is_contiguous() and longest == offsets.diff().max() and not dropout and not debug
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0])
    for at, seen in _per_sequence(offsets, causal, window_size_left, window_size_right):
        scores = _scores(query[at], key[at], seen, scale)
        repeated = value[at].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out[at] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), repeated)
        lse[:, at] = scores.logsumexp(-1)
    return out, lse, torch.empty(0), torch.empty(0), torch.empty(0)


def _math_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, offsets: Any, _: Any,
    longest: int, __: int, dropout: float, causal: bool, seed: Any, unused: Any, *, scale: float,
    window_size_left: int, window_size_right: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`aten._flash_attention_backward` in plain arithmetic: probabilities from the given lse."""
    assert lse.is_contiguous() and lse.shape == (query.shape[1], query.shape[0])
    kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    gradients = [torch.empty_like(x) for x in (query, key, value)]
    for at, seen in _per_sequence(offsets, causal, window_size_left, window_size_right):
        probability = (_scores(query[at], key[at], seen, scale) - lse[:, at, None]).exp()
        keys, values = (x[at].repeat_interleave(group, dim=1) for x in (key, value))
        inner = (grad[at] * out[at]).sum(-1).T[..., None]
        slope = probability * (torch.einsum("ihd,jhd->hij", grad[at], values) - inner) * scale
        gradients[0][at] = torch.einsum("hij,jhd->ihd", slope, keys)
        for total, weights, other in ((1, slope, query), (2, probability, grad)):
            each = torch.einsum("hij,ihd->jhd", weights, other[at])
            gradients[total][at] = each.unflatten(1, (kv_heads, group)).sum(2)
    return tuple(gradients)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("padded", [False, True])
def test_cuda_composition_with_the_kernels_in_plain_arithmetic(
    monkeypatch: pytest.MonkeyPatch, window: int | None, padded: bool
) -> None:
    """What surrounds the two flash operators: packing, windows, offsets, log-sum-exp."""
    monkeypatch.setattr(attention_cuda, "_forward", _math_forward)
    monkeypatch.setattr(attention_cuda, "_backward", _math_backward)
    monkeypatch.setattr(attention_cpu, "attend", attention_cuda.attend)
    monkeypatch.setattr(attention_cpu, "attend_backward", attention_cuda.attend_backward)
    torch.manual_seed(0)
    ids = torch.repeat_interleave(torch.tensor([1, 2, 3]), torch.tensor([30, 1, 19]))
    rows = [ids, ids, torch.ones_like(ids)]
    if padded:
        rows += [torch.where(ids == 2, 0, ids), F.pad(ids[:-9], (9, 0)), torch.zeros_like(ids)]
    _assert_equals_stock(_inputs(len(rows), 4, 2, 50), torch.stack(rows), window)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("padding", [0, 7])
def test_cuda_shapes_and_dtypes_on_meta_tensors(window: int | None, padding: int) -> None:
    """The real operators' signatures, in bfloat16 with float32 sinks."""
    ids = F.pad(torch.ones(2, 300 - padding, dtype=torch.int64), (0, padding))
    documents = documents_of(ids)
    assert documents is not None
    with torch.device("meta"):
        query = torch.empty(2, 8, 300, 64, dtype=torch.bfloat16, requires_grad=True)
        key = torch.empty(2, 1, 300, 64, dtype=torch.bfloat16, requires_grad=True)
        value = torch.empty(2, 1, 300, 64, dtype=torch.bfloat16, requires_grad=True)
        sinks = torch.empty(8, requires_grad=True)
    output = sink_attention(query, key, value, sinks, documents, SCALING, window)
    assert output.shape == query.shape and output.dtype == torch.bfloat16
    output.backward(torch.empty_like(output))
    for leaf in (query, key, value, sinks):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype
