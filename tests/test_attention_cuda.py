"""Attention on CUDA: its composition in plain arithmetic, and its shapes on meta tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_oracle import (
    SCALING,
    assert_equals_stock,
    attention_inputs,
)

from gptoss_ft.model import attention_cpu, attention_cuda
from gptoss_ft.model.attention import (
    sink_attention,
)
from gptoss_ft.model.attention_documents import documents_of


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
    assert_equals_stock(attention_inputs(len(rows), 4, 2, 50), torch.stack(rows), window)


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
