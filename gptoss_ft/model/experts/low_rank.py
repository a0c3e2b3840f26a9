"""Low-rank updates of all experts: LoRA as the expert block computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from gptoss_ft.model.experts.routing import ExpertChunk
from gptoss_ft.model.experts.update import ChunkContext, ExpertUpdate


@dataclass(frozen=True)
class LowRankUpdate(ExpertUpdate):
    """`W + sum of scaling * B @ A`, the pairs side by side in each product.

    `low_rank_update` makes it of factors as PEFT has them.

    Attributes:
        A: `[E, r, in]` of each pair.
        B: `[halves, r, E, out / halves]` of each pair: B transposed, with the output rows of each
            half together.
        scalings: of each pair, `alpha / r`, or `alpha / sqrt(r)` for rsLoRA. They are applied to
            the rows between A and B, which are the smallest thing there is.
    """

    A: tuple[torch.Tensor, ...]
    B: tuple[torch.Tensor, ...]
    scalings: tuple[float, ...]

    def split_halves(self, halves: int) -> LowRankUpdate:
        return replace(self, B=tuple(_split_columns(B, halves) for B in self.B))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (*self.A, *self.B)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> LowRankUpdate:
        pairs = len(self.A)
        return replace(self, A=tuple(tensors[:pairs]), B=tuple(tensors[pairs:]))

    def add_output(self, at: ChunkContext, x: torch.Tensor, y: torch.Tensor) -> None:
        A, B = self._chunk_A(at), self._chunk_B(at)
        low = at.backend.multiply(x, A.transpose(1, 2), at.chunk).mul_(self._scaling(A))
        at.backend.add_product(y, low, B, at.chunk)

    def add_input_grad(
        self, at: ChunkContext, grad: torch.Tensor, grad_x: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        A, B = self._chunk_A(at), self._chunk_B(at)
        low_grad = at.backend.multiply(grad, B.transpose(1, 2), at.chunk).mul_(self._scaling(A))
        if grad_x is not None:
            at.backend.add_product(grad_x, low_grad, A, at.chunk)
        return A, low_grad

    def write_grads(
        self,
        at: ChunkContext,
        saved: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        grad: torch.Tensor,
        row_weights: torch.Tensor | None,
        grads: Sequence[torch.Tensor | None],
    ) -> None:
        A, low_grad = saved
        low = at.backend.multiply(x, A.transpose(1, 2), at.chunk).mul_(self._scaling(A))
        if row_weights is not None:
            low_grad, low = low_grad * row_weights, low * row_weights
        grad_A = at.backend.outer(low_grad, x, at.chunk)
        grad_B = at.backend.outer(low, grad, at.chunk)
        pairs, start = len(self.A), 0
        for A, to_A, to_B in zip(self.A, grads[:pairs], grads[pairs:], strict=True):
            ranks = slice(start, start + A.shape[1])
            start = ranks.stop
            if to_A is not None:
                at.chunk.scatter(grad_A[:, ranks], to_A)
            if to_B is not None:
                _scatter_columns(at.chunk, grad_B[:, ranks], to_B)

    def _chunk_A(self, at: ChunkContext) -> torch.Tensor:
        """Returns A of the chunk, `[c, r, in]` with the ranks of all pairs, filled up."""
        return _side_by_side([at.chunk.select(A).to(at.dtype) for A in self.A], at)

    def _chunk_B(self, at: ChunkContext) -> torch.Tensor:
        """Returns B of the chunk, transposed, `[c, r, out]` with the ranks of all pairs."""
        return _side_by_side([_select_columns(B, at.chunk).to(at.dtype) for B in self.B], at)

    def _scaling(self, A: torch.Tensor) -> float | torch.Tensor:
        """Returns the scaling of all pairs, or `[r]` where they have different ones."""
        if len(set(self.scalings)) == 1:
            return self.scalings[0]
        ranks = [A.shape[1] for A in self.A]
        scalings = [s for s, rank in zip(self.scalings, ranks, strict=True) for _ in range(rank)]
        # Ranks that were filled up are zero, whatever they are multiplied by.
        scalings += [0.0] * (A.shape[1] - len(scalings))
        return torch.tensor(scalings, dtype=A.dtype).to(A.device, non_blocking=True)


def low_rank_update(*pairs: tuple[torch.Tensor, torch.Tensor, float]) -> LowRankUpdate:
    """Returns one update of pairs of factors `(A, B, scaling)`, one for each active adapter.

    Args:
        pairs: A `[E, r, in]`; B `[E, out, r]` with output rows in the checkpoint's order, fastest
            as a view in which experts lie innermost, as PEFT has them; the factor of `B @ A`.
    """
    A, B, scalings = zip(*pairs, strict=True)
    return LowRankUpdate(A, tuple(each.permute(2, 0, 1)[None] for each in B), scalings)


def _split_columns(B: torch.Tensor, halves: int) -> torch.Tensor:
    """Returns `[1, r, E, out]` as `[halves, r, E, out / halves]`, contiguous; differentiable."""
    _, rank, experts, out = B.shape
    # Seen as a matrix of one row for each row of a half, PEFT's B is only turned over, which torch
    # copies three times faster than any other order of dimensions; so is its gradient.
    rows = B[0].permute(2, 0, 1).reshape(out // halves, -1)
    return rows.T.contiguous().view(halves, rank, experts, out // halves)


def _select_columns(B: torch.Tensor, chunk: ExpertChunk) -> torch.Tensor:
    """Returns B of a chunk's experts, its halves side by side, `[c, r, out]`."""
    if len(chunk.experts) == 1:
        return B[:, :, chunk.experts[0]].transpose(0, 1).flatten(1)[None]
    return B.index_select(2, chunk.ids).permute(2, 1, 0, 3).flatten(2)


def _scatter_columns(chunk: ExpertChunk, values: torch.Tensor, B: torch.Tensor) -> None:
    """Writes `[c, r, out]` where `_select_columns` reads it."""
    apart = values.unflatten(2, (B.shape[0], -1)).permute(2, 1, 0, 3)
    if len(chunk.experts) == 1:
        B[:, :, chunk.experts[0]].copy_(apart[:, :, 0])
    else:
        B[:, :, chunk.ids] = apart.to(B.dtype)


def _side_by_side(factors: list[torch.Tensor], at: ChunkContext) -> torch.Tensor:
    """Joins `[c, r, n]` along the ranks and fills these up with zeros as the backend wants."""
    joined = factors[0] if len(factors) == 1 else torch.cat(factors, dim=1)
    missing = -joined.shape[1] % at.backend.rank_multiple
    return F.pad(joined, (0, 0, 0, missing)) if missing else joined
