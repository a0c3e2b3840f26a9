"""How PEFT lays out the factors of all experts of a layer in one pair of matrices."""

from __future__ import annotations

import torch


def expert_A(weight: torch.Tensor, experts: int) -> torch.Tensor:
    """PEFT's `lora_A` `[E * r, in]`, experts major, as `[E, r, in]`."""
    return weight.reshape(experts, -1, weight.shape[-1])


def expert_B(weight: torch.Tensor, experts: int) -> torch.Tensor:
    """PEFT's `lora_B` `[out, r * E]`, experts fastest, as contiguous `[E, out, r]`."""
    return weight.reshape(weight.shape[0], -1, experts).permute(2, 0, 1).contiguous()
