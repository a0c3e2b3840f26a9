"""PEFT's layout of the factors of all experts of a layer in one pair of matrices."""

from __future__ import annotations

import torch

# Declaration order in transformers' GptOssExperts: PEFT wraps the targeted ones in this order, the
# last one outermost, and the keys name only the wrapping.
EXPERT_PARAMETERS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


def expert_A(weight: torch.Tensor, experts: int) -> torch.Tensor:
    """Views PEFT's `lora_A` `[E * r, in]`, experts major, as `[E, r, in]`."""
    return weight.reshape(experts, -1, weight.shape[-1])


def expert_B(weight: torch.Tensor, experts: int) -> torch.Tensor:
    """Transposes PEFT's `lora_B` `[out, r * E]`, experts fastest, to contiguous `[E, out, r]`.

    As a matrix `[out * r, E]` it is only turned over, which torch copies three times faster than
    any other order of dimensions.
    """
    out = weight.shape[0]
    return weight.reshape(-1, experts).T.contiguous().view(experts, out, -1)


def view_B(weight: torch.Tensor, experts: int) -> torch.Tensor:
    """Views PEFT's `lora_B` `[out, r * E]` as `[E, out, r]`, in which experts lie innermost."""
    return weight.unflatten(1, (-1, experts)).permute(2, 0, 1)


def joined_A(experts: torch.Tensor) -> torch.Tensor:
    """Flattens `[E, r, in]` to PEFT's `lora_A`, the reverse of `expert_A`."""
    return experts.reshape(-1, experts.shape[-1])


def joined_B(experts: torch.Tensor) -> torch.Tensor:
    """Flattens `[E, out, r]` to PEFT's `lora_B`, the reverse of `expert_B`."""
    return experts.flatten(1).T.reshape(experts.shape[1], -1)
