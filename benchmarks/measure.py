"""What the benchmarks measure with: CPU seconds, ratios of interleaved repeats, peak memory."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptoss_ft.model.cpu.allocator import HUGE_PAGES, M_MMAP_THRESHOLD, return_large_buffers
from gptoss_ft.mxfp4.kernel import SWITCH

M_TRIM_THRESHOLD = -1

Times = Mapping[str, Sequence[float]]


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call, all threads."""
    before = time.process_time()
    work()
    return time.process_time() - before


def interleaved(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of every side, one after the other in each repeat; progress on stderr."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, work in sides.items():
            times[name].append(cpu_seconds(work))
            print(f"{repeat + 1}/{repeats} {name}: {times[name][-1]:.3f} s", file=sys.stderr)
    return times


def ratio(times: Times, above: str, below: str) -> float:
    """Median over the repeats of one side's time over another's."""
    pairs = zip(times[above], times[below], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def medians(times: Times) -> dict[str, float]:
    """Median CPU seconds of every side."""
    return {name: round(statistics.median(found), 4) for name, found in times.items()}


@contextmanager
def without_kernel() -> Iterator[None]:
    """Unpacking by torch's operators only."""
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        del os.environ[SWITCH]


@contextmanager
def usual_allocator() -> Iterator[None]:
    """The C library as it is without `load_model`, which has large buffers returned at once.

    glibc's thresholds rise to these values by themselves, until one is set.
    """
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    library.mallopt(M_TRIM_THRESHOLD, 64 << 20)
    try:
        yield
    finally:
        return_large_buffers()


def with_huge_pages() -> None:
    """Starts the script anew in the environment that the command line makes before torch comes."""
    if HUGE_PAGES not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, HUGE_PAGES: "1"})


def forget_peak() -> None:
    """Starts the peak of `peak_gib` anew; Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """Peak resident memory of this process, file pages included, GiB; Linux.

    Not `getrusage`: its peak outlives exec, so a child would start with that of its parent.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Runs a benchmark again with other arguments; returns the object of its last line."""
    done = subprocess.run(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def settings_from(arguments: Sequence[str], defaults: Mapping[str, int]) -> dict[str, int]:
    """`key=value` arguments over the defaults.

    Raises:
        SystemExit: a key that is not among them.
    """
    given = {key: int(value) for key, value in (argument.split("=") for argument in arguments)}
    unknown = given.keys() - defaults.keys()
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(defaults)}")
    return {**defaults, **given}
