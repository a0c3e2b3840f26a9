"""Random expert blocks, packed and as transformers' own dense module, and how to compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.backends.grouped import GroupedBackend, LoopedBackend
from gptoss_ft.model.experts.backends.tiled import TiledBackend
from gptoss_ft.model.experts.low_rank import LowRankUpdate, low_rank_update
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.mxfp4.codec import floor_scales, pack

BACKENDS: list[Callable[[], ExpertBackend]] = [TiledBackend, GroupedBackend, LoopedBackend]
NAMES = ("gate_up_proj", "down_proj")
GRADIENT_ERROR = 1e-4
OUTPUT_ERROR = 1e-5
CLAMP_DISTANCE = 3e-5


class Bias(nn.Module):
    """A bias held by an adapter, as `trained_biases` wants it."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, base: torch.Tensor) -> torch.Tensor:
        return self.value


@dataclass
class Case:
    """The same random block, packed and dense, its inputs, and everything that has a gradient.

    Attributes:
        packed, dense: ours, and transformers' with the same values.
        indices: `[tokens, k]`.
        leaves: `x`, `weights`, and per projection its bias and `{name}.A0`, `{name}.B0`, ….
        ranks: of the updates of either projection.
    """

    packed: PackedExperts
    dense: GptOssExperts
    indices: torch.Tensor
    leaves: dict[str, torch.Tensor]
    ranks: tuple[int, ...]

    def pairs(self, name: str) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Returns A, B and scaling of each low-rank pair."""
        return [
            (self.leaves[f"{name}.A{i}"], self.leaves[f"{name}.B{i}"], 0.5 + i)
            for i in range(len(self.ranks))
        ]

    def updates(self, name: str) -> tuple[LowRankUpdate, ...]:
        """Returns all pairs as one update; none without pairs."""
        return (low_rank_update(*self.pairs(name)),) if self.ranks else ()

    def ours(self, *leaves: torch.Tensor) -> torch.Tensor:
        """Our output; `leaves` stand in for `x` and `weights`."""
        x, weights = leaves or (self.leaves["x"], self.leaves["weights"])
        return self.packed(x, self.indices, weights, *map(self.updates, NAMES))

    def weight(self, name: str) -> torch.Tensor:
        """The dense weight `[E, in, out]` with the updates added."""
        weight = getattr(self.dense, name).data
        for A, B, scaling in self.pairs(name):
            weight = weight + scaling * (B @ A).transpose(1, 2)
        return weight

    def theirs(self) -> torch.Tensor:
        """transformers' output with the updates added to its weights."""
        parameters = {name: self.weight(name) for name in NAMES}
        parameters |= {f"{name}_bias": self.leaves[f"{name}_bias"] for name in NAMES}
        arguments = (self.leaves["x"], self.indices, self.leaves["weights"])
        return torch.func.functional_call(self.dense, parameters, arguments)

    def at_the_clamp(self) -> bool:
        """Whether rounding may decide on which side of the clamp a pre-activation lies.

        The gradient jumps there, and no two ways of adding agree on it.
        """
        with torch.no_grad():
            z = self.leaves["x"] @ self.weight(NAMES[0]) + self.leaves[f"{NAMES[0]}_bias"][:, None]
        return bool((z.abs() - self.dense.limit).abs().min() < CLAMP_DISTANCE)


def make_case(seed: int = 0, **sizes: Any) -> Case:
    """The first of the seeds from `seed` on whose `random_case` is nowhere at the clamp."""
    cases = (random_case(seed=found, **sizes) for found in count(seed))
    return next(case for case in cases if not case.at_the_clamp())


def random_case(
    tokens: int = 24,
    experts: int = 5,
    hidden: int = 64,
    intermediate: int = 96,
    ranks: tuple[int, ...] = (3,),
    k: int = 2,
    spread: str = "random",
    biases: bool = True,
    seed: int = 0,
) -> Case:
    """A random case; `spread` is `random`, `one` (all tokens to the same experts)."""
    torch.manual_seed(seed)
    k = min(k, experts)
    config = GptOssConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_local_experts=experts,
        num_experts_per_tok=k,
    )
    packed, dense = PackedExperts(config), GptOssExperts(config).requires_grad_(False)
    leaves = {"x": torch.randn(tokens, hidden), "weights": torch.rand(tokens, k)}
    for name in NAMES:
        out, width = getattr(packed, name).shape[1], getattr(packed, name).shape[2] * 32
        # Wide enough that the clamps of the gate act on some values.
        values = 4 * torch.randn(experts, out, width) / width**0.5
        scales = floor_scales(values)
        blocks, bias = pack(values, scales), torch.randn(experts, out)
        getattr(packed, name).data, getattr(packed, f"{name}_scales").data = blocks, scales
        getattr(packed, f"{name}_bias").data = bias
        getattr(dense, name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        leaves[f"{name}_bias"] = bias.clone()
        for i, rank in enumerate(ranks):
            leaves[f"{name}.A{i}"] = torch.randn(experts, rank, width) / width**0.5
            leaves[f"{name}.B{i}"] = torch.randn(experts, out, rank) / rank**0.5
    for leaf in leaves.values():
        leaf.requires_grad_()
    if biases:
        for name in NAMES:
            packed.trained_biases[name] = Bias(leaves[f"{name}_bias"])
            leaves[f"{name}_bias"] = packed.trained_biases[name].value
    choices = [torch.randperm(experts)[:k] for _ in range(1 if spread == "one" else tokens)]
    indices = torch.stack(choices).expand(tokens, k).contiguous()
    return Case(packed, dense, indices, leaves, ranks)


def gradients(
    output: torch.Tensor, leaves: dict[str, torch.Tensor], seed: int = 7
) -> dict[str, torch.Tensor]:
    """Gradients along a fixed direction."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=generator)
    found = torch.autograd.grad(output, list(leaves.values()), direction, retain_graph=True)
    return dict(zip(leaves, found, strict=True))


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, bound: float, what: str) -> None:
    error = float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-6))
    assert error <= bound, f"{what}: {error:.1e}"


def assert_equal_to_dense(case: Case) -> None:
    """Output and every gradient equal those of dense autograd.

    With one token, the gradient of its routing weight is a single scalar product, which may cancel
    along one direction; rounding is measured against the largest gradient of several directions.
    """
    ours, theirs = case.ours(), case.theirs()
    assert_near(ours, theirs, OUTPUT_ERROR, "output")
    found = gradients(ours, case.leaves)
    expected = [gradients(theirs, case.leaves, seed) for seed in (7, 8, 9)]
    for name in case.leaves:
        assert found[name].shape == case.leaves[name].shape
        size = max(float(gradient[name].norm()) for gradient in expected)
        error = float((found[name] - expected[0][name]).norm()) / max(size, 1e-6)
        assert error <= GRADIENT_ERROR, f"{name}: {error:.1e}"
