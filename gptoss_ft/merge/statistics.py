"""Statistics of a merge, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gptoss_ft.mxfp4.rounding import Rounded

CHUNK_VALUES = 1 << 18  # what stays in the cache, and small enough to count in float32


@dataclass(frozen=True)
class TensorStatistics:
    """The change of a tensor W by an update Δ, in numbers.

    Attributes:
        epsilon: `|Δ| / |W|`, Frobenius norms over the whole tensor.
        changed: how many blocks of 32 values (MXFP4) or values (else) differ from the base.
        parts: how many of them there are.
        max_error: largest `|merged - (W + Δ)|`.
        saturated: values of `W + Δ` that are cut off to the largest that their scale allows;
            MXFP4 only.
        rho: with calibration, the error of the layer's output relative to Δ's own effect: 0 keeps
            all of the fine-tune, at 1 it is gone.
    """

    epsilon: float
    changed: int
    parts: int
    max_error: float
    saturated: int | None = None
    rho: float | None = None


@dataclass
class Tally:
    """Sums over the parts of a tensor; every field adds up, `max_error` is a maximum."""

    delta_square: float = 0.0
    weight_square: float = 0.0
    changed: int = 0
    parts: int = 0
    max_error: float = 0.0
    saturated: int | None = None
    output_error: float = 0.0
    effect: float = 0.0

    def add_values(self, base: torch.Tensor, exact: torch.Tensor, merged: torch.Tensor) -> None:
        """Counts values that were changed.

        Args:
            base: float32.
            exact: float32, of the same shape: `W + Δ`.
            merged: bfloat16, of the same shape.
        """
        columns = (tensor.flatten().split(CHUNK_VALUES) for tensor in (base, exact, merged))
        for old, wanted, new in zip(*columns, strict=True):
            self._add_chunk(old, wanted, new.float())
        self.parts += base.numel()

    def _add_chunk(self, old: torch.Tensor, wanted: torch.Tensor, new: torch.Tensor) -> None:
        scratch = wanted - old
        self.weight_square += float(torch.dot(old, old))
        self.delta_square += float(torch.dot(scratch, scratch))
        torch.ne(new, old, out=scratch)  # as floats: sums of booleans are many times slower
        self.changed += int(scratch.sum())
        low, high = torch.aminmax(torch.sub(new, wanted, out=scratch))
        self.max_error = max(self.max_error, -float(low), float(high))

    def add_rounded(self, rounded: Rounded) -> None:
        """Counts the blocks of one expert."""
        self.weight_square += rounded.weight_square
        self.delta_square += rounded.delta_square
        self.changed += rounded.changed_blocks
        self.parts += rounded.blocks.shape[0] * rounded.blocks.shape[1]
        self.max_error = max(self.max_error, rounded.max_error)
        self.saturated = (self.saturated or 0) + rounded.saturated

    def result(self) -> TensorStatistics | None:
        """Returns the statistics; None when nothing was counted."""
        if not self.parts:
            return None
        weight = math.sqrt(self.weight_square)
        return TensorStatistics(
            epsilon=math.sqrt(self.delta_square) / weight if weight else math.inf,
            changed=self.changed,
            parts=self.parts,
            max_error=self.max_error,
            saturated=self.saturated,
            rho=math.sqrt(self.output_error / self.effect) if self.effect else None,
        )
