"""Adding an update to MXFP4 weights on their own scales: by definition, and both ways alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import require_kernel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_ft.mxfp4 import kernel
from gptoss_ft.mxfp4.codec import floor_scales, pack
from gptoss_ft.mxfp4.rounding import Rounded, nearest

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST_FINITE_SCALE = 252
Matrix = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of rounding on a CPU."""
    if request.param == "torch":
        monkeypatch.setenv(kernel.SWITCH, "0")
    else:
        require_kernel()


def _every_byte(scales: range) -> Matrix:
    """Every pair of codes under every scale: blocks `[S, 16, 16]`, all-zero ones among them."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(len(scales), 1, 1)
    blocks = torch.cat([blocks, blocks.new_zeros(len(scales), 1, 16)], dim=1)
    negative = torch.full_like(blocks[:, :1], 0x88)
    return torch.cat([blocks, negative], 1), torch.tensor(scales).byte()[:, None].repeat(1, 18)


def _random(rows: int, groups: int, seed: int = 0) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 32 * groups, generator=generator) / math.sqrt(32 * groups)
    scales = floor_scales(values)
    return pack(values, scales), scales


def _factors(matrix: Matrix, size: float, rank: int = 3, seed: int = 0) -> Matrix:
    """A `[r, in]` and B `[out, r]` with |B A| = `size` |W|."""
    generator = torch.Generator().manual_seed(seed)
    blocks, scales = matrix
    A = torch.randn(rank, scales.shape[1] * 32, generator=generator)
    B = torch.randn(len(scales), rank, generator=generator)
    return A, B * (size * _dense(blocks, scales).norm() / (B @ A).norm())


def _dense(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """transformers' unpacking, `[out, in]`."""
    return convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.float32)[0].T


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_update_changes_no_bit(way: None, zero: float) -> None:
    blocks, scales = _every_byte(range(255))
    A, B = torch.ones(2, scales.shape[1] * 32), torch.full((len(scales), 2), zero)
    rounded = nearest(blocks, scales, A, B, 1.0)
    assert torch.equal(rounded.blocks, blocks)
    assert (rounded.changed_blocks, rounded.saturated) == (0, 0)
    assert rounded.max_error == rounded.delta_square == rounded.error_square == 0


def test_update_too_small_to_move_anything_changes_no_bit(way: None) -> None:
    blocks, scales = _every_byte(range(2, LARGEST_FINITE_SCALE + 1))
    smallest = torch.exp2(scales[:, :1].double() - 127).float()  # scale of each row
    A = torch.ones(1, scales.shape[1] * 32)
    for share in (0.24, -0.24):
        rounded = nearest(blocks, scales, A, smallest * share, 1.0)
        assert torch.equal(rounded.blocks, blocks)


def _nearest_code(value: float, old: int) -> int:
    """By definition: nearest magnitude, ties to even; a zero that stays keeps its code."""
    distances = [abs(abs(value) - magnitude) for magnitude in MAGNITUDES]
    found = [code for code in range(8) if distances[code] == min(distances)]
    code = found[0] if len(found) == 1 else next(c for c in found if c % 2 == 0)
    if code == 0 and old & 7 == 0:
        return old
    return code | (8 if math.copysign(1.0, value) < 0 else 0)


def _codes(blocks: torch.Tensor) -> list[int]:
    return torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten().tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 15), min_size=32, max_size=32),
    st.lists(
        st.one_of(
            st.floats(-9, 9, width=32),
            st.sampled_from([0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 2.5, -3.0, 0.2499, 1e-7]),
        ),
        min_size=32,
        max_size=32,
    ),
    st.integers(2, LARGEST_FINITE_SCALE - 2),
    st.booleans(),
)
def test_rounding_by_definition(
    old: list[int], update: list[float], scale: int, compiled: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setenv(kernel.SWITCH, "0")
        codes = torch.tensor(old, dtype=torch.uint8)
        blocks = (codes[::2] | codes[1::2] << 4).view(1, 1, 16)
        A = torch.tensor([update], dtype=torch.float64).mul(2.0 ** (scale - 127)).float()
        scales = torch.tensor([[scale]], dtype=torch.uint8)
        rounded = nearest(blocks, scales, A, torch.ones(1, 1), 1.0)
    signed = [(-1.0 if code & 8 else 1.0) * MAGNITUDES[code & 7] for code in old]
    wanted = (torch.tensor(signed) + A[0].double().div(2.0 ** (scale - 127)).float()).tolist()
    expected = [_nearest_code(value, code) for value, code in zip(wanted, old, strict=True)]
    assert _codes(rounded.blocks) == expected
    assert rounded.saturated == sum(abs(value) >= 7 for value in wanted)
    assert rounded.changed_blocks == int(expected != old)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1, 1.0])
def test_numbers_against_dense_arithmetic(way: None, size: float) -> None:
    matrix = _random(70, 5)
    A, B = _factors(matrix, size)
    rounded = nearest(*matrix, A, B, 0.5)
    W, delta = _dense(*matrix).double(), 0.5 * (B.double() @ A.double())
    error = _dense(rounded.blocks, matrix[1]).double() - (W + delta)
    for found, exact in (
        (rounded.delta_square, delta.square().sum()),
        (rounded.weight_square, W.square().sum()),
        (rounded.error_square, error.square().sum()),
        (rounded.max_error, error.abs().max()),
    ):
        assert found == pytest.approx(float(exact), rel=1e-5)
    changed = (rounded.blocks != matrix[0]).any(-1)
    assert rounded.changed_blocks == int(changed.sum())
    assert (size <= 0.01) == (rounded.changed_blocks == 0)
    assert (rounded.saturated > 0) == (size == 1.0)
    nearer = error.abs() <= (W - (W + delta)).abs() + 1e-12
    assert nearer.all(), "the old value was nearer than the new one"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1e-2, 0.1, 10.0])
def test_kernel_has_the_bits_of_torch(
    size: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On strided rows too, and with as many threads as torch has."""
    require_kernel()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(kernel, "BYTES_PER_THREAD", 1)
    matrix = _random(400, 6)
    every_second = matrix[0][::2], matrix[1][::2]
    A, B = _factors(every_second, size)
    B[7] = 0.0
    ours = nearest(*every_second, A, B, 2.0)
    again = nearest(*every_second, A, B, 2.0)
    monkeypatch.setenv(kernel.SWITCH, "0")
    _assert_alike(ours, nearest(*every_second, A, B, 2.0))
    assert ours.error_square == again.error_square, "sums depend on the order of threads"


def test_kernel_has_the_bits_of_torch_on_every_scale() -> None:
    require_kernel()
    blocks, scales = _every_byte(range(255))
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(1, scales.shape[1] * 32, generator=generator)
    B = torch.exp2(scales[:, :1].double() - 127).float()
    with pytest.MonkeyPatch.context() as patch:
        ours = nearest(blocks, scales, A, B, 0.7)
        patch.setenv(kernel.SWITCH, "0")
        theirs = nearest(blocks, scales, A, B, 0.7)
    assert torch.equal(ours.blocks, theirs.blocks)
    assert (ours.changed_blocks, ours.saturated) == (theirs.changed_blocks, theirs.saturated)


def _assert_alike(ours: Rounded, theirs: Rounded) -> None:
    assert torch.equal(ours.blocks, theirs.blocks)
    assert ours.changed_blocks == theirs.changed_blocks > 0
    assert (ours.saturated, ours.max_error) == (theirs.saturated, theirs.max_error)
    for name in ("delta_square", "weight_square", "error_square"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6), name


def test_nan_scale_is_refused(way: None) -> None:
    blocks, scales = _random(4, 2)
    A, B = _factors((blocks, scales), 0.1)
    scales[2, 1] = 255
    with pytest.raises(ValueError, match="255"):
        nearest(blocks, scales, A, B, 1.0)


def test_kernel_refuses_what_it_would_overrun() -> None:
    compiled = require_kernel()
    blocks, scales = _random(3, 2)
    delta, out = torch.zeros(3, 64), torch.empty_like(blocks)
    for wrong in (
        (blocks, scales, delta[:2], out),
        (blocks, scales, delta.double(), out),
        (blocks, scales, torch.zeros(64, 3).T, out),
        (blocks, scales, delta, out[:2]),
        (blocks, scales, delta, out.to(torch.int16)),
        (blocks[:2], scales, delta, out),
        (blocks, scales.to(torch.int16), delta, out),
    ):
        with pytest.raises(ValueError):
            compiled.round(*wrong)
