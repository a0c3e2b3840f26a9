"""Attention of documents on CUDA, by torch's flash kernel for sequences of different lengths.

The kernel takes all documents of the batch end to end, with their offsets, and knows causality,
windows and grouped-query heads. The operators are those under `torch.nn.attention.varlen`, whose
public function does not let the backward pass see another log-sum-exp than its own.

Where a document goes on from a prompt elsewhere in its row, its keys are the prompt's and then its
own: more keys than queries, whose last ones the kernel aligns (flash-attention since 2.1). In
sliding layers only those keys of the prompt are copied that a window reaches.

This module has not run on a GPU yet; the command `gpu-check` tries it on one. Its tests check
shapes and dtypes on meta tensors, and values on the CPU with the two operators replaced by plain
arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptoss_ft.documents import Documents, DocumentSpan

_forward = torch.ops.aten._flash_attention_forward.default
_backward = torch.ops.aten._flash_attention_backward.default


def is_supported(query: torch.Tensor) -> bool:
    """Checks whether torch's flash kernel is built for this device and takes this dtype and
    width.
    """
    return (
        query.device.type == "cuda"
        and torch.version.hip is None  # other kernels, not all of which know windows
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what `cpu.attend` does, for bfloat16 or float16; the log-sum-exp is float32."""
    lay = _layout(documents, window, query.device)
    out, lse, *_ = _forward(
        _pack(query, lay.queries),
        _pack(key, lay.keys),
        _pack(value, lay.keys),
        lay.query_offsets,
        lay.key_offsets,
        lay.most_queries,
        lay.most_keys,
        0.0,
        window is None,
        False,
        scale=scaling,
        **_window(window),
    )
    batch, _, length, _ = query.shape
    whole = _unpack(lse.T[..., None], lay.queries, batch, length, torch.inf)
    return _unpack(out, lay.queries, batch, length), whole[..., 0]


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
    """Computes what `cpu.attend_backward` does."""
    lay = _layout(documents, window, query.device)
    dq, dk, dv = _backward(
        _pack(grad, lay.queries),
        _pack(query, lay.queries),
        _pack(key, lay.keys),
        _pack(value, lay.keys),
        _pack(output, lay.queries),
        _pack(lse[..., None], lay.queries)[..., 0].T.contiguous(),
        lay.query_offsets,
        lay.key_offsets,
        lay.most_queries,
        lay.most_keys,
        0.0,
        window is None,
        torch.zeros(2, dtype=torch.uint64, device=query.device),  # state of the unused dropout
        torch.empty(0, dtype=torch.uint64, device=query.device),
        scale=scaling,
        **_window(window),
    )
    batch, _, length, _ = query.shape
    grad_query = _unpack(dq, lay.queries, batch, length)
    if lay.keys is None or lay.keys is lay.queries:
        grad_key, grad_value = (_unpack(x, lay.keys, batch, length) for x in (dk, dv))
    else:
        grad_key, grad_value = (_sum(x, lay.keys, batch, length) for x in (dk, dv))
    return grad_query, grad_key, grad_value


def _window(window: int | None) -> dict[str, int | None]:
    """Converts the window to the kernel's count of keys before the query; -1 is no limit."""
    return {
        "window_size_left": -1 if window is None else window - 1,
        "window_size_right": 0,
    }


@dataclass(frozen=True)
class _Layout:
    """Queries and keys laid end to end, document after document.

    Attributes:
        queries, keys: indices of their tokens in `[batch * length]`, None when that is all of them
            in order. The same object where no document has a prompt elsewhere.
        query_offsets, key_offsets: where documents begin, int32 `[documents + 1]`.
        most_queries, most_keys: of a document.
    """

    queries: torch.Tensor | None
    keys: torch.Tensor | None
    query_offsets: torch.Tensor
    key_offsets: torch.Tensor
    most_queries: int
    most_keys: int


def _layout(documents: Documents, window: int | None, device: torch.device) -> _Layout:
    places = sorted(
        (row * documents.length, span.start, span)
        for span in documents.spans
        for row in range(span.rows.start, span.rows.stop)
    )
    own = [range(row + span.start, row + span.stop) for row, _, span in places]
    seen = [_reached(row, span, window) for row, _, span in places]
    lengths = [len(tokens) for tokens in own]
    query_offsets, most_queries = _offsets(lengths, device)
    queries = _index(own, device) if documents.has_padding or any(seen) else None
    if not any(seen):
        return _Layout(queries, queries, query_offsets, query_offsets, most_queries, most_queries)
    key_offsets, most_keys = _offsets(
        [len(prompt) + length for prompt, length in zip(seen, lengths, strict=True)], device
    )
    pairs = [tokens for pair in zip(seen, own, strict=True) for tokens in pair]
    keys = _index(pairs, device)
    return _Layout(queries, keys, query_offsets, key_offsets, most_queries, most_keys)


def _reached(row: int, span: DocumentSpan, window: int | None) -> range:
    """Returns the tokens of a document's prompt that it sees, in a row that begins at `row`."""
    if span.prompt is None:
        return range(0)
    start, stop = span.prompt.start, span.prompt.stop
    if window is not None:
        start = max(start, stop - window + 1)
    return range(row + start, row + stop)


def _offsets(lengths: list[int], device: torch.device) -> tuple[torch.Tensor, int]:
    """Returns the offsets of documents of these lengths, int32, and the longest one's length."""
    offsets = torch.nn.functional.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))
    # Without blocking, else it would wait for the device's earlier work.
    return offsets.to(torch.int32).to(device, non_blocking=True), max(lengths, default=0)


def _index(stretches: list[range], device: torch.device) -> torch.Tensor:
    parts = [torch.arange(stretch.start, stretch.stop) for stretch in stretches]
    return torch.cat(parts).to(device, non_blocking=True)


def _pack(x: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """Packs `[batch, heads, length, d]` to `[tokens, heads, d]`, contiguous."""
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat.contiguous() if index is None else flat.index_select(0, index)


def _unpack(
    x: torch.Tensor, index: torch.Tensor | None, batch: int, length: int, fill: float = 0.0
) -> torch.Tensor:
    """Inverts `_pack`; padding becomes `fill`."""
    if index is not None:
        whole = x.new_full((batch * length, *x.shape[1:]), fill)
        x = whole.index_copy_(0, index, x.contiguous())
    return x.unflatten(0, (batch, length)).transpose(1, 2)


def _sum(x: torch.Tensor, index: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Inverts `_pack` for gradients: tokens that were packed more than once get the sum."""
    whole = x.new_zeros(batch * length, *x.shape[1:]).index_add_(0, index, x)
    return whole.unflatten(0, (batch, length)).transpose(1, 2)
