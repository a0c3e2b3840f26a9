"""The bytes of GGUF tensors, made from those of a checkpoint a few MB at a time.

MXFP4 in GGML: a block of 32 values is 17 bytes, the scale first; then byte j holds value j in its
low and value j + 16 in its high nibble. The checkpoint has the scales apart, and byte j holds the
values 2 j and 2 j + 1. Scales and nibbles mean the same in both, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gptoss_ft.checkpoint.headers import TensorInfo
from gptoss_ft.checkpoint.slices import experts, row_parts
from gptoss_ft.errors import ExportError, Problem
from gptoss_ft.mxfp4.codec import unpack

TORCH_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EVERY = slice(None)
GATE = slice(0, None, 2)
UP = slice(1, None, 2)

_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH = np.uint64(0xF0F0F0F0F0F0F0F0)
_FOUR = np.uint64(4)
_BLOCK = np.dtype([("scale", "u1"), ("codes", "V16")])


def plain(info: TensorInfo, type: str, columns: slice = EVERY) -> Iterator[torch.Tensor]:
    """Yields a stored floating-point tensor, or part of its last dimension, in a GGML type.

    Raises:
        ExportError: a value is too large for float16.
    """
    for part in row_parts(info):
        yield converted(part[..., columns].contiguous(), type, info.name)


def dense_experts(info: TensorInfo, type: str, rows: slice = EVERY) -> Iterator[torch.Tensor]:
    """Yields dense experts, stored `[E, in, out]`, as `[E, out, in]`, or some of their outputs."""
    for (expert,) in experts((info,)):
        yield converted(expert[:, rows].T.contiguous(), type, info.name)


def unpacked_experts(
    blocks: TensorInfo, scales: TensorInfo, type: str, rows: slice = EVERY
) -> Iterator[torch.Tensor]:
    """Yields MXFP4 experts as `[E, out, in]` in a floating-point type, or some of their outputs."""
    for packed, exponents in experts((blocks, scales)):
        values = unpack(packed[rows], exponents[rows], torch.float32)
        yield converted(values, type, blocks.name)


def packed_experts(
    blocks: TensorInfo, scales: TensorInfo, rows: slice = EVERY
) -> Iterator[torch.Tensor]:
    """Yields MXFP4 experts as GGML blocks, uint8 `[rows, G * 17]`, expert after expert."""
    for packed, exponents in experts((blocks, scales)):
        yield ggml_blocks(packed[rows], exponents[rows])


def ggml_blocks(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Reorders packed rows into GGML's block layout.

    Args:
        blocks: uint8 `[rows, G, 16]`.
        scales: uint8 `[rows, G]`.

    Returns:
        uint8 `[rows, G * 17]`.
    """
    words = blocks.contiguous().numpy().view(np.uint64).reshape(-1, 2)
    first, second = words[:, 0], words[:, 1]  # values 0 to 15 and 16 to 31 of every block
    codes = np.empty((words.size * 8,), np.uint8)
    codes[0::2] = ((first & _LOW) | ((second & _LOW) << _FOUR)).view(np.uint8)
    codes[1::2] = (((first >> _FOUR) & _LOW) | (second & _HIGH)).view(np.uint8)
    result = np.empty(scales.shape, _BLOCK)
    result["scale"] = scales.numpy()
    result["codes"] = codes.view("V16").reshape(scales.shape)
    return torch.from_numpy(result.view(np.uint8))


def converted(values: torch.Tensor, type: str, name: str) -> torch.Tensor:
    """Converts values to a GGML type.

    Raises:
        ExportError: one of them is too large for float16; `name` is where it comes from.
    """
    result = values.to(TORCH_TYPES[type])
    if type == "F16" and not torch.isfinite(result).all():
        raise ExportError(
            Problem(
                "a value does not fit into float16",
                name,
                f"up to {values.abs().max().item():.3g}, where 65504 is the limit",
                "say dtype=bf16 or dtype=f32",
            )
        )
    return result
