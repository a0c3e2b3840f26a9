"""One of an expert block's two projections: packed weights, bias, low-rank updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gptoss_ft.model.experts.products import Packed, Products
from gptoss_ft.model.experts.routing import Chunk


@dataclass(frozen=True)
class LowRank:
    """A low-rank update of one projection of all experts, `W + scaling * B @ A`.

    Attributes:
        A: `[E, r, in]`.
        B: `[E, out, r]`, fastest as a view in which experts lie innermost, as PEFT has them.
        scaling: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    def dealt(self, parts: int) -> Update:
        """In the order of the parts; differentiable."""
        experts, out, rank = self.B.shape
        # Seen as a matrix of one row for each row of a part, PEFT's B is only turned over, which
        # torch copies three times faster than any other order of dimensions; so is its gradient.
        rows = self.B.permute(1, 2, 0).reshape(out // parts, -1)
        B = rows.T.contiguous().view(parts, rank, experts, out // parts)
        return Update(self.A, B, self.scaling)


@dataclass(frozen=True)
class Update:
    """A `LowRank` as products want it.

    Attributes:
        A: `[E, r, in]`.
        B: `[parts, r, E, out / parts]`, contiguous: B transposed, part p of its columns being the
            rows p::parts of `LowRank.B`.
        scaling: as in `LowRank`.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    def columns(self, chunk: Chunk) -> torch.Tensor:
        """B of a chunk's experts, transposed, its parts side by side: `[c, r, out]`."""
        if len(chunk.experts) == 1:
            return self.B[:, :, chunk.experts[0]].transpose(0, 1).flatten(1)[None]
        return self.B.index_select(2, chunk.ids).permute(2, 1, 0, 3).flatten(2)


def put_columns(B: torch.Tensor, chunk: Chunk, values: torch.Tensor) -> None:
    """Writes `[c, r, out]` where `Update.columns` reads it."""
    apart = values.unflatten(2, (B.shape[0], -1)).permute(2, 1, 0, 3)
    if len(chunk.experts) == 1:
        B[:, :, chunk.experts[0]].copy_(apart[:, :, 0])
    else:
        B[:, :, chunk.ids] = apart.to(B.dtype)


@dataclass(frozen=True)
class Projection:
    """One of the two projections: its packed weights, bias and low-rank updates.

    Attributes:
        packed: the weights of all experts.
        bias: `[E, out]`, in the order of the parts.
        updates: any number of them.
    """

    packed: Packed
    bias: torch.Tensor
    updates: tuple[Update, ...] = ()

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What may have a gradient: the bias, then A and B of each update."""
        return (self.bias, *(factor for update in self.updates for factor in (update.A, update.B)))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Projection:
        """The same projection on other tensors, in the order of `tensors()`."""
        updates = tuple(
            Update(A, B, update.scaling)
            for A, B, update in zip(tensors[1::2], tensors[2::2], self.updates, strict=True)
        )
        return Projection(self.packed, tensors[0], updates)


@dataclass(frozen=True)
class Factors:
    """The updates of a chunk side by side.

    Attributes:
        A: `[c, r, in]`, r being the sum of the ranks, perhaps filled up with zeros.
        B: `[c, r, out]`, transposed.
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
        all_B.append(update.columns(chunk).to(like.dtype))
    A = all_A[0] if len(all_A) == 1 else torch.cat(all_A, dim=1)
    B = all_B[0] if len(all_B) == 1 else torch.cat(all_B, dim=1)
    missing = -A.shape[1] % products.rank_multiple
    if missing:
        A, B = (F.pad(factor, (0, 0, 0, missing)) for factor in (A, B))
    return Factors(A, B, _scaling(projection.updates, A))


def _scaling(updates: tuple[Update, ...], A: torch.Tensor) -> float | torch.Tensor:
    if len({update.scaling for update in updates}) == 1:
        return updates[0].scaling
    columns = [update.scaling for update in updates for _ in range(update.A.shape[1])]
    # Columns that were filled up are zero, whatever they are multiplied by.
    columns += [0.0] * (A.shape[1] - len(columns))
    return torch.tensor(columns, dtype=A.dtype).to(A.device, non_blocking=True)
