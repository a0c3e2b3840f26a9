"""Exporting full-size 20b layers to GGUF, against the disk alone.

    python benchmarks/export.py [layers=4] [repeats=3]

A synthetic checkpoint of full-size layers with the whole vocabulary. CPU seconds after imports, one
thread, planning and checks included:

- `gguf_over_io`: `to=gguf`, experts in MXFP4, over reading, hashing (SHA-256), writing and flushing
  the same bytes, interleaved in one process;
- `rss_gb`: peak memory of the export in a process of its own, GB of 1e9 bytes.

The last line is one JSON object.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import (
    cpu_seconds,
    forget_peak,
    in_own_process,
    interleaved,
    medians,
    peak_gib,
    ratio,
    settings_from,
)
from merge import disk_alone
from synthetic import released_config, write_synthetic

from gptoss_ft.export.command import plan_export, write_export
from gptoss_ft.export.options import ExportOptions


def export(model: Path, out: Path) -> None:
    """Plans and writes a GGUF file into the folder `out`, and removes it."""
    out.mkdir()
    write_export(plan_export(ExportOptions(str(model), out=str(out / "model.gguf"), to="gguf")))
    shutil.rmtree(out)


def copy(model: Path, out: Path) -> None:
    """Reads, hashes, writes and flushes the tensor files, and removes what was written."""
    disk_alone(model, out)
    shutil.rmtree(out)


def alone(folder: Path) -> dict[str, Any]:
    """The export in this process: CPU seconds and peak memory."""
    gc.collect()
    forget_peak()
    seconds = cpu_seconds(lambda: export(folder / "model", folder / "alone"))
    return {"cpu_s": round(seconds, 2), "rss_gb": round(peak_gib() * 2**30 / 1e9, 3)}


def run(folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Writes the checkpoint and measures both sides."""
    model, out = folder / "model", folder / "out"
    model.mkdir()
    write_synthetic(model, released_config("gpt_oss_20b", settings["layers"]))
    own = in_own_process(__file__, "alone", str(folder))
    print(f"alone: {own}", file=sys.stderr)
    sides = {
        "io": lambda: copy(model, out),
        "gguf": lambda: export(model, out),
    }
    times = interleaved(sides, settings["repeats"])
    return {
        "benchmark": "export",
        "gguf_over_io": ratio(times, "gguf", "io"),
        "rss_gb": own["rss_gb"],
        "nbytes": sum(file.stat().st_size for file in model.glob("*.safetensors")),
        "cpu_s": medians(times),
        **settings,
    }


def main() -> None:
    """Runs the benchmark, or one side of it, and prints its result."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["alone"]:
        print(json.dumps(alone(Path(sys.argv[2]))))
        return
    settings = settings_from(sys.argv[1:], {"layers": 4, "repeats": 3})
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), settings)))


if __name__ == "__main__":
    main()
