"""One of an expert block's two projections: packed weights, bias, low-rank updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gptoss_ft.model.expert_products import Packed, Products, deal
from gptoss_ft.model.expert_routing import Chunk


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

    def dealt(self, parts: int) -> LowRank:
        """With the rows of B in the order of the parts, contiguous; differentiable."""
        return LowRank(self.A, deal(self.B, parts).flatten(1, 2), self.scaling)


@dataclass(frozen=True)
class Projection:
    """One of the two projections: its packed weights, bias and low-rank updates.

    Attributes:
        packed: the weights of all experts.
        bias: `[E, out]`, in the order of the parts.
        updates: any number of them, the rows of B in the order of the parts. All experts at once
            are dealt faster than one after the other, and their gradients come as they lie.
    """

    packed: Packed
    bias: torch.Tensor
    updates: tuple[LowRank, ...] = ()

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What may have a gradient: the bias, then A and B of each update."""
        return (self.bias, *(factor for update in self.updates for factor in (update.A, update.B)))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Projection:
        """The same projection on other tensors, in the order of `tensors()`."""
        updates = tuple(
            LowRank(A, B, update.scaling)
            for A, B, update in zip(tensors[1::2], tensors[2::2], self.updates, strict=True)
        )
        return Projection(self.packed, tensors[0], updates)


@dataclass(frozen=True)
class Factors:
    """The updates of a chunk side by side.

    Attributes:
        A: `[c, r, in]`, r being the sum of the ranks, perhaps filled up with zeros.
        B: `[c, out, r]`.
        scaling: of one update, or `[r]` of several. It is applied to the rows between A and B,
            which are the smallest thing there is.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float | torch.Tensor


def factors_of(
    projection: Projection, chunk: Chunk, products: Products, like: torch.Tensor
) -> Factors | None:
    """`Factors` in the dtype of `like`, or None without updates."""
    if not projection.updates:
        return None
    all_A, all_B = [], []
    for update in projection.updates:
        all_A.append(chunk.pick(update.A).to(like.dtype))
        all_B.append(chunk.pick(update.B).to(like.dtype))
    A = all_A[0] if len(all_A) == 1 else torch.cat(all_A, dim=1)
    B = all_B[0] if len(all_B) == 1 else torch.cat(all_B, dim=2)
    missing = -A.shape[1] % products.rank_multiple
    if missing:
        A, B = F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))
    return Factors(A, B, _scaling(projection.updates, A))


def _scaling(updates: tuple[LowRank, ...], A: torch.Tensor) -> float | torch.Tensor:
    if len({update.scaling for update in updates}) == 1:
        return updates[0].scaling
    columns = [update.scaling for update in updates for _ in range(update.A.shape[1])]
    # Columns that were filled up are zero, whatever they are multiplied by.
    columns += [0.0] * (A.shape[1] - len(columns))
    return torch.tensor(columns, dtype=A.dtype).to(A.device, non_blocking=True)
