"""torch's flash attention operators for sequences of different lengths, in plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch


def _per_sequence(
    query_offsets: torch.Tensor, key_offsets: torch.Tensor, causal: bool, left: int, right: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Queries, keys and seen pairs of every sequence, by the flash kernel's rules.

    Where there are more keys than queries, the last query stands at the last key.
    """
    assert right == 0 and (causal == (left == -1)), "the kernel knows causal or a window"
    starts = zip(query_offsets.tolist(), key_offsets.tolist(), strict=True)
    for (query, key), (query_stop, key_stop) in pairwise(starts):
        queries, keys = query_stop - query, key_stop - key
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        seen = (distance >= 0) & ((left < 0) | (distance <= left))
        yield slice(query, query_stop), slice(key, key_stop), seen


def _scores(query: Any, key: Any, seen: torch.Tensor, scale: float) -> torch.Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("ihd,jhd->hij", query.float(), key.float()) * scale
    return scores.masked_fill(~seen, -torch.inf)


def flash_forward(
    query: Any, key: Any, value: Any, offsets: Any, key_offsets: Any, longest: int, most_keys: int,
    dropout: float, causal: bool, debug: bool, *, scale: float,
    window_size_left: int, window_size_right: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`aten._flash_attention_forward`: the output in the dtype of the query, float32 inside."""
    assert query.is_contiguous() and longest == offsets.diff().max() and not dropout and not debug
    assert key.is_contiguous() and most_keys == key_offsets.diff().max()
    out = torch.empty_like(query)
    lse = torch.empty(query.shape[1], query.shape[0], dtype=torch.float32)
    bounds = (offsets, key_offsets, causal, window_size_left, window_size_right)
    for at, keys_at, seen in _per_sequence(*bounds):
        scores = _scores(query[at], key[keys_at], seen, scale)
        repeated = value[keys_at].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out[at] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), repeated.float()).to(out.dtype)
        lse[:, at] = scores.logsumexp(-1)
    return out, lse, torch.empty(0), torch.empty(0), torch.empty(0)


def flash_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, offsets: Any,
    key_offsets: Any, longest: int, most_keys: int, dropout: float, causal: bool, seed: Any,
    unused: Any, *, scale: float,
    window_size_left: int, window_size_right: int,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`aten._flash_attention_backward`: probabilities from the given log-sum-exp."""
    assert lse.is_contiguous() and lse.shape == (query.shape[1], query.shape[0])
    kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    gradients = [torch.empty_like(x) for x in (query, key, value)]
    query, key, value, grad, out = (x.float() for x in (query, key, value, grad, out))
    bounds = (offsets, key_offsets, causal, window_size_left, window_size_right)
    for at, keys_at, seen in _per_sequence(*bounds):
        probability = (_scores(query[at], key[keys_at], seen, scale) - lse[:, at, None]).exp()
        keys, values = (x[keys_at].repeat_interleave(group, dim=1) for x in (key, value))
        inner = (grad[at] * out[at]).sum(-1).T[..., None]
        slope = probability * (torch.einsum("ihd,jhd->hij", grad[at], values) - inner) * scale
        gradients[0][at] = torch.einsum("hij,jhd->ihd", slope, keys).to(gradients[0].dtype)
        for total, weights, other in ((1, slope, query), (2, probability, grad)):
            each = torch.einsum("hij,ihd->jhd", weights, other[at])
            summed = each.unflatten(1, (kv_heads, group)).sum(2)
            gradients[total][keys_at] = summed.to(gradients[total].dtype)
    return tuple(gradients)
