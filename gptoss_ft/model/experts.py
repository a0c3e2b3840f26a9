"""Mixture-of-experts block on packed MXFP4 weights.

The two matrices of an expert stay packed; each use unpacks one matrix of one expert, multiplies,
and drops the result. The backward pass unpacks again, so nothing dense outlives a single
multiplication and no gradient of a packed weight is ever formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GptOssConfig

from gptoss_ft.mxfp4.codec import BLOCK_SIZE, unpack


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one projection of all experts, `W + scaling * B @ A`.

    Attributes:
        A: `[E, r, in]`.
        B: `[E, out, r]`, contiguous.
        scaling: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float


class _PackedMatmul(torch.autograd.Function):
    """`x @ unpack(blocks, scales).T` with the weight unpacked again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(blocks, scales)
        return x @ unpack(blocks, scales, x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        blocks, scales = ctx.saved_tensors
        return grad @ unpack(blocks, scales, grad.dtype), None, None


class PackedExperts(nn.Module):
    """Takes the place of transformers' `GptOssExperts`; same call, packed weights.

    The block parameters carry the names `gate_up_proj` and `down_proj` of the dense ones, declared
    in that order, because PEFT's `target_parameters` matches on names and nests its wrappers in
    declaration order.

    Attributes:
        gate_up_proj: uint8 `[E, 2 * intermediate, hidden / 32, 16]`; gate rows even, up rows odd.
        down_proj: uint8 `[E, hidden, intermediate / 32, 16]`.
        trained_biases: replacements of the two biases held by an adapter, keyed by the bias's name.
    """

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.num_experts = config.num_local_experts
        self.alpha = config.swiglu_alpha
        self.limit = config.swiglu_limit
        self._declare_packed("gate_up_proj", 2 * intermediate, hidden)
        self._declare_packed("down_proj", hidden, intermediate)
        for name, out in (("gate_up_proj", 2 * intermediate), ("down_proj", hidden)):
            bias = nn.Parameter(torch.empty(self.num_experts, out), requires_grad=False)
            self.register_parameter(f"{name}_bias", bias)
        self.trained_biases = nn.ModuleDict()

    def _declare_packed(self, name: str, out: int, width: int) -> None:
        groups = width // BLOCK_SIZE
        blocks = torch.empty(self.num_experts, out, groups, 16, dtype=torch.uint8)
        scales = torch.empty(self.num_experts, out, groups, dtype=torch.uint8)
        self.register_parameter(name, nn.Parameter(blocks, requires_grad=False))
        self.register_parameter(f"{name}_scales", nn.Parameter(scales, requires_grad=False))

    def bias(self, name: str) -> torch.Tensor:
        """The bias in force: the adapter's where one is active, else the base's; `[E, out]`."""
        base = getattr(self, f"{name}_bias")
        if name in self.trained_biases:
            return self.trained_biases[name](base)
        return base

    def forward(
        self,
        hidden_states: torch.Tensor,
        router_indices: torch.Tensor,
        routing_weights: torch.Tensor,
        gate_up_updates: tuple[LowRank, ...] = (),
        down_updates: tuple[LowRank, ...] = (),
    ) -> torch.Tensor:
        """Weighted sum of the outputs of the experts that each token is routed to.

        Args:
            hidden_states: `[tokens, hidden]`; its dtype is the compute dtype.
            router_indices: int64 `[tokens, k]`.
            routing_weights: `[tokens, k]`.
            gate_up_updates, down_updates: low-rank updates to add, one per active adapter.

        Returns:
            `[tokens, hidden]`, dtype of `hidden_states`. Only weights of experts that are hit are
            read.
        """
        output = torch.zeros_like(hidden_states)
        gate_up_bias, down_bias = self.bias("gate_up_proj"), self.bias("down_proj")
        for expert in router_indices.unique().tolist():
            token, slot = torch.where(router_indices == expert)
            gate_up = self._project(hidden_states[token], expert, "gate_up_proj", gate_up_updates)
            gated = self._swiglu(gate_up + gate_up_bias[expert].to(gate_up.dtype))
            down = self._project(gated, expert, "down_proj", down_updates)
            down = down + down_bias[expert].to(down.dtype)
            output.index_add_(
                0, token, (down * routing_weights[token, slot, None]).to(output.dtype)
            )
        return output

    def _project(
        self, x: torch.Tensor, expert: int, name: str, updates: tuple[LowRank, ...]
    ) -> torch.Tensor:
        blocks, scales = getattr(self, name)[expert], getattr(self, f"{name}_scales")[expert]
        y = _PackedMatmul.apply(x, blocks, scales)
        for update in updates:
            A, B = update.A[expert].to(x.dtype), update.B[expert].to(x.dtype)
            y = y + (x @ A.T) @ B.T * update.scaling
        return y

    def _swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Clamped SwiGLU of gpt-oss on interleaved gate and up, `[n, 2 * I] -> [n, I]`."""
        gate = gate_up[..., ::2].clamp(max=self.limit)
        up = gate_up[..., 1::2].clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(gate * self.alpha)
