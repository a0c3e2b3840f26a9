"""The activation between the two projections of an expert, and its gradient by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Gate:
    """gpt-oss's clamped SwiGLU, `(up + 1) * gate * sigmoid(alpha * gate)`.

    Attributes:
        limit: gate is clamped above at it, up to plus and minus it.
        alpha: steepness of the sigmoid.
    """

    limit: float
    alpha: float

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Returns the activation, `[n, 2 * I] -> [n, I]`; `z` has gate before up."""
        swish, lifted, _ = self._terms(z)
        return lifted.mul_(swish)

    def _terms(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns `gate * sigmoid(alpha * gate)`, `up + 1` and `alpha * gate`, after clamping."""
        gate, up = z.chunk(2, dim=-1)
        steep = gate.clamp(max=self.limit).mul_(self.alpha)
        return (
            F.silu(steep).mul_(1 / self.alpha),
            up.clamp(-self.limit, self.limit).add_(1),
            steep,
        )

    def backward(
        self, g: torch.Tensor, weight: torch.Tensor, z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the activation and the gradient of `z`.

        Args:
            g: `[n, I]`, gradient of the activation over `weight`.
            weight: `[n, 1]`.
            z: `[n, 2 * I]`, gate before up.
        """
        swish, lifted, steep = self._terms(z)
        activation = lifted * swish
        grad = torch.empty_like(z)
        (gate, up), (grad_gate, grad_up) = z.chunk(2, dim=-1), grad.chunk(2, dim=-1)
        weighted = g * weight
        torch.mul(weighted, swish, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(lifted.mul_(weighted), steep, grad_input=grad_gate)
        # A comparison written as numbers: where() and masked_fill_() are ten times slower on CPUs.
        inside = swish
        grad_gate.mul_(torch.le(gate, self.limit, out=inside))
        grad_up.mul_(torch.le(torch.abs(up, out=lifted), self.limit, out=inside))
        return activation, grad
