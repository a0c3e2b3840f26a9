"""Layers that store bfloat16 and compute in the dtype of their input.

A CPU without bfloat16 units multiplies bfloat16 some twenty times slower than float32, and
converting a whole checkpoint at load would double its memory and copy it out of the memory map.
These layers convert one weight for one multiplication and do so again in the backward pass;
autograd never keeps the float32 copy. On a GPU the input is bfloat16 already and nothing is
converted.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from gptoss_ft.model.cpu.matmul import put_product

TILE_VALUES = 1 << 19  # converted at once: 2 MB of float32, which stay in the cache


class _FrozenLinear(torch.autograd.Function):
    """`x @ weight.T + bias` for a weight that is never trained itself; it gets no gradient.

    x is `[..., in]`, the weight `[out, in]`, the bias `[out]` or None; computed in the dtype of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = _times(x, weight.T)
        return y if bias is None else y.add_(bias.to(x.dtype))

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, torch.Tensor | None]:
        (weight,) = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad
        grad_bias = (
            grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype) if needs_bias else None
        )
        return _times(grad, weight) if needs_x else None, None, grad_bias


def _times(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiplies `[..., k] x [k, m] -> [..., m]` in the dtype of `x`.

    On a CPU the matrix is converted some columns at a time into one buffer: a copy of all of it
    would have its pages faulted in anew on every call.
    """
    if x.device.type != "cpu":
        return x @ matrix.to(x.dtype)
    inner, columns = matrix.shape
    rows = x.reshape(-1, inner)
    y = rows.new_empty(len(rows), columns)
    if matrix.dtype == x.dtype:
        put_product(y, rows, matrix)
    else:
        step = max(1, TILE_VALUES * torch.get_num_threads() // inner)
        buffer = x.new_empty(inner * min(step, columns))
        for tile, place in zip(matrix.split(step, dim=1), y.split(step, dim=1), strict=True):
            put_product(place, rows, _converted(tile, buffer))
    return y.view(*x.shape[:-1], columns)


def _converted(tile: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Copies a tile into `buffer`, in its dtype, valid until the next call; rows stay rows."""
    room = buffer[: tile.numel()]
    if tile.stride(0) == 1:
        return room.view(tile.shape[::-1]).copy_(tile.T).T
    return room.view(tile.shape).copy_(tile)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Applies `F.linear` in the dtype of `x`, `[..., in] -> [..., out]`; gradients as usual."""
    if not weight.requires_grad:
        return _FrozenLinear.apply(x, weight, bias)
    y = F.linear(x, weight.to(x.dtype))
    return y if bias is None else y + bias.to(x.dtype)


class StoredLinear(nn.Linear):
    """`nn.Linear` that computes in the dtype of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class StoredEmbedding(nn.Embedding):
    """`nn.Embedding` that returns `compute_dtype`; only the rows looked up are converted."""

    compute_dtype: torch.dtype = torch.float32

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).to(self.compute_dtype)


class StoredRouter(GptOssTopKRouter):
    """The router of gpt-oss in the dtype of its input."""

    def forward(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Routes `[tokens, hidden]`: logits `[tokens, E]`, weights and indices `[tokens, k]`."""
        logits = linear(hidden_states, self.weight, self.bias)
        top, indices = torch.topk(logits, self.top_k, dim=-1)
        return logits, torch.softmax(top, dim=-1), indices
