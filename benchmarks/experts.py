"""One expert block, forward and backward, against a dense frozen one and against PEFT.

    python benchmarks/experts.py [tokens=512] [hidden=1024] [experts=32] [rank=8] [repeats=7]

CPU seconds of the same seeded block (top-4 routing, intermediate = hidden, gradients of input,
routing weights and both low-rank factors) on one thread, interleaved; ratios are medians:

- `over_dense_frozen`: ours over a tight loop on dense float32 weights without any LoRA: our own
  function with the unpacking taken out;
- `speedup_peft`: stock `GptOssExperts` with grouped_mm under PEFT's `target_parameters`, no
  checkpointing, over ours. Its gradients are compared with ours (`max_rel_grad_error`);
- `gemm_fraction`: the bare matrix products on dense weights, by the library that ours uses, over
  ours;
- `unpack_gb_s`: float32 written per second by each way of unpacking, into a reused buffer.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_ft.adapters.experts import register_packed_experts
from gptoss_ft.model.cpu.matmul import put_product
from gptoss_ft.model.experts.backends.base import PackedWeight, split_halves
from gptoss_ft.model.experts.backends.tiled import TiledBackend
from gptoss_ft.model.experts.module import HALVES, PackedExperts
from gptoss_ft.model.experts.routing import ExpertChunk
from gptoss_ft.mxfp4.codec import floor_scales, pack, unpack, unpack_by_table
from gptoss_ft.mxfp4.kernel import SWITCH, compiled_kernel

TOP_K = 4


class Block(nn.Module):
    """A place for `experts`, as PEFT wants a module around its targets."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.experts(*arguments)


class DenseBackend(TiledBackend):
    """The backend of a CPU on weights that are dense already."""

    def __init__(self, dense: dict[int, torch.Tensor]) -> None:
        """Takes the weights `[E, out, in]` of each projection by its number of halves."""
        super().__init__()
        self.dense = dense

    def _tiles(
        self, weight: PackedWeight, chunk: ExpertChunk
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        yield slice(0, weight.out), self.dense[weight.scales.shape[1]][chunk.experts[0]]


def build(settings: dict[str, int]) -> tuple[PackedExperts, GptOssExperts, GptOssConfig]:
    """The same random experts packed, and dense in transformers' module."""
    hidden, experts = settings["hidden"], settings["experts"]
    config = GptOssConfig(
        hidden_size=hidden,
        intermediate_size=hidden,
        num_local_experts=experts,
        num_experts_per_tok=TOP_K,
        experts_implementation="grouped_mm",
    )
    packed, dense = PackedExperts(config), GptOssExperts(config)
    for name in ("gate_up_proj", "down_proj"):
        shape = (experts, getattr(packed, name).shape[1], hidden)
        values = torch.randn(shape) / hidden**0.5
        scales = floor_scales(values)
        blocks, bias = pack(values, scales), torch.randn(shape[:2])
        getattr(packed, name).data, getattr(packed, f"{name}_scales").data = blocks, scales
        getattr(packed, f"{name}_bias").data = bias
        getattr(dense, f"{name}_bias").data = bias.clone()
        getattr(dense, name).data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return packed, dense.requires_grad_(False), config


def with_lora(experts: nn.Module, rank: int) -> nn.Module:
    """The experts under PEFT, with seeded factors."""
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )
    register_packed_experts(config)
    model = get_peft_model(Block(experts), config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.03
    return model


def step(model: nn.Module, inputs: tuple[torch.Tensor, ...], direction: torch.Tensor) -> Any:
    """One forward and backward; returns the gradients by name."""
    x, indices, weights = inputs
    leaves = {n: p for n, p in model.named_parameters() if p.requires_grad}
    leaves |= {"x": x, "weights": weights}
    output = model(x, indices, weights)
    return dict(
        zip(leaves, torch.autograd.grad(output, list(leaves.values()), direction), strict=True)
    )


def bare_products(counts: list[int], weights: dict[int, torch.Tensor]) -> Callable[[], None]:
    """The four products of every expert and nothing else."""
    hidden = weights[1].shape[2]
    rows = max(counts)
    x, z, dx = torch.randn(rows, hidden), torch.randn(rows, 2 * hidden), torch.empty(rows, hidden)

    def run() -> None:
        for expert, n in enumerate(counts):
            gate_up, down = weights[2][expert], weights[1][expert]
            put_product(z[:n], x[:n], gate_up.T)
            put_product(dx[:n], x[:n], down.T)
            put_product(dx[:n], x[:n], down)
            put_product(dx[:n], z[:n], gate_up)

    return run


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of one call, all threads."""
    before = time.process_time()
    work()
    return time.process_time() - before


def unpack_speeds(packed: PackedExperts, repeats: int) -> dict[str, float]:
    """GB of float32 per second for each way, on tiles of 1 MB."""
    width = packed.gate_up_proj.shape[2] * 32
    rows = min((1 << 18) // width, packed.gate_up_proj.shape[1])
    blocks, scales = packed.gate_up_proj[0, :rows], packed.gate_up_proj_scales[0, :rows]
    out = torch.empty(rows, width)
    ways: dict[str, Callable[[], Any]] = {
        "torch": lambda: unpack_by_table(blocks, scales, out),
        "transformers": lambda: convert_moe_packed_tensors(
            blocks[None], scales[None], dtype=torch.float32
        ),
    }
    if compiled_kernel() is not None:
        ways["kernel"] = lambda: unpack(blocks, scales, torch.float32, out)
    speeds = {}
    for name, way in ways.items():
        seconds = [cpu_seconds(lambda way=way: [way() for _ in range(50)]) for _ in range(repeats)]
        speeds[name] = round(50 * out.nbytes / 1e9 / statistics.median(seconds), 2)
    return speeds


def largest_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of two sets of gradients, tensor by tensor."""
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs)


def without_kernel(work: Callable[[], Any]) -> Any:
    """The same work with torch's operators only."""
    os.environ[SWITCH] = "0"
    try:
        return work()
    finally:
        del os.environ[SWITCH]


def main() -> None:
    """Runs the benchmark and prints its result."""
    settings = {"tokens": 512, "hidden": 1024, "experts": 32, "rank": 8, "repeats": 7}
    settings |= {k: int(v) for k, v in (argument.split("=") for argument in sys.argv[1:])}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    packed, dense, config = build(settings)
    tokens = settings["tokens"]
    logits, indices = torch.randn(tokens, settings["experts"]).topk(TOP_K)
    weights = logits.softmax(-1).requires_grad_()
    inputs = (torch.randn(tokens, settings["hidden"], requires_grad=True), indices, weights)
    direction = torch.randn(tokens, settings["hidden"])
    dense_weights: dict[int, torch.Tensor] = {}
    for name, halves in HALVES.items():
        values = unpack(getattr(packed, name), getattr(packed, f"{name}_scales"))
        dense_weights[halves] = split_halves(values, halves).flatten(1, 2).contiguous()
    frozen = PackedExperts(config)
    frozen.load_state_dict(packed.state_dict())
    frozen.backend = lambda device: DenseBackend(dense_weights)
    counts = torch.bincount(indices.flatten(), minlength=settings["experts"]).tolist()
    ours, peft = with_lora(packed, settings["rank"]), with_lora(dense, settings["rank"])

    def saving(save: bool) -> Any:
        packed.save_pre_activation = save
        return step(ours, inputs, direction)

    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: saving(True),
        "ours_torch_path": lambda: without_kernel(lambda: saving(True)),
        "ours_recompute": lambda: saving(False),
        "dense_frozen": lambda: step(frozen, inputs, direction),
        "gemm": bare_products(counts, dense_weights),
        "peft": lambda: step(peft, inputs, direction),
    }
    error = largest_error(sides["ours"](), sides["peft"]())
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings["repeats"]):
        for name, work in sides.items():
            times[name].append(cpu_seconds(work))

    def ratio(above: str, below: str) -> float:
        pairs = zip(times[above], times[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    result = {
        "benchmark": "experts",
        "over_dense_frozen": ratio("ours", "dense_frozen"),
        "over_dense_frozen_torch_path": ratio("ours_torch_path", "dense_frozen"),
        "speedup_peft": ratio("peft", "ours"),
        "speedup_peft_torch_path": ratio("peft", "ours_torch_path"),
        "recompute_over_save": ratio("ours_recompute", "ours"),
        "gemm_fraction": ratio("gemm", "ours"),
        "unpack_gb_s": unpack_speeds(packed, settings["repeats"]),
        "cpu_s": {name: round(statistics.median(found), 4) for name, found in times.items()},
        "max_rel_grad_error": error,
        **settings,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
