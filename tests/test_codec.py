"""The MXFP4 codec against transformers' own unpacking and against the definition of the format."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_ft.mxfp4.codec import BLOCK_SIZE, NAN_SCALE, floor_scales, pack, unpack

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST_FINITE_SCALE = 252  # 6 * 2 ** (253 - 127) is beyond float32


def _every_byte(scales: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Every byte, that is every pair of codes, under every scale: blocks `[S, 16, 16]`."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(len(scales), 1, 1)
    return blocks, torch.tensor(scales, dtype=torch.uint8).view(-1, 1).repeat(1, 16)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bit patterns, which tell negative zeros from positive ones."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpack_equals_transformers(dtype: torch.dtype) -> None:
    blocks, scales = _every_byte(range(255))
    expected = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].T
    found = unpack(blocks, scales, dtype)
    assert found.dtype == dtype and found.shape == (255, 16 * BLOCK_SIZE)
    assert torch.equal(_bits(found), _bits(expected))


def test_unpack_by_definition() -> None:
    blocks, scales = _every_byte(range(LARGEST_FINITE_SCALE + 1))
    found = unpack(blocks, scales).double().view(LARGEST_FINITE_SCALE + 1, 256, 2)
    for byte in range(256):
        for place, code in enumerate((byte & 15, byte >> 4)):
            value = math.copysign(MAGNITUDES[code & 7], -1.0 if code & 8 else 1.0)
            exact = value * torch.exp2(torch.arange(LARGEST_FINITE_SCALE + 1).double() - 127)
            assert torch.equal(found[:, byte, place], exact)


def test_unpack_keeps_leading_dimensions_and_order() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 5, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 130, (3, 5, 2), dtype=torch.uint8, generator=generator)
    whole = unpack(blocks, scales, torch.float16)
    assert whole.shape == (3, 5, 64) and whole.dtype == torch.float16 and whole.is_contiguous()
    for expert in range(3):
        for row in range(5):
            assert torch.equal(
                whole[expert, row], unpack(blocks[expert, row], scales[expert, row], torch.float16)
            )
    strided = unpack(blocks.transpose(0, 1), scales.transpose(0, 1), torch.float16)
    assert torch.equal(strided, whole.transpose(0, 1))


def test_nan_scale() -> None:
    blocks = torch.full((1, 16), 0x21, dtype=torch.uint8)
    scale = torch.tensor([NAN_SCALE], dtype=torch.uint8)
    for dtype in (torch.float32, torch.bfloat16):
        assert unpack(blocks, scale, dtype).isnan().all()


def test_round_trip_is_byte_identical() -> None:
    blocks, scales = _every_byte(range(LARGEST_FINITE_SCALE + 1))
    assert torch.equal(pack(unpack(blocks, scales), scales), blocks)
    usual = slice(2, LARGEST_FINITE_SCALE + 1)
    halved = unpack(blocks[usual], scales[usual], torch.bfloat16)
    assert torch.equal(pack(halved, scales[usual]), blocks[usual])


def _nearest_code(value: float) -> int:
    """Code of the nearest E2M1 value, of two equally near ones that with an even mantissa bit."""
    distances = [abs(abs(value) - magnitude) for magnitude in MAGNITUDES]
    nearest = [code for code in range(8) if distances[code] == min(distances)]
    code = nearest[0] if len(nearest) == 1 else next(c for c in nearest if c % 2 == 0)
    return code | (8 if math.copysign(1.0, value) < 0 else 0)


def _codes(blocks: torch.Tensor) -> list[int]:
    return torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten().tolist()


def test_pack_rounds_to_nearest_ties_to_even() -> None:
    """On a grid that holds every value and every midpoint, beyond the saturation at 6, and -0."""
    grid = [sign * step / 64 for step in range(64 * 9) for sign in (1.0, -1.0)]
    assert len(grid) % BLOCK_SIZE == 0 and -2.5 in grid and 5.0 in grid
    values = torch.tensor(grid)
    for scale in (1, 127, 140):
        scales = torch.full((len(grid) // BLOCK_SIZE,), scale, dtype=torch.uint8)
        scaled = values * 2.0 ** (scale - 127)
        assert _codes(pack(scaled, scales)) == [_nearest_code(value) for value in grid]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=BLOCK_SIZE, max_size=BLOCK_SIZE),
    st.integers(100, 150),
)
def test_pack_rounds_any_value_to_nearest(values: list[float], scale: int) -> None:
    blocks = pack(torch.tensor(values), torch.tensor([scale], dtype=torch.uint8))
    assert blocks.shape == (1, 16) and blocks.dtype == torch.uint8
    assert _codes(blocks) == [_nearest_code(value / 2.0 ** (scale - 127)) for value in values]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=BLOCK_SIZE, max_size=BLOCK_SIZE)
)
def test_floor_scales_follow_the_specification(values: list[float]) -> None:
    found = floor_scales(torch.tensor(values))
    assert found.shape == (1,) and found.dtype == torch.uint8
    largest = max(abs(value) for value in values)
    exponent = math.frexp(largest)[1] - 1 - 2 if largest else -127
    assert found.item() == min(max(exponent + 127, 0), 254)


def test_floor_scales_per_block() -> None:
    values = torch.zeros(2, 3 * BLOCK_SIZE)
    values[0, 5], values[0, BLOCK_SIZE], values[1, -1] = 1.0, -7.99, 2.0**-140
    assert floor_scales(values).tolist() == [[125, 127, 0], [0, 0, 0]]
    largest = unpack(pack(values, floor_scales(values)), floor_scales(values))[0]
    assert largest[5] == 1.0 and largest[BLOCK_SIZE] == -6.0
