"""Adding a low-rank update to MXFP4 weights and rounding back to the scales that are there.

One expert matrix at a time: W is `[out, in]` packed, the update is `scaling * B @ A`. Scales are
never derived anew: the weights of the base lie on the grid of its own scales, so that rounding to
them changes only what the update changes, and a zero update changes no bit.

All arithmetic is in units of the block's scale, `E2M1 value + update * 2 ** (127 - scale)`, which
is exact up to the one float32 addition and valid for every scale byte but 255 (NaN). Rounding is to
the nearest E2M1 value, ties to the even mantissa, saturating at 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from gptoss_ft.mxfp4.codec import BLOCK_SIZE, NAN_SCALE, SCALE_BIAS, pack, unpack
from gptoss_ft.mxfp4.kernel import compiled_kernel

# The next value of the grid would be 8: from 7 on it is the range and not rounding that cuts off.
SATURATION = 7.0
TILE_VALUES = 1 << 20  # 4 MB of float32, which stay in the cache between product and rounding


@dataclass(frozen=True)
class Rounded:
    """New blocks of one expert matrix, and what rounding W + Δ to them did.

    Attributes:
        blocks: uint8 `[out, G, 16]`, for the scales that were there.
        changed_blocks: blocks of 32 values with at least one other nibble than before.
        saturated: entries of W + Δ at 7 times their scale or more, cut off to 6 times.
        max_error: largest |rounded - (W + Δ)|.
        delta_square, weight_square, error_square: sums of the squares of Δ, of W and of
            rounded - (W + Δ).
    """

    blocks: torch.Tensor
    changed_blocks: int
    saturated: int
    max_error: float
    delta_square: float
    weight_square: float
    error_square: float


def nearest(
    blocks: torch.Tensor, scales: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float
) -> Rounded:
    """Rounds `W + scaling * B @ A` to the nearest values on the scales of W.

    An entry that was zero and stays zero keeps its nibble, the sign of its zero included.

    Args:
        blocks: uint8 `[out, G, 16]`.
        scales: uint8 `[out, G]`.
        A: float32 `[r, 32 * G]`, finite.
        B: float32 `[out, r]`, finite.
        scaling: factor of the update.

    Raises:
        ValueError: a scale byte is 255.
    """
    check_scales(scales)
    out = torch.empty_like(blocks)
    kernel = compiled_kernel() if blocks.device.type == "cpu" else None
    round_tile = _round_tile if kernel is None else kernel.round
    numbers = []
    for rows, delta in products(scales, A, B * scaling):
        # The product is torch's on both ways, so that both round the same bits.
        numbers.append(round_tile(blocks[rows], scales[rows], delta, out[rows]))
    return summed(out, numbers)


def check_scales(scales: torch.Tensor) -> None:
    """Refuses scale byte 255.

    Raises:
        ValueError: a block has a NaN scale, so there is nothing to round to.
    """
    if (scales == NAN_SCALE).any():
        raise ValueError(f"a scale byte is {NAN_SCALE}, NaN")


def products(
    scales: torch.Tensor, A: torch.Tensor, B: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields `B @ A` in runs of rows of about `TILE_VALUES` values, each valid until the next one.

    One buffer serves all of them: the page faults of a new one cost as much as the product.
    """
    rows, groups = scales.shape
    width = groups * BLOCK_SIZE
    step = min(rows, max(1, TILE_VALUES // max(1, width)))
    buffer = torch.empty(step, width, device=A.device)
    for start in range(0, rows, step):
        run = slice(start, min(start + step, rows))
        yield run, torch.mm(B[run], A, out=buffer[: run.stop - start])


def _round_tile(
    blocks: torch.Tensor, scales: torch.Tensor, delta: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Rounds as `Kernel.round` does, with torch's own operators on any device: the reference for
    the kernel.

    Args:
        blocks: uint8 `[n, G, 16]`.
        scales: uint8 `[n, G]`.
        delta: float32 `[n, 32 * G]`.
        out: uint8 `[n, G, 16]`, filled.

    Returns:
        `numbers_of`, float64 `[1, 6]`.
    """
    ones = torch.full_like(scales, SCALE_BIAS)
    scaled = delta * per_value(SCALE_BIAS - scales.int())
    wanted = unpack(blocks, ones).add_(scaled)
    out.copy_(keep_zeros(pack(wanted, ones), blocks))
    return numbers_of(blocks, scales, scaled, out)


def per_value(exponents: torch.Tensor) -> torch.Tensor:
    """Expands `2 ** exponent`, exact, float32, to every value of a block: `[n, G] -> [n, 32 *
    G]`.
    """
    return torch.exp2(exponents.double()).float().repeat_interleave(BLOCK_SIZE, 1)


def keep_zeros(rounded: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Returns `rounded` with the nibbles of `blocks` where both are a zero of either sign."""
    for nibble in (0x0F, 0xF0):
        both = ((rounded | blocks) & (nibble & 0x77)) == 0
        rounded = torch.where(both, rounded & (nibble ^ 0xFF) | blocks & nibble, rounded)
    return rounded


def numbers_of(
    blocks: torch.Tensor, scales: torch.Tensor, scaled: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Returns the numbers of `Rounded` for some rows, in its order, float64 `[1, 6]`.

    Args:
        blocks, out: uint8 `[n, G, 16]`, before and after.
        scales: uint8 `[n, G]`.
        scaled: float32 `[n, 32 * G]`, the update in units of the scale.
    """
    ones, powers = torch.full_like(scales, SCALE_BIAS), per_value(scales.int() - SCALE_BIAS)
    old = unpack(blocks, ones)
    error = (unpack(out, ones).sub_(old).sub_(scaled)).mul_(powers)
    numbers = [
        (blocks != out).any(-1).sum(),
        ((old + scaled).abs() >= SATURATION).sum(),
        error.abs().max(),
        (scaled * powers).square().sum(),
        (old * powers).square().sum(),
        error.square().sum(),
    ]
    return torch.stack([number.double() for number in numbers])[None]


def summed(blocks: torch.Tensor, numbers: Iterable[torch.Tensor]) -> Rounded:
    """Builds a `Rounded` from the numbers of its parts, `[…, 6]` each."""
    parts = torch.cat(list(numbers))
    changed, saturated, _, delta, weight, error = parts.sum(0).tolist()
    largest = float(parts[:, 2].max())
    return Rounded(blocks, int(changed), int(saturated), largest, delta, weight, error)
