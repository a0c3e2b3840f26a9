"""The compiled unpacking kernel in tests: there wherever this machine can build and run it."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from gptoss_ft.mxfp4.kernel import Kernel, compiled_kernel


def require_kernel() -> Kernel:
    """The kernel. Skips without a compiler or AVX2; with both, a kernel that is missing fails."""
    processor = Path("/proc/cpuinfo")
    has_avx2 = processor.is_file() and "avx2" in processor.read_text()
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    if platform.machine() != "x86_64" or not (has_avx2 and has_compiler):
        pytest.skip("the kernel needs a C compiler and AVX2")
    found = compiled_kernel()
    assert found is not None, "this machine can build the kernel, and did not"
    return found
