"""A small compiled kernel behind `codec` and `rounding`, built on first use with the system's C
compiler.

Nothing depends on it: without a compiler, on a processor without AVX2, after a failed build, or
with `GPTOSS_FT_KERNEL=0` in the environment, torch's own operators do the same work, about a
quarter as fast in unpacking, a fiftieth in rounding. The library is kept in the user's cache folder
under a name made of its source, flags and machine, so that a new version never loads an old build.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SWITCH = "GPTOSS_FT_KERNEL"
SOURCES = tuple(Path(__file__).with_name(name) for name in ("unpack.c", "round.c"))
FLAGS = ("-O3", "-std=c99", "-shared", "-fPIC")
# The second attempt is for compilers without OpenMP.
FLAG_SETS = ((*FLAGS, "-fopenmp"), FLAGS)
BUILD_SECONDS = 60
# Below this many bytes of values per thread, waking a thread costs more than its work.
BYTES_PER_THREAD = 1 << 18
ROW_NUMBERS = 6


@dataclass(frozen=True)
class Kernel:
    """The shared library built from `SOURCES`, loaded."""

    functions: ctypes.CDLL

    def unpack(self, blocks: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the values of packed blocks into `out`, in as many threads as torch uses.

        Args:
            blocks: uint8 `[..., G, 16]` on the CPU.
            scales: uint8 `[..., G]`.
            out: contiguous, `[..., 32 * G]`, float32 or bfloat16.

        Raises:
            ValueError: tensors that the library would read or write beyond their ends.
        """
        groups = scales.shape[-1]
        _check_packed(blocks, scales, out)
        if not out.is_contiguous() or not kernel_serves(out.dtype):
            raise ValueError("out must be contiguous, float32 or bfloat16")
        blocks, block_stride = _rows(blocks.flatten(-2))
        scales, scale_stride = _rows(scales)
        self.functions.gptoss_ft_unpack(
            blocks.data_ptr(),
            block_stride,
            scales.data_ptr(),
            scale_stride,
            scales.numel() // max(groups, 1),
            groups,
            out.data_ptr(),
            int(out.dtype == torch.bfloat16),
            _threads(out.nbytes),
        )

    def round(
        self, blocks: torch.Tensor, scales: torch.Tensor, delta: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Writes the blocks of W + Δ into `out`; see `rounding.nearest`.

        Args:
            blocks: uint8 `[rows, G, 16]` on the CPU.
            scales: uint8 `[rows, G]`, none of them 255.
            delta: float32 `[rows, 32 * G]`, contiguous.
            out: uint8 `[rows, G, 16]`, contiguous.

        Returns:
            `rounding.numbers_of` for every row, float64 `[rows, ROW_NUMBERS]`.

        Raises:
            ValueError: tensors that the library would read or write beyond their ends.
        """
        rows, groups = scales.shape
        _check_packed(blocks, scales, delta)
        if out.shape != blocks.shape or out.dtype != torch.uint8 or not out.is_contiguous():
            raise ValueError("out must be contiguous and of the shape and dtype of blocks")
        if not delta.is_contiguous() or delta.dtype != torch.float32:
            raise ValueError("delta must be contiguous float32")
        blocks, block_stride = _rows(blocks.flatten(-2))
        scales, scale_stride = _rows(scales)
        numbers = torch.empty(rows, ROW_NUMBERS, dtype=torch.float64)
        self.functions.gptoss_ft_round(
            blocks.data_ptr(),
            block_stride,
            scales.data_ptr(),
            scale_stride,
            rows,
            groups,
            delta.data_ptr(),
            out.data_ptr(),
            numbers.data_ptr(),
            _threads(delta.nbytes),
        )
        return numbers


def _check_packed(blocks: torch.Tensor, scales: torch.Tensor, values: torch.Tensor) -> None:
    if blocks.shape != (*scales.shape, 16) or values.numel() != scales.numel() * 32:
        raise ValueError(
            f"{blocks.shape}, {scales.shape} and {values.shape} do not belong together"
        )
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise ValueError("blocks and scales must be uint8")


def _threads(nbytes: int) -> int:
    """Chooses the number of threads for this many bytes of values."""
    return max(1, min(torch.get_num_threads(), nbytes // BYTES_PER_THREAD))


def _rows(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Views a tensor as rows of adjacent bytes, copied if need be, and returns the distance between
    rows.
    """
    if tensor.is_contiguous():
        return tensor, tensor.shape[-1]
    if tensor.dim() == 2 and tensor.stride(1) == 1:
        return tensor, tensor.stride(0)
    return tensor.contiguous(), tensor.shape[-1]


def kernel_serves(dtype: torch.dtype) -> bool:
    """Returns whether the kernel writes this dtype."""
    return dtype in (torch.float32, torch.bfloat16)


def compiled_kernel() -> Kernel | None:
    """Returns the kernel, built if need be; None where it cannot be built or
    `GPTOSS_FT_KERNEL=0`.
    """
    return None if os.environ.get(SWITCH) == "0" else _load()


@cache
def _load() -> Kernel | None:
    """Loads the library once per process; says once why there is none."""
    if os.name != "posix" or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.CDLL(str(build(cache_folder())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.info("no compiled MXFP4 kernel, torch's operators serve instead: %s", error)
        return None
    rows = (ctypes.c_void_p, ctypes.c_int64)
    shape = (ctypes.c_int64, ctypes.c_int64)
    library.gptoss_ft_unpack.argtypes = (
        *(*rows, *rows, *shape),
        *(ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    )
    library.gptoss_ft_unpack.restype = None
    library.gptoss_ft_round.argtypes = (
        *(*rows, *rows, *shape),
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int),
    )
    library.gptoss_ft_round.restype = None
    return Kernel(library) if library.gptoss_ft_supported() else None


def cache_folder() -> Path:
    """Returns the folder of builds: `gptoss-ft` in the user's cache folder.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptoss-ft"


def build(folder: Path) -> Path:
    """Compiles the shared library into `folder` unless it is there already, and returns its path.

    Raises:
        OSError: there is no compiler, or the folder cannot be written.
        subprocess.SubprocessError: the compiler failed or took too long.
    """
    text = [source.read_bytes() for source in SOURCES]
    key = hashlib.sha256(repr((text, FLAG_SETS, platform.machine(), platform.libc_ver())).encode())
    library = folder / f"mxfp4-{key.hexdigest()[:24]}.so"
    if not library.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Built aside and renamed, so that a process beside this one never loads half a file.
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            _compile(Path(aside) / library.name)
            os.replace(Path(aside) / library.name, library)
    return library


def _compile(library: Path) -> None:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise FileNotFoundError(f"no C compiler named {' or '.join(names)}")
    for attempt, flags in enumerate(FLAG_SETS, start=1):
        command = [compiler, *flags, "-o", str(library), *map(str, SOURCES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
        if done.returncode == 0:
            return
        if attempt == len(FLAG_SETS):
            raise subprocess.SubprocessError(done.stderr.strip()[-500:])
