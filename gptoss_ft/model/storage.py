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

ROWS_AT_ONCE = 16_384


class _FrozenLinear(torch.autograd.Function):
    """`x @ weight.T` for a weight that is never trained itself; its gradient is not formed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        if weight.dtype == x.dtype:
            return x @ weight.T
        # The head in slices: a converted copy of all of it would be paged in anew on every call.
        return torch.cat([x @ rows.to(x.dtype).T for rows in weight.split(ROWS_AT_ONCE)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad @ weight.to(grad.dtype), None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` in the dtype of `x`, `[..., in] -> [..., out]`; gradients as usual."""
    y = F.linear(x, weight.to(x.dtype)) if weight.requires_grad else _FrozenLinear.apply(x, weight)
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
        """`[tokens, hidden]` to logits `[tokens, E]`, weights and indices `[tokens, k]`."""
        logits = linear(hidden_states, self.weight, self.bias)
        top, indices = torch.topk(logits, self.top_k, dim=-1)
        return logits, torch.softmax(top, dim=-1), indices
