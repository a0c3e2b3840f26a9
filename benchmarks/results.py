"""Runs the benchmarks and writes RESULTS.md, its plots, and the figures behind both.

    python benchmarks/results.py            runs all of them (hours), then writes the page
    python benchmarks/results.py only=loss,epoch    runs these; the others' last figures stay
    python benchmarks/results.py only=      runs none: writes the page from what is stored

Each result is stored in `results/NAME.json` as soon as it is there, with date, machine and
versions, so that an interrupted run loses one benchmark at most. The page and the plots are made
from these files alone. Exits with 1 if a benchmark failed; what it printed is on stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from catalogue import BENCHMARKS, Benchmark
from page import page_text
from plots import write_plots

from gptoss_ft.files import atomic_file, write_json

FOLDER = Path(__file__).resolve().parent
LIBRARIES = ("torch", "transformers", "peft", "trl", "numpy")


def chosen(arguments: Sequence[str]) -> list[Benchmark]:
    """The benchmarks to run.

    Raises:
        SystemExit: an argument or a name that does not exist.
    """
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    if not arguments:
        return list(BENCHMARKS)
    if len(arguments) > 1 or not arguments[0].startswith("only="):
        raise SystemExit(f"usage: results.py [only=NAME,NAME]; names: {', '.join(known)}")
    names = [name for name in arguments[0].removeprefix("only=").split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names]


def machine() -> dict[str, Any]:
    """What the figures depend on and that a reader can compare with."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python and the libraries that are compared."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), **found}


def run(benchmark: Benchmark) -> dict[str, Any] | None:
    """Runs one benchmark; None if it printed no result."""
    script, *arguments = benchmark.arguments
    print(f"== {' '.join(benchmark.arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        print(f"== no result, exit code {done.returncode}", file=sys.stderr)
        return None
    return {
        "command": " ".join(["python", f"benchmarks/{script}", *arguments]),
        "date": date.today().isoformat(),
        "exit_code": done.returncode,
        "machine": machine(),
        "versions": versions(),
        "result": json.loads(lines[-1]),
    }


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """All stored results by name."""
    return {
        benchmark.name: json.loads(file.read_text(encoding="utf-8"))
        for benchmark in BENCHMARKS
        if (file := folder / f"{benchmark.name}.json").is_file()
    }


def write_page(folder: Path) -> None:
    """RESULTS.md and plots in `folder` from `folder/results/*.json`."""
    found = stored(folder / "results")
    plots = write_plots(folder, {name: entry["result"] for name, entry in found.items()})
    with atomic_file(folder / "RESULTS.md") as temporary:
        temporary.write_text(page_text(found, plots), encoding="utf-8")


def main() -> None:
    """Runs what was asked for, then writes the page."""
    failed = []
    (FOLDER / "results").mkdir(exist_ok=True)
    for benchmark in chosen(sys.argv[1:]):
        entry = run(benchmark)
        if entry is None:
            failed.append(benchmark.name)
        else:
            write_json(FOLDER / "results" / f"{benchmark.name}.json", entry)
    write_page(FOLDER)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
