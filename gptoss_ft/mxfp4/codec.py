"""MXFP4: the 4-bit format that gpt-oss experts ship in, as pure functions on tensors.

Format (OCP Microscaling Formats v1.0, sections 5.2 and 5.3.3, and the released checkpoints):

- 32 consecutive values along the input dimension form a block with one shared scale.
- A value is E2M1: 1 sign, 2 exponent and 1 mantissa bit; its magnitudes are
  0, 0.5, 1, 1.5, 2, 3, 4, 6.
- Two values share a byte, the first one in the low nibble: `blocks` is uint8 `[..., G, 16]`.
- A scale is E8M0, a bare exponent: `scales` is uint8 `[..., G]` and stands for
  `2 ** (scale - 127)`. 255 is NaN and never occurs in a sound checkpoint.

A matrix `[out, in]` thus becomes `blocks [out, in / 32, 16]` and `scales [out, in / 32]`, with any
leading dimensions (experts) in front. `value = E2M1(nibble) * 2 ** (scale - 127)` is exact in
float32 and bfloat16, so unpacking loses nothing in either dtype.
"""

from __future__ import annotations

from functools import cache

import torch

from gptoss_ft.mxfp4.kernel import compiled_kernel, kernel_serves

BLOCK_SIZE = 32
SCALE_BIAS = 127
NAN_SCALE = 255
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4_VALUES = (*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES))

_PAIR_DTYPE = {torch.float32: torch.int64, torch.bfloat16: torch.int32, torch.float16: torch.int32}


@cache
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the value pair of every byte, viewed as one wide integer `[256]`, and every scale
    `[256]`.
    """
    byte = torch.arange(256)
    values = torch.tensor(FP4_VALUES, dtype=torch.float32)
    pairs = torch.stack([values[byte & 0xF], values[byte >> 4]], dim=-1).to(dtype)
    scales = torch.pow(2.0, torch.arange(256, dtype=torch.float64) - SCALE_BIAS).to(dtype)
    scales[NAN_SCALE] = torch.nan
    return pairs.view(_PAIR_DTYPE[dtype]).flatten().to(device), scales.to(device)


def unpack(
    blocks: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Expands packed blocks to plain values.

    On a CPU the compiled kernel serves where there is one (see `gptoss_ft.mxfp4.kernel`); every
    other case goes through `unpack_by_table`, which gives the same bits.

    Args:
        blocks: uint8 `[..., G, 16]`.
        scales: uint8 `[..., G]`, on the same device.
        dtype: float32 or bfloat16 (exact), or float16 (exact while the scale is in its range).
        out: contiguous, of the returned shape and dtype; a buffer that is used again saves the
            page faults of a new one, which cost several times the expansion itself.

    Returns:
        `[..., 32 * G]` in `dtype`, contiguous; `out` where it was given.
    """
    if out is None:
        shape = (*scales.shape[:-1], scales.shape[-1] * BLOCK_SIZE)
        out = torch.empty(shape, dtype=dtype, device=blocks.device)
    kernel = compiled_kernel() if blocks.device.type == "cpu" and kernel_serves(dtype) else None
    if kernel is not None:
        kernel.unpack(blocks, scales, out)
        return out
    return unpack_by_table(blocks, scales, out)


def unpack_by_table(blocks: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Unpacks with torch's own operators on any device: the reference for the kernel.

    A lookup in a table of 256 value pairs, taken as one integer each, is many times faster on a CPU
    than splitting nibbles first. (A table of all 65,536 pairs under their scales is a fifth faster
    alone, and no faster within a training step.)

    Args:
        blocks, scales: as `unpack` takes them.
        out: contiguous, `[..., 32 * G]`; its dtype is the one of the values.
    """
    pairs, powers = _tables(out.dtype, blocks.device)
    wide = out.view(-1).view(_PAIR_DTYPE[out.dtype])
    torch.index_select(pairs, 0, blocks.reshape(-1).to(torch.int32), out=wide)
    factors = powers.index_select(0, scales.reshape(-1).to(torch.int32))
    out.view(*scales.shape, BLOCK_SIZE).mul_(factors.view(*scales.shape, 1))
    return out


def pack(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rounds values to E2M1 on given scales: nearest, ties to the even mantissa, saturating at 6.

    Args:
        values: floating point `[..., 32 * G]`, finite.
        scales: uint8 `[..., G]`, none of them 255.

    Returns:
        blocks, uint8 `[..., G, 16]`. A value that rounds to zero keeps its sign bit.
    """
    powers = _tables(torch.float32, values.device)[1]
    grouped = values.float().view(*scales.shape, BLOCK_SIZE)
    scaled = grouped / powers[scales.int()].unsqueeze(-1)
    magnitude = scaled.abs()
    # Midpoints between neighbours; at a tie the code with mantissa bit 0 wins, hence > or >= in
    # turn.
    codes = torch.zeros_like(magnitude, dtype=torch.uint8)
    for code, midpoint in enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0), start=1):
        reached = magnitude > midpoint if code % 2 else magnitude >= midpoint
        codes += reached.to(torch.uint8)
    codes |= torch.signbit(scaled).to(torch.uint8) << 3
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def floor_scales(values: torch.Tensor) -> torch.Tensor:
    """Derives scales for values that have none yet, by the rule of the OCP specification (section
    6.3).

    The exponent is `floor(log2(max |v|)) - 2`, 2 being the exponent of the largest E2M1 value. For
    new weights only: re-deriving scales of released weights is what erases a fine-tune.

    Args:
        values: floating point `[..., 32 * G]`, finite.

    Returns:
        scales, uint8 `[..., G]`; 0 for an all-zero block.
    """
    groups = values.shape[-1] // BLOCK_SIZE
    largest = values.float().view(*values.shape[:-1], groups, BLOCK_SIZE).abs().amax(-1)
    exponent = torch.frexp(largest).exponent - 1 - 2 + SCALE_BIAS
    return torch.where(largest > 0, exponent, 0).clamp(0, NAN_SCALE - 1).to(torch.uint8)
