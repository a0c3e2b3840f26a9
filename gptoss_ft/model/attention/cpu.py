"""Attention of documents on the CPU, by torch's flash kernel in pieces that skip what is unseen.

The kernel knows "causal" and a dense mask, but neither documents nor windows. So every document is
computed by itself, and in a sliding layer the queries of a long document are cut into blocks which
only get the keys that their windows reach: all blocks are one call, their keys overlapping views of
the same memory. The cost is linear in the length of the document.

A document that goes on from a prompt elsewhere in its row is computed like any other, and once more
with the prompt's keys alone; by their log-sum-exps the two become one softmax. That takes neither a
copy of the keys nor, outside sliding layers, a mask.

The kernel takes fewer key heads than query heads since torch 2.9 (pytorch/pytorch#157893).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gptoss_ft.documents import Documents

BLOCK = 64  # queries; smaller blocks compute fewer unseen pairs, larger ones multiply faster
BLOCKS_AT_ONCE = 16  # what a call returns then stays in the cache until it is copied
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True)
class QueryTile:
    """Queries that one call of the kernel computes.

    Attributes:
        rows: rows of the batch; a single one if there are several blocks.
        start: the first query.
        size: queries of a block.
        blocks: blocks, one after another; the kernel takes them as its batch.
        back: keys before the first query of a block that the block gets too, a multiple of `size`
            if there are several blocks.
        window: how many keys a query sees, itself included; None where it sees all before it.
    """

    rows: slice
    start: int
    size: int
    blocks: int = 1
    back: int = 0
    window: int | None = None


def plan(documents: Documents, window: int | None) -> Iterator[QueryTile]:
    """Pieces that cover every query of every document once."""
    for span in documents.spans:
        length = span.stop - span.start
        if window is None or length <= window:
            yield QueryTile(span.rows, span.start, length)
            continue
        back = -(-window // BLOCK) * BLOCK
        narrow = None if back == window else window
        head = min(length, back)
        yield QueryTile(span.rows, span.start, head, window=narrow)
        rest = (length - head) % BLOCK
        if rest:
            yield QueryTile(span.rows, span.stop - rest, rest, 1, back, window)
        for row in range(span.rows.start, span.rows.stop):
            for start in range(span.start + head, span.stop - rest, BLOCK * BLOCKS_AT_ONCE):
                blocks = min(BLOCKS_AT_ONCE, (span.stop - rest - start) // BLOCK)
                yield QueryTile(slice(row, row + 1), start, BLOCK, blocks, back, window)


@dataclass(frozen=True)
class Crossing:
    """Queries of a document and those keys of its prompt that they see.

    Attributes:
        rows: rows of the batch.
        queries, keys: tokens within each row.
        window: as in `QueryTile`; None where every query sees every key.
    """

    rows: slice
    queries: slice
    keys: slice
    window: int | None = None


def crossings(documents: Documents, window: int | None) -> Iterator[Crossing]:
    """Yields what documents see of prompts elsewhere in their rows; at most one for each such
    document.
    """
    for span in documents.spans:
        if span.prompt is None:
            continue
        start, stop = span.prompt.start, span.prompt.stop
        if window is None:
            yield Crossing(span.rows, slice(span.start, span.stop), span.prompt)
            continue
        queries = slice(span.start, min(span.stop, span.start + window - 1))
        keys = slice(max(start, stop - window + 1), stop)
        if queries.start < queries.stop and keys.start < keys.stop:
            farthest = queries.stop - queries.start - 1 + keys.stop - keys.start
            yield Crossing(span.rows, queries, keys, window if farthest >= window else None)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes attention without sinks.

    Args:
        query: `[batch, heads, length, head_dim]`, float32 or float64.
        key, value: `[batch, kv_heads, length, head_dim]`; `kv_heads` divides `heads`.
        documents: what sees what; padding gets an output of zero.
        scaling: factor of the scores.
        window: keys that a query sees, itself included; None for all before it.

    Returns:
        output, like `query` with memory in the order batch, length, heads, and the log-sum-exp of
        the scores, `[batch, heads, length]`, infinite in padding.
    """
    output = _empty_like(query, documents)
    lse = torch.full_like(output[..., :1], torch.inf)
    for piece in plan(documents, window):
        out, logsumexp = _forward(
            _blocks(query, piece),
            _blocks(key, piece, piece.back),
            _blocks(value, piece, piece.back),
            0.0,
            piece.window is None,
            attn_mask=_mask(piece, query),
            scale=scaling,
        )
        _blocks(output, piece).copy_(out)
        _blocks(lse, piece).copy_(logsumexp[..., None])
    for crossing in crossings(documents, window):
        out, logsumexp = _forward(
            query[crossing.rows, :, crossing.queries],
            key[crossing.rows, :, crossing.keys],
            value[crossing.rows, :, crossing.keys],
            attn_mask=_crossing_mask(crossing, query),
            scale=scaling,
        )
        own = lse[crossing.rows, :, crossing.queries]
        other = logsumexp[..., None]
        output[crossing.rows, :, crossing.queries].lerp_(out, torch.sigmoid(other - own))
        own.copy_(torch.logaddexp(own, other))
    return output, lse[..., 0]


def attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    documents: Documents,
    scaling: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes the gradients of query, key and value from that of the output; arguments as in
    `attend`.

    Correct too where `output` and `lse` include further terms of the softmax's denominator: the
    kernel recomputes probabilities as `exp(score - lse)` and needs the output for `<grad, output>`
    only.
    """
    grad_query = _empty_like(query, documents)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    for piece in plan(documents, window):
        dq, dk, dv = _backward(
            _blocks(grad, piece),
            _blocks(query, piece),
            _blocks(key, piece, piece.back),
            _blocks(value, piece, piece.back),
            _blocks(output, piece),
            _blocks(lse[..., None], piece)[..., 0],
            0.0,
            piece.window is None,
            attn_mask=_mask(piece, query),
            scale=scaling,
        )
        _blocks(grad_query, piece).copy_(dq)
        _add_keys(grad_key, dk, piece)
        _add_keys(grad_value, dv, piece)
    for crossing in crossings(documents, window):
        rows, queries, keys = crossing.rows, crossing.queries, crossing.keys
        dq, dk, dv = _backward(
            grad[rows, :, queries],
            query[rows, :, queries],
            key[rows, :, keys],
            value[rows, :, keys],
            output[rows, :, queries],
            lse[rows, :, queries],
            0.0,
            False,
            attn_mask=_crossing_mask(crossing, query),
            scale=scaling,
        )
        grad_query[rows, :, queries] += dq
        grad_key[rows, :, keys] += dk
        grad_value[rows, :, keys] += dv
    return grad_query, grad_key, grad_value


def _empty_like(x: torch.Tensor, documents: Documents) -> torch.Tensor:
    """Allocates `[batch, heads, length, d]` in the memory order that linear layers want; zero in
    padding.
    """
    batch, heads, length, width = x.shape
    empty = x.new_empty(batch, length, heads, width)
    return (empty.zero_() if documents.has_padding else empty).transpose(1, 2)


def _blocks(x: torch.Tensor, piece: QueryTile, back: int = 0) -> torch.Tensor:
    """Views `[batch or blocks, heads, back + size, d]` of a tile of `[batch, heads, length, d]`."""
    stretch = x[piece.rows, :, piece.start - back : piece.start + piece.blocks * piece.size]
    if piece.blocks == 1:
        return stretch
    return stretch[0].unfold(1, back + piece.size, piece.size).permute(1, 0, 3, 2)


def _add_keys(total: torch.Tensor, grad: torch.Tensor, piece: QueryTile) -> None:
    """Adds gradients of the blocks' keys, which overlap: in parts that do not."""
    if piece.blocks == 1:
        total[piece.rows, :, piece.start - piece.back : piece.start + piece.size] += grad
        return
    for offset in range(0, piece.back + piece.size, piece.size):
        start = piece.start - piece.back + offset
        moved = QueryTile(piece.rows, start, piece.size, piece.blocks)
        _blocks(total, moved).add_(grad[:, :, offset : offset + piece.size])


def _mask(piece: QueryTile, like: torch.Tensor) -> torch.Tensor | None:
    """Builds the additive mask `[size, back + size]`, causal and within the window; None if only
    causal.
    """
    if piece.window is None:
        return None
    return _band(piece.size, piece.back + piece.size, piece.back, piece.window, like)


def _crossing_mask(crossing: Crossing, like: torch.Tensor) -> torch.Tensor | None:
    """Builds the additive mask `[queries, keys]`; None where every query sees every key."""
    if crossing.window is None:
        return None
    queries = crossing.queries.stop - crossing.queries.start
    keys = crossing.keys.stop - crossing.keys.start
    return _band(queries, keys, keys, crossing.window, like)


def _band(queries: int, keys: int, first: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """Builds the additive mask `[queries, keys]`, causal and within the window, the first query at
    `first`.
    """
    query = torch.arange(first, first + queries)[:, None]
    distance = query - torch.arange(keys)
    unseen = (distance < 0) | (distance >= window)
    zeros = torch.zeros(unseen.shape, dtype=like.dtype)
    return zeros.masked_fill_(unseen, -torch.inf)
