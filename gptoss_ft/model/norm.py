"""RMS normalisation of gpt-oss by hand, for a weight that is not trained.

What autograd does with its five operators writes eleven tensors of the size of the hidden states to
memory, forward and backward; this writes five. The values are bit for bit transformers'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm


class _FrozenNormFunction(torch.autograd.Function):
    """`weight * x / sqrt(mean(x ** 2) + eps)`, `[..., hidden]`, the weight `[hidden]`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        # With n = x * scale and g the gradient of n: scale * (g - n * mean(g * n)).
        wide, normed_grad = x.float(), grad.float() * weight
        mean = (normed_grad * wide).mean(-1, keepdim=True)
        normed_grad.mul_(scale).addcmul_(wide, mean.mul_(scale**3), value=-1)
        return normed_grad.to(x.dtype), None, None


class FrozenNorm(GptOssRMSNorm):
    """Takes the place of transformers' norm; as that one where the weight is trained after all."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalises `[..., hidden]` in any floating dtype, which the result has too; float32 in
        between.
        """
        if self.weight.requires_grad:
            return super().forward(hidden_states)
        return _FrozenNormFunction.apply(hidden_states, self.weight, self.variance_epsilon)
