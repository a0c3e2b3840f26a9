"""Attention of documents on CUDA, by torch's flash kernel for sequences of different lengths.

The kernel takes all documents of the batch end to end, with their offsets, and knows causality,
windows and grouped-query heads. The operators are those under `torch.nn.attention.varlen`, whose
public function does not let the backward pass see another log-sum-exp than its own.

This module has not run on a GPU yet; the command `gpu-check` tries it on one. Its tests check
shapes and dtypes on meta tensors, and values on the CPU with the two operators replaced by plain
arithmetic.
"""

from __future__ import annotations

import torch

from gptoss_ft.model.attention_documents import Documents

_forward = torch.ops.aten._flash_attention_forward.default
_backward = torch.ops.aten._flash_attention_backward.default


def is_supported(query: torch.Tensor) -> bool:
    """Whether torch's flash kernel is built for this device and takes this dtype and width."""
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
    """As `attention_cpu.attend`, for bfloat16 or float16; the log-sum-exp is float32."""
    index, offsets, longest = _layout(documents, query.device)
    out, lse, *_ = _forward(
        _pack(query, index),
        _pack(key, index),
        _pack(value, index),
        offsets,
        offsets,
        longest,
        longest,
        0.0,
        window is None,
        False,
        scale=scaling,
        **_window(window),
    )
    batch, _, length, _ = query.shape
    whole = _unpack(lse.T[..., None], index, batch, length, torch.inf)
    return _unpack(out, index, batch, length), whole[..., 0]


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
    """As `attention_cpu.attend_backward`."""
    index, offsets, longest = _layout(documents, query.device)
    gradients = _backward(
        _pack(grad, index),
        _pack(query, index),
        _pack(key, index),
        _pack(value, index),
        _pack(output, index),
        _pack(lse[..., None], index)[..., 0].T.contiguous(),
        offsets,
        offsets,
        longest,
        longest,
        0.0,
        window is None,
        torch.zeros(2, dtype=torch.uint64, device=query.device),  # state of the unused dropout
        torch.empty(0, dtype=torch.uint64, device=query.device),
        scale=scaling,
        **_window(window),
    )
    batch, _, length, _ = query.shape
    dq, dk, dv = (_unpack(gradient, index, batch, length) for gradient in gradients)
    return dq, dk, dv


def _window(window: int | None) -> dict[str, int | None]:
    """The kernel counts the keys before the query; -1 is no limit."""
    return {
        "window_size_left": -1 if window is None else window - 1,
        "window_size_right": 0,
    }


def _layout(
    documents: Documents, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor, int]:
    """How documents lie end to end.

    Returns:
        indices of their tokens in `[batch * length]`, None when that is all of them in order; the
        documents' offsets, int32 `[documents + 1]`; and the longest one's length.
    """
    starts = sorted(
        (row * documents.length + span.start, span.stop - span.start)
        for span in documents.spans
        for row in range(span.rows.start, span.rows.stop)
    )
    lengths = torch.tensor([length for _, length in starts], dtype=torch.int64)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = max((length for _, length in starts), default=0)
    offsets = offsets.to(device, non_blocking=True)  # else it waits for the device's earlier work
    if not documents.has_padding:
        return None, offsets, longest
    index = torch.cat([torch.arange(start, start + length) for start, length in starts])
    return index.to(device, non_blocking=True), offsets, longest


def _pack(x: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """`[batch, heads, length, d]` to `[tokens, heads, d]`, contiguous."""
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat.contiguous() if index is None else flat.index_select(0, index)


def _unpack(
    x: torch.Tensor, index: torch.Tensor | None, batch: int, length: int, fill: float = 0.0
) -> torch.Tensor:
    """The inverse of `_pack`; padding becomes `fill`."""
    if index is not None:
        whole = x.new_full((batch * length, *x.shape[1:]), fill)
        x = whole.index_copy_(0, index, x.contiguous())
    return x.unflatten(0, (batch, length)).transpose(1, 2)
