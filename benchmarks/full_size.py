"""A real LoRA step on the full shape of gpt-oss-20b, or on some layers of gpt-oss-120b.

    python benchmarks/full_size.py [model=gpt_oss_20b|gpt_oss_120b] [layers=N] [tokens=512] [rank=8]
                                   [recompute=0] [prefetch=1] [cold=0] [threads=1]

Writes synthetic weights of the real shapes to a temporary folder (TMPDIR; 14 GB for 20b, removed at
the end), maps them through `load_model`, adds adapters of `rank` on q, k, v, o and on every expert,
and takes an optimizer step with our trainer: forward, backward, clipping, AdamW, half of the tokens
trained. Another step on as many tokens comes first, so that the measured one is like any later one:
AdamW's moments exist, and the files are mapped. With cold=1 it has two tokens and maps little.
Routing is spread by the weights (see `synthetic.py`), so that every expert is hit in every layer;
`experts_hit` counts (layer, expert) pairs, of `experts`.

- `cpu_s`, `wall_s`: of the step, all threads; `breakdown_s` says where the CPU time goes;
- `system_s`: how much of `cpu_s` the kernel spent, on page faults and reading. A virtual machine
  may give memory that has been free for some seconds back to its host; a step of a minute then
  pays for getting it again, with all of its activations;
- `over_gemm`: `cpu_s` over the CPU time of the step's own matrix products alone (`gemm_s`: frozen
  matrices, low-rank factors, head) by `torch.mm`, measured right before and right after the step on
  `SAMPLED` of its layers, the mean of both; `over_frozen_gemm` leaves the low-rank products out;
- `over_fastest_gemm`, `fastest_gemm_s`: the same by the faster of torch's two libraries, which the
  step uses too; `user_over_fastest_gemm` without `system_s`;
- `anon_gib`: peak of memory that must stay; `file_gib`: peak of mapped file pages, which the kernel
  may drop; `rss_gib`: peak of both together; `loaded_anon_gib`: before the first step;
  `layer_anon_gib`: what the forward pass of a layer leaves for the backward pass;
- `whole`: the same for all layers of the model, extrapolated where fewer were run.

recompute=1 forms the experts' pre-activations anew in the backward pass instead of keeping them.
cold=1 takes the files out of the file cache before they are mapped, as in the first step of a run,
and in every step of a model that is larger than memory; prefetch=0 leaves out reading ahead.
The last line is one JSON object. Linux only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import torch
from arithmetic import Matrices, Multiply, StepShape, by_torch_mm, step_seconds
from laps import Laps, attach, memory_after_layers, memory_gib, memory_watch, routed_pairs
from measure import settings_from, with_huge_pages
from synthetic import SHAPES, drop_from_cache, released_config, write_synthetic
from trainers import our_trainer, say, stepper

from gptoss_ft.model.cpu.matmul import put_product
from gptoss_ft.model.experts.module import PackedExperts

SAMPLED = 4
DEFAULTS = {
    "layers": 0,
    "tokens": 512,
    "rank": 8,
    "recompute": 0,
    "prefetch": 1,
    "cold": 0,
    "threads": 1,
}


def row_of(tokens: int, seed: int, vocabulary: int) -> dict[str, list[Any]]:
    """A row of random tokens, the second half trained."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator).tolist()
    half = tokens // 2
    return {"input_ids": ids, "labels": ids, "loss_weights": [0.0] * (tokens - half) + [1.0] * half}


def build(folder: Path, config: dict[str, Any], settings: dict[str, int]) -> tuple[Any, Any]:
    """Our trainer on the checkpoint, and the decoder within."""
    tokens, vocabulary = settings["tokens"], config["vocab_size"]
    lengths = (2 if settings["cold"] else tokens, tokens)
    rows = [row_of(length, seed, vocabulary) for seed, length in enumerate(lengths)]
    trainer = our_trainer(folder, datasets.Dataset.from_list(rows), settings["rank"])
    model: Any = trainer.model
    for module in model.modules():
        if isinstance(module, PackedExperts):
            module.save_pre_activation = not settings["recompute"]
            if not settings["prefetch"]:
                module._forward_pre_hooks.clear()
                module._forward_hooks.clear()
    return trainer, model.get_base_model().model


def measured_step(trainer: Any, decoder: Any, experts: int) -> dict[str, Any]:
    """Takes the first step, then the measured one."""
    laps = Laps()
    step = stepper(trainer, before_update=lambda: laps.lap("backward attention"))
    first, measured = ([trainer.train_dataset[i]] for i in range(2))
    say("the first step, which makes the optimizer's state")
    step(trainer.data_collator(first))
    attach(decoder, laps)
    counts, after_layers = routed_pairs(decoder, experts), memory_after_layers(decoder)
    batch = trainer.data_collator(measured)
    say("the measured step")
    with memory_watch() as peaks:
        started, kernel = time.monotonic(), os.times().system
        laps.restart()
        loss = step(batch)
        laps.lap("optimizer")
        wall, kernel = time.monotonic() - started, os.times().system - kernel
    return {
        "cpu_s": round(sum(laps.seconds.values()), 2),
        "system_s": round(kernel, 2),
        "wall_s": round(wall, 2),
        "loss": round(loss, 3),
        **{f"{kind}_gib": round(value, 2) for kind, value in peaks.items()},
        "breakdown_s": {name: round(value, 2) for name, value in laps.seconds.items()},
        "counts": counts,
        "after_layers": after_layers,
    }


def bare_products(shape: StepShape, multiply: Multiply) -> dict[str, float]:
    """CPU seconds of the products of a step by kind, from `SAMPLED` layers evenly spread."""
    say("the step's matrix products alone")
    layers = len(shape.counts)
    sampled = [shape.counts[i * layers // SAMPLED] for i in range(min(SAMPLED, layers))]
    sample = StepShape(shape.config, sampled, shape.tokens, shape.scored, shape.rank)
    matrices = Matrices()
    step_seconds(sample, matrices, multiply)  # code is compiled for every size that is new
    found = step_seconds(sample, matrices, multiply)
    factor = layers / len(sampled)
    return {kind: s * (1 if kind == "head" else factor) for kind, s in found.items()}


def even_counts(config: dict[str, Any], tokens: int) -> list[list[int]]:
    """Pairs of every expert in every layer, were all of them hit equally often."""
    experts = config["num_local_experts"]
    pairs = tokens * config["num_experts_per_tok"]
    return [[max(1, pairs // experts)] * experts] * config["num_hidden_layers"]


def extrapolate(result: dict[str, Any], layer_gib: float, layers: int) -> dict[str, Any]:
    """The step on all layers: everything but the loss grows with the layers.

    Memory grows by `layer_gib` of activations for each, and by its adapter and AdamW's two moments;
    gradients come while activations go.
    """
    loss, measured = result["breakdown_s"]["loss"], result["layers"]
    cpu = loss + (result["cpu_s"] - loss) * layers / measured
    state_gib = 3 * 4 * result["trained_parameters"] / measured / 2**30
    return {
        "layers": layers,
        "cpu_s": round(cpu, 1),
        "wall_s": round(result["wall_s"] * cpu / result["cpu_s"], 1),
        "anon_gib": round(result["anon_gib"] + (layers - measured) * (layer_gib + state_gib), 2),
    }


def run(folder: Path, config: dict[str, Any], settings: dict[str, int]) -> dict[str, Any]:
    """Writes the weights and measures; the result without what was asked for."""
    say("writing the weights")
    # In a child, so that its memory does not count as the step's.
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        pool.submit(write_synthetic, folder, config).result()
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if settings["cold"]:
        drop_from_cache(folder)
    trainer, decoder = build(folder, config, settings)
    loaded_gib = memory_gib()["anon"]
    tokens = settings["tokens"]

    def products(counts: list[list[int]]) -> list[dict[str, float]]:
        shape = StepShape(config, counts, tokens, tokens // 2, settings["rank"])
        return [bare_products(shape, multiply) for multiply in (by_torch_mm, put_product)]

    before = products(even_counts(config, tokens))
    result = measured_step(trainer, decoder, config["num_local_experts"])
    counts, after_layers = result.pop("counts"), result.pop("after_layers")
    after = products(counts)
    gemm, fastest = (
        {kind: (early[kind] + late[kind]) / 2 for kind in late}
        for early, late in zip(before, after, strict=True)
    )
    low_rank, user = gemm["low_rank"], result["cpu_s"] - result["system_s"]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {
        **result,
        "over_gemm": round(result["cpu_s"] / sum(gemm.values()), 3),
        "over_frozen_gemm": round(result["cpu_s"] / (sum(gemm.values()) - low_rank), 3),
        "over_fastest_gemm": round(result["cpu_s"] / sum(fastest.values()), 3),
        "user_over_fastest_gemm": round(user / sum(fastest.values()), 3),
        "gemm_s": {kind: round(value, 2) for kind, value in gemm.items()},
        "fastest_gemm_s": {kind: round(value, 2) for kind, value in fastest.items()},
        "experts_hit": sum(count > 0 for layer in counts for count in layer),
        "experts": sum(map(len, counts)),
        "tokens_per_s": round(tokens / result["wall_s"], 3),
        "loaded_anon_gib": round(loaded_gib, 2),
        "layer_anon_gib": round((after_layers[-1] - after_layers[0]) / (len(counts) - 1), 4),
        "checkpoint_gb": round(written / 1e9, 2),
        "trained_parameters": trained,
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    with_huge_pages()
    model, numbers = "gpt_oss_20b", []
    for argument in sys.argv[1:]:
        if argument.startswith("model="):
            model = argument.removeprefix("model=")
        else:
            numbers.append(argument)
    settings = settings_from(numbers, DEFAULTS)
    if model not in SHAPES:
        raise SystemExit(f"model={model} is unknown; known: {', '.join(SHAPES)}")
    all_layers = SHAPES[model][0]
    settings["layers"] = settings["layers"] or all_layers
    if settings["layers"] < 2:
        raise SystemExit(
            "layers must be at least 2: one layer does not show what the next one adds"
        )
    torch.set_num_threads(settings["threads"])
    # The weights go with the process, however it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="gptoss-ft-full-size-") as folder:
        config = released_config(model, settings["layers"])
        result = {"benchmark": "full_size", "model": model, **settings}
        result |= run(Path(folder), config, settings)
    result["whole"] = extrapolate(result, result["layer_anon_gib"], all_layers)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
