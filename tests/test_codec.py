"""The MXFP4 codec against transformers' own unpacking and against the definition of the format."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import require_kernel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_ft.mxfp4 import kernel
from gptoss_ft.mxfp4.codec import (
    BLOCK_SIZE,
    NAN_SCALE,
    floor_scales,
    pack,
    unpack,
    unpack_by_table,
)

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LARGEST_FINITE_SCALE = 252  # 6 * 2 ** (253 - 127) is beyond float32


def _every_byte(scales: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Every byte, that is every pair of codes, under every scale: blocks `[S, 16, 16]`."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(len(scales), 1, 1)
    return blocks, torch.tensor(scales, dtype=torch.uint8).view(-1, 1).repeat(1, 16)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Bit patterns, which tell negative zeros from positive ones."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


@pytest.fixture(params=["kernel", "table"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of unpacking on a CPU."""
    if request.param == "table":
        monkeypatch.setenv(kernel.SWITCH, "0")
    else:
        require_kernel()


@pytest.fixture
def compiled() -> kernel.Kernel:
    return require_kernel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unpack_equals_transformers(dtype: torch.dtype, way: None) -> None:
    blocks, scales = _every_byte(range(255))
    expected = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].T
    found = unpack(blocks, scales, dtype)
    assert found.dtype == dtype and found.shape == (255, 16 * BLOCK_SIZE)
    assert torch.equal(_bits(found), _bits(expected))


def test_unpack_by_definition(way: None) -> None:
    blocks, scales = _every_byte(range(LARGEST_FINITE_SCALE + 1))
    found = unpack(blocks, scales).double().view(LARGEST_FINITE_SCALE + 1, 256, 2)
    for byte in range(256):
        for place, code in enumerate((byte & 15, byte >> 4)):
            value = math.copysign(MAGNITUDES[code & 7], -1.0 if code & 8 else 1.0)
            exact = value * torch.exp2(torch.arange(LARGEST_FINITE_SCALE + 1).double() - 127)
            assert torch.equal(found[:, byte, place], exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_unpack_keeps_leading_dimensions_and_order(way: None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 5, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 130, (3, 5, 2), dtype=torch.uint8, generator=generator)
    whole = unpack(blocks, scales, dtype)
    assert whole.shape == (3, 5, 64) and whole.dtype == dtype and whole.is_contiguous()
    for expert in range(3):
        for row in range(5):
            assert torch.equal(
                whole[expert, row], unpack(blocks[expert, row], scales[expert, row], dtype)
            )
    strided = unpack(blocks.transpose(0, 1), scales.transpose(0, 1), dtype)
    assert torch.equal(strided, whole.transpose(0, 1))


def test_nan_scale(way: None) -> None:
    blocks = torch.full((1, 16), 0x21, dtype=torch.uint8)
    scale = torch.tensor([NAN_SCALE], dtype=torch.uint8)
    for dtype in (torch.float32, torch.bfloat16):
        assert unpack(blocks, scale, dtype).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_kernel_has_the_bits_of_the_table(
    compiled: kernel.Kernel, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte under every scale; NaN has many bit patterns and is compared as NaN."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(kernel, "BYTES_PER_THREAD", 1)
    blocks, scales = _every_byte(range(256))
    shape = (256, 16 * BLOCK_SIZE)
    found, expected = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    compiled.unpack(blocks, scales, found)
    unpack_by_table(blocks, scales, expected)
    assert torch.equal(_bits(found[:NAN_SCALE]), _bits(expected[:NAN_SCALE]))
    assert found[NAN_SCALE].isnan().all() and expected[NAN_SCALE].isnan().all()


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(0, 9),
    groups=st.integers(1, 5),
    every=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_strided_rows_and_a_given_buffer(
    rows: int, groups: int, every: int, dtype: torch.dtype, seed: int
) -> None:
    """Every n-th row of a matrix goes into the buffer and nowhere else."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(
        0, 256, (rows * every, groups, 16), dtype=torch.uint8, generator=generator
    )
    scales = torch.randint(115, 135, (rows * every, groups), dtype=torch.uint8, generator=generator)
    around = torch.full((rows + 2, groups * BLOCK_SIZE), 77.0, dtype=dtype)
    buffer = around[1:-1]
    result = unpack(blocks[::every], scales[::every], dtype, buffer)
    assert result.data_ptr() == buffer.data_ptr()
    assert (around[0] == 77).all() and (around[-1] == 77).all()
    expected = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].T
    assert torch.equal(_bits(buffer), _bits(expected[::every]))


def test_kernel_refuses_what_it_would_overrun(compiled: kernel.Kernel) -> None:
    blocks, scales = _every_byte(range(3))
    for wrong in (
        (blocks, scales, torch.empty(3, 480)),
        (blocks[:2], scales, torch.empty(3, 512)),
        (blocks, scales, torch.empty(512, 3).T),
        (blocks, scales, torch.empty(3, 512, dtype=torch.float16)),
        (blocks.to(torch.int16), scales, torch.empty(3, 512)),
        (blocks, scales.to(torch.int16), torch.empty(3, 512)),
    ):
        with pytest.raises(ValueError):
            compiled.unpack(*wrong)


@pytest.fixture
def fresh_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process that has not loaded the kernel yet, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kernel.SWITCH, raising=False)
    kernel._load.cache_clear()
    yield tmp_path / "gptoss-ft"
    kernel._load.cache_clear()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_torch_serves_and_says_so_once(
    compiler: str,
    fresh_kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    caplog.set_level(logging.INFO, logger=kernel.__name__)
    blocks, scales = _every_byte(range(255))
    for _ in range(3):
        found = unpack(blocks, scales)
    assert torch.equal(_bits(found), _bits(unpack_by_table(blocks, scales, torch.empty(255, 512))))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "torch's operators serve instead" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_error(
    fresh_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_kernel.write_text("a file where the folder should be")
    assert kernel.compiled_kernel() is None


def test_the_switch_turns_the_kernel_off(
    fresh_kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel.SWITCH, "0")
    assert kernel.compiled_kernel() is None
    unpack(*_every_byte(range(2)))
    assert not fresh_kernel.exists()


def test_the_kernel_is_built_once_and_nothing_else_is_left(
    compiled: kernel.Kernel, fresh_kernel: Path
) -> None:
    assert kernel.compiled_kernel() is not None
    (library,) = fresh_kernel.iterdir()
    built = library.stat().st_mtime_ns
    assert kernel.build(fresh_kernel) == library and library.stat().st_mtime_ns == built


def test_processes_that_build_at_the_same_time(compiled: kernel.Kernel, tmp_path: Path) -> None:
    code = "from gptoss_ft.mxfp4.kernel import compiled_kernel; assert compiled_kernel()"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(list((tmp_path / "gptoss-ft").iterdir())) == 1


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
