"""Merging full-size 20b layers, against the disk alone and against PEFT.

    python benchmarks/merge.py [layers=4] [rank=8] [repeats=3]

A synthetic base of full-size layers with a small vocabulary; adapters with LoRA on attention (for
`copy`), and on attention and all experts. CPU seconds after imports, one thread, planning included:

- `copy_over_io`: `experts=copy` over reading, hashing (SHA-256), writing and flushing the same
  bytes, interleaved in one process;
- `keep_over_io`, `keep_stats_over_io`: `experts=nearest` on the base's scales the same way,
  without and with the report's statistics;
- `speedup_peft_bf16`, `rss_ratio_peft`: stock transformers and PEFT load one layer dequantised,
  `merge_and_unload` and `save_pretrained`; their CPU seconds over those of `to=bf16`, and our peak
  memory over theirs, every side in its own process (medians);
- `rss_gib_1_layer`, `rss_gib_4_layers`: peak memory of `experts=nearest` with statistics.

The last line is one JSON object.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
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
from safetensors.torch import save_file
from synthetic import released_config, write_synthetic

from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.files import write_json
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge

VOCABULARY = 1024
BUFFER_BYTES = 8 << 20


def write_base(folder: Path, layers: int) -> None:
    """Full-size layers of the 20b with a vocabulary too small to matter."""
    folder.mkdir()
    small = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1}
    write_synthetic(folder, released_config("gpt_oss_20b", layers) | small)


def write_adapter(base: Path, folder: Path, rank: int, experts: bool) -> None:
    """A random adapter in PEFT's layout whose updates are about a hundredth of the weights."""
    config = json.loads((base / "config.json").read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def add(key: str, count: int, out: int, width: int) -> None:
        A = torch.randn(count * rank, width, generator=generator)
        B = torch.randn(out, rank * count, generator=generator)
        tensors[f"base_model.model.{key}.lora_A.weight"] = A
        tensors[f"base_model.model.{key}.lora_B.weight"] = B * 2e-4 / rank**0.5

    for name, shape in expected_shapes(config, packed=False).items():
        if ".self_attn." in name and name.endswith("_proj.weight"):
            add(name.removesuffix(".weight"), 1, *shape)
        elif experts and name.endswith((".gate_up_proj", ".down_proj")):
            module = name.rpartition(".")[0]
            wrapped = ".base_layer" if name.endswith("gate_up_proj") else ""
            add(f"{module}{wrapped}", shape[0], shape[2], shape[1])
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if experts else None
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "target_parameters": targets,
        },
    )


def disk_alone(base: Path, out: Path) -> None:
    """Reads, hashes, writes and flushes every tensor file of the base."""
    out.mkdir()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for file in sorted(base.glob("*.safetensors")):
        digest = hashlib.sha256()
        with (
            file.open("rb", buffering=0) as source,
            (out / file.name).open("wb", buffering=0) as target,
        ):
            while count := source.readinto(buffer):
                digest.update(buffer[:count])
                target.write(buffer[:count])
            os.fsync(target.fileno())


def ours(base: Path, adapter: Path, out: Path, **settings: Any) -> None:
    """Plans and writes a merge."""
    merge(plan_merge(MergeOptions(str(base), str(adapter), str(out), **settings)))


def peft(base: Path, adapter: Path, out: Path) -> Callable[[], None]:
    """The same to bfloat16 in stock PEFT, its imports done."""
    from models import load_stock
    from peft import PeftModel

    def run() -> None:
        model = load_stock(base, torch.bfloat16)
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        merged.save_pretrained(out, save_original_format=False)

    return run


KEEP = {"experts": "nearest", "force": True}


def alone(side: str, folder: Path, name: str) -> dict[str, Any]:
    """One side in this process: CPU seconds and peak memory."""
    base, adapter, out = folder / name, folder / f"{name}-experts", folder / "alone"
    sides: dict[str, Callable[[], None]] = {
        "bf16": lambda: ours(base, adapter, out, to="bf16"),
        "keep": lambda: ours(base, adapter, out, **KEEP),
    }
    work = peft(base, adapter, out) if side == "peft" else sides[side]
    gc.collect()
    forget_peak()
    seconds = cpu_seconds(work)
    result = {"cpu_s": round(seconds, 2), "rss_gib": round(peak_gib(), 3)}
    shutil.rmtree(out)
    return result


def against_the_disk(folder: Path, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of the merges of the deep base and of the disk alone, interleaved."""
    base, out = folder / "deep", folder / "out"

    def cleared(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            work()
            shutil.rmtree(out)

        return run

    attention, experts = folder / "deep-attention", folder / "deep-experts"
    sides = {
        "io": lambda: disk_alone(base, out),
        "copy": lambda: ours(base, attention, out, experts="copy"),
        "keep": lambda: ours(base, experts, out, statistics=False, **KEEP),
        "keep_stats": lambda: ours(base, experts, out, **KEEP),
    }
    return interleaved({name: cleared(work) for name, work in sides.items()}, repeats)


def run(folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Writes the inputs and measures every side."""
    for name, layers in (("one", 1), ("deep", settings["layers"])):
        write_base(folder / name, layers)
        write_adapter(folder / name, folder / f"{name}-experts", settings["rank"], experts=True)
    write_adapter(folder / "deep", folder / "deep-attention", settings["rank"], experts=False)
    times = against_the_disk(folder, settings["repeats"])
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(settings["repeats"]):
        for side, name in (("bf16", "one"), ("peft", "one"), ("keep", "one"), ("keep", "deep")):
            result = in_own_process(__file__, side, str(folder), name)
            found.setdefault(f"{side}_{name}", []).append(result)
            print(f"{side} {name}: {result}", file=sys.stderr)

    def median(side: str, key: str) -> float:
        return statistics.median(result[key] for result in found[side])

    return {
        "benchmark": "merge",
        "copy_over_io": ratio(times, "copy", "io"),
        "keep_over_io": ratio(times, "keep", "io"),
        "keep_stats_over_io": ratio(times, "keep_stats", "io"),
        "speedup_peft_bf16": round(median("peft_one", "cpu_s") / median("bf16_one", "cpu_s"), 2),
        "rss_ratio_peft": round(median("bf16_one", "rss_gib") / median("peft_one", "rss_gib"), 4),
        "rss_gib_1_layer": median("keep_one", "rss_gib"),
        f"rss_gib_{settings['layers']}_layers": median("keep_deep", "rss_gib"),
        "rss_gib_bf16": median("bf16_one", "rss_gib"),
        "rss_gib_peft": median("peft_one", "rss_gib"),
        "cpu_s": medians(times)
        | {"bf16": median("bf16_one", "cpu_s"), "peft": median("peft_one", "cpu_s")},
        **settings,
    }


def main() -> None:
    """Runs the benchmark, or one side of it, and prints its result."""
    torch.set_num_threads(1)
    if sys.argv[1:2] and "=" not in sys.argv[1]:
        side, folder, name = sys.argv[1:]
        print(json.dumps(alone(side, Path(folder), name)))
        return
    settings = settings_from(sys.argv[1:], {"layers": 4, "rank": 8, "repeats": 3})
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(Path(folder), settings)))


if __name__ == "__main__":
    main()
