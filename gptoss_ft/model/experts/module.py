"""Mixture-of-experts block on packed MXFP4 weights.

The two matrices of an expert stay packed; each use unpacks them, a little at a time, multiplies,
and drops the result. The backward pass unpacks again, so nothing dense outlives a single
multiplication and no gradient of a packed weight is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import GptOssConfig

from gptoss_ft.model.experts.backends import backend_for
from gptoss_ft.model.experts.backends.base import ExpertBackend, PackedWeight, split_halves
from gptoss_ft.model.experts.function import ExpertCall, run_experts
from gptoss_ft.model.experts.gate import Gate
from gptoss_ft.model.experts.projection import ExpertProjection
from gptoss_ft.model.experts.routing import count_pairs, sort_pairs
from gptoss_ft.model.experts.update import ExpertUpdate
from gptoss_ft.mxfp4.codec import BLOCK_SIZE

# Gate and up rows are interleaved in gate_up.
HALVES = {"gate_up_proj": 2, "down_proj": 1}


class PackedExperts(nn.Module):
    """Takes the place of transformers' `GptOssExperts`; same call, packed weights.

    The block parameters carry the names `gate_up_proj` and `down_proj` of the dense ones, declared
    in that order, because PEFT's `target_parameters` matches on names and nests its wrappers in
    declaration order.

    Attributes:
        gate_up_proj: uint8 `[E, 2 * intermediate, hidden / 32, 16]`; gate rows even, up rows odd.
        down_proj: uint8 `[E, hidden, intermediate / 32, 16]`.
        trained_biases: replacements of the two biases held by an adapter, keyed by the bias's name.
        save_pre_activation: keep `[pairs, 2 * intermediate]` in the compute dtype for the backward
            pass; without it the gate_up product is formed a second time, a third more work. Under
            gradient checkpointing keep it on: checkpointing forms it again already.
        backend: makes an expert GEMM backend for a device, a new one for each pass.
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
        self.save_pre_activation = True
        self.backend: Callable[[torch.device], ExpertBackend] = backend_for

    def _declare_packed(self, name: str, out: int, width: int) -> None:
        groups = width // BLOCK_SIZE
        blocks = torch.empty(self.num_experts, out, groups, 16, dtype=torch.uint8)
        scales = torch.empty(self.num_experts, out, groups, dtype=torch.uint8)
        self.register_parameter(name, nn.Parameter(blocks, requires_grad=False))
        self.register_parameter(f"{name}_scales", nn.Parameter(scales, requires_grad=False))

    def bias(self, name: str) -> torch.Tensor:
        """Returns the bias in force, the active adapter's or the base's, `[E, out]`."""
        base = getattr(self, f"{name}_bias")
        if name in self.trained_biases:
            return self.trained_biases[name](base)
        return base

    def forward(
        self,
        hidden_states: torch.Tensor,
        router_indices: torch.Tensor,
        routing_weights: torch.Tensor,
        gate_up_updates: tuple[ExpertUpdate, ...] = (),
        down_updates: tuple[ExpertUpdate, ...] = (),
    ) -> torch.Tensor:
        """Returns the weighted sum of the outputs of the experts that each token is routed to.

        Args:
            hidden_states: `[tokens, hidden]`; its dtype is the compute dtype.
            router_indices: int64 `[tokens, k]`.
            routing_weights: `[tokens, k]`.
            gate_up_updates, down_updates: what is added to each projection, output rows in the
                order of the packed weights.

        Returns:
            `[tokens, hidden]`, dtype of `hidden_states`. Only weights of experts that are hit are
            read.
        """
        gate_up = self._projection("gate_up_proj", gate_up_updates)
        down = self._projection("down_proj", down_updates)
        routing = sort_pairs(router_indices, count_pairs(router_indices, self.num_experts))
        differentiated = (hidden_states, routing_weights, *gate_up.tensors(), *down.tensors())
        has_backward = any(tensor.requires_grad for tensor in differentiated)
        call = ExpertCall(
            routing,
            partial(self.backend, hidden_states.device),
            Gate(self.limit, self.alpha),
            gate_up,
            down,
            keep=self.save_pre_activation and torch.is_grad_enabled() and has_backward,
        )
        return run_experts(call, hidden_states, routing_weights)

    def _projection(self, name: str, updates: tuple[ExpertUpdate, ...]) -> ExpertProjection:
        blocks, scales = getattr(self, name), getattr(self, f"{name}_scales")
        halves = HALVES[name]
        # The weights are constants of the function; detached, they cost autograd nothing.
        weight = PackedWeight(
            split_halves(blocks.detach(), halves), split_halves(scales.detach(), halves)
        )
        bias = split_halves(self.bias(name), halves).flatten(1)
        return ExpertProjection(
            weight, bias, tuple(update.split_halves(halves) for update in updates)
        )
