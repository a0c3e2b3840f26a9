"""The values of each output tensor, a bounded part at a time, and what the merge changed in them.

Arithmetic: base and updates in float32, one rounding to bfloat16 or to MXFP4. Where the change is
exactly zero the base value is kept bit for bit, negative zeros included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from gptoss_ft.adapters.combine import LoraFactors, read_factors, trained_value
from gptoss_ft.adapters.files import is_expert_stem
from gptoss_ft.checkpoint.slices import experts, row_parts
from gptoss_ft.merge.expert_adapter import joined_factor
from gptoss_ft.merge.planned import MergeAction, PlannedTensor
from gptoss_ft.merge.statistics import Tally
from gptoss_ft.mxfp4.codec import unpack
from gptoss_ft.mxfp4.rounding import Rounded, nearest

CACHE_LINE = 32  # bfloat16 values: transposed tiles should fill whole lines
TILE_BYTES = 1 << 20  # of float32: what stays in the cache from the product to the last sum


@dataclass(frozen=True)
class CalibratedExpert:
    """One expert matrix rounded against calibration inputs.

    Attributes:
        rounded: its blocks.
        correction: float32 `[out]`, to be added to the bias.
        error: sum of squares of the output's error on held-out inputs, bias in bfloat16.
        effect: the same of what Δ itself does; rho is the root of the ratio.
        rows: inputs that the rounding was fitted to. With none it is nearest rounding.
    """

    rounded: Rounded
    correction: torch.Tensor
    error: float
    effect: float
    rows: int


class Rounder(Protocol):
    """Rounds one expert against calibration rows, as `calibrate.Calibration` does."""

    def round(
        self,
        stem: str,
        expert: int,
        blocks: torch.Tensor,
        scales: torch.Tensor,
        update: LoraFactors,
    ) -> CalibratedExpert: ...


@dataclass
class Workbench:
    """State shared by the tensors of a merge.

    Attributes:
        statistics: whether to measure.
        rounder: for `gptq`.
        corrections: biases `[E, out]` to add for projections that were just rounded, by stem.
    """

    statistics: bool
    rounder: Rounder | None = None
    corrections: dict[str, torch.Tensor] = field(default_factory=dict)


def parts(tensor: PlannedTensor, bench: Workbench, tally: Tally) -> Iterator[torch.Tensor]:
    """Yields the values of an output tensor, in order and in its dtype, and counts them in `tally`.

    Each part is valid until the next one is asked for.
    """
    match tensor.action:
        case MergeAction.COPY:
            return row_parts(tensor.base[0])
        case MergeAction.FACTOR:
            return iter([joined_factor(tensor.factor, tensor.updates)])
        case MergeAction.DEQUANTIZE:
            return _dequantized(tensor)
        case MergeAction.DEQUANTIZE_ADD:
            return _dequantized_added(tensor, bench, tally)
        case MergeAction.NEAREST:
            return _nearest(tensor, bench, tally)
        case MergeAction.GPTQ:
            return _calibrated(tensor, bench, tally)
        case MergeAction.CORRECT:
            return _whole(tensor, bench, tally, bench.corrections.pop(tensor.unit))
    if tensor.trained:
        return _whole(tensor, bench, tally)
    return _added_rows(tensor, bench, tally)


def _added_rows(tensor: PlannedTensor, bench: Workbench, tally: Tally) -> Iterator[torch.Tensor]:
    """Yields a bfloat16 matrix `[out, in]`, or dense experts `[E, in, out]`, plus a low-rank
    update.
    """
    factors = read_factors(tensor.updates)
    if is_expert_stem(tensor.name):
        for index, (dense,) in enumerate(experts(tensor.base)):
            update = factors.expert(index)
            flipped = LoraFactors(update.B.mT, update.A.mT, update.scaling)
            yield _added(dense, flipped, bench, tally)
        return
    start = 0
    for base in row_parts(tensor.base[0], TILE_BYTES // 2):
        stop = start + base.shape[0]
        yield _added(base, factors.rows(start, stop), bench, tally)
        start = stop


def _added(base: torch.Tensor, update: LoraFactors, bench: Workbench, tally: Tally) -> torch.Tensor:
    """Computes `base + scaling * B @ A` in bfloat16."""
    values = base.float()
    exact = add_low_rank(values, update)
    merged = exact.to(torch.bfloat16)
    if bench.statistics:
        tally.add_values(values, exact, merged)
    return merged


def add_low_rank(base: torch.Tensor, update: LoraFactors) -> torch.Tensor:
    """Computes `base + scaling * B @ A` in float32; a zero that stays zero keeps its sign.

    Args:
        base: float32 `[out, in]`.
        update: A `[r, in]` and B `[out, r]`.
    """
    exact = torch.addmm(base, update.B, update.A, alpha=update.scaling)
    if exact.abs().min() == 0:
        exact = torch.where(exact == 0, base * 0, exact)
    return exact


def _whole(
    tensor: PlannedTensor,
    bench: Workbench,
    tally: Tally,
    correction: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yields a small tensor with everything that is added to it."""
    base = torch.cat([part.clone() for part in row_parts(tensor.base[0])])
    values = base.float()
    exact = trained_value(base, tensor.trained) if tensor.trained else values.clone()
    if tensor.updates:
        exact = add_low_rank(exact, read_factors(tensor.updates))
    if correction is not None:
        exact = exact + correction
    merged = torch.where(exact == values, base, exact.to(torch.bfloat16))
    if bench.statistics:
        tally.add_values(values, exact, merged)
    yield merged


def _dequantized(tensor: PlannedTensor) -> Iterator[torch.Tensor]:
    """Yields experts one by one as bfloat16 `[1, in, out]`."""
    _, width, out = tensor.shape
    dense = torch.empty(out, width, dtype=torch.bfloat16)
    result = torch.empty(width, out, dtype=torch.bfloat16)
    for blocks, scales in experts(tensor.base):
        unpack(blocks, scales, torch.bfloat16, dense)
        yield result.copy_(dense.T).unsqueeze(0)


def _dequantized_added(
    tensor: PlannedTensor, bench: Workbench, tally: Tally
) -> Iterator[torch.Tensor]:
    """Yields experts plus their updates, one by one as bfloat16 `[1, in, out]`, tile by tile of
    rows.
    """
    factors = read_factors(tensor.updates)
    result = torch.empty(tensor.shape[1:], dtype=torch.bfloat16)
    step = max(CACHE_LINE, TILE_BYTES // (4 * tensor.shape[1]) // CACHE_LINE * CACHE_LINE)
    for index, (blocks, scales) in enumerate(experts(tensor.base)):
        update = factors.expert(index)
        for start in range(0, blocks.shape[0], step):
            rows = slice(start, start + step)
            base = unpack(blocks[rows], scales[rows])
            merged = _added(base, update.rows(start, start + step), bench, tally)
            result[:, rows].copy_(merged.T)
        yield result.unsqueeze(0)


def _nearest(tensor: PlannedTensor, bench: Workbench, tally: Tally) -> Iterator[torch.Tensor]:
    """Yields experts plus their updates, one by one, each value rounded on the base's scales."""
    factors = read_factors(tensor.updates)
    for index, (blocks, scales) in enumerate(experts(tensor.base)):
        update = factors.expert(index)
        rounded = nearest(blocks, scales, update.A, update.B, update.scaling)
        if bench.statistics:
            tally.add_rounded(rounded)
        yield rounded.blocks


def _calibrated(tensor: PlannedTensor, bench: Workbench, tally: Tally) -> Iterator[torch.Tensor]:
    """Yields experts plus their updates, one by one, rounded against calibration rows.

    Leaves the corrections of their biases in `bench`.
    """
    if bench.rounder is None:
        raise ValueError("gptq needs calibration")
    factors = read_factors(tensor.updates)
    corrections = []
    for index, (blocks, scales) in enumerate(experts(tensor.base)):
        update = factors.expert(index)
        result = bench.rounder.round(tensor.unit, index, blocks, scales, update)
        tally.add_rounded(result.rounded)
        tally.output_error += result.error
        tally.effect += result.effect
        corrections.append(result.correction)
        yield result.rounded.blocks
    bench.corrections[tensor.unit] = torch.stack(corrections)
