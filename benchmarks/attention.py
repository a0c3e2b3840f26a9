"""Attention with sinks against transformers' eager attention, one layer, forward and backward.

    python benchmarks/attention.py [length=2048] [heads=16] [kv_heads=2] [repeats=5] [threads=1]

CPU seconds in float32 on the head width and window of gpt-oss, and its eight query heads to a key
head. `speedup_eager` is that of a full layer, the harder one; a sliding layer has its own. Both
sides get the same tensors and directions, repeats are interleaved, ratios are medians.
`length_exponent` is the slope of a sliding layer's time from 2k to 16k tokens, both axes
logarithmic. `max_error` is the largest relative error of an output or a gradient against eager's.
`gemm_fraction` is the time of the layer's seven products (two forward, five backward) of seen pairs
alone, at the speed of a square product in the same process, over the layer's time. The last line is
one JSON object.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from gptoss_ft.documents import whole_rows
from gptoss_ft.model.attention.sinks import sink_attention

HEAD_DIM = 64
WINDOW = 128
SCALING = HEAD_DIM**-0.5
LENGTHS = (2048, 4096, 8192, 16384)
Work = Callable[[], list[torch.Tensor]]


def layer_inputs(length: int, heads: int, kv_heads: int) -> list[torch.Tensor]:
    """Query, key, value and sinks of one row, in the memory order of gpt-oss."""
    generator = torch.Generator().manual_seed(length)
    tensors = [
        torch.randn(1, length, count, HEAD_DIM, generator=generator).transpose(1, 2)
        for count in (heads, kv_heads, kv_heads)
    ]
    tensors.append(torch.randn(heads, generator=generator))
    return [tensor.requires_grad_() for tensor in tensors]


def ours(inputs: list[torch.Tensor], window: int | None) -> Work:
    """Forward and backward of our attention; returns output and gradients."""
    documents, along = whole_rows(1, inputs[0].shape[2]), direction(inputs)

    def work() -> list[torch.Tensor]:
        output = sink_attention(*inputs, documents, SCALING, window).transpose(1, 2)
        return [output.detach(), *torch.autograd.grad(output, inputs, along)]

    return work


def eager(inputs: list[torch.Tensor], window: int | None) -> Work:
    """The same by transformers; its mask, which all layers share, is made beforehand."""
    query, key, value, sinks = inputs
    groups = query.shape[1] // key.shape[1]
    module: Any = SimpleNamespace(sinks=sinks, num_key_value_groups=groups, training=False)
    rule = sliding_window_causal_mask_function(window) if window else causal_mask_function
    mask = eager_mask(1, query.shape[2], query.shape[2], mask_function=rule)
    along = direction(inputs)

    def work() -> list[torch.Tensor]:
        output, _ = eager_attention_forward(module, query, key, value, mask, SCALING)
        return [output.detach(), *torch.autograd.grad(output, inputs, along)]

    return work


def direction(inputs: list[torch.Tensor]) -> torch.Tensor:
    """The gradient of the output that both sides get, `[1, length, heads, head_dim]`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(inputs[0].transpose(1, 2).shape, generator=generator)


def interleaved(sides: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each side, in turns, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, work in sides.items():
            before = time.process_time()
            work()
            if repeat:
                times[name].append(time.process_time() - before)
    return times


def median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def largest_error(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, theirs, strict=True))


def square_product() -> tuple[Work, float]:
    """A product of two square matrices, and its floating point operations."""
    size = 1536
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: [a @ b], 2.0 * size**3


def needed_operations(length: int, heads: int, window: int | None) -> float:
    """Floating point operations of forward and backward on the pairs that are seen."""
    reach = min(window or length, length)
    pairs = length * reach - reach * (reach - 1) / 2
    return 7 * 2.0 * HEAD_DIM * heads * pairs


def length_exponent(heads: int, kv_heads: int, repeats: int) -> tuple[float, dict[int, float]]:
    """Least-squares slope of log time over log length of a sliding layer, and the times."""
    sides = {str(n): ours(layer_inputs(n, heads, kv_heads), WINDOW) for n in LENGTHS}
    times = interleaved(sides, repeats)
    medians = {int(name): statistics.median(values) for name, values in times.items()}
    x = [math.log(n) for n in medians]
    y = [math.log(t) for t in medians.values()]
    return statistics.linear_regression(x, y).slope, medians


def main() -> None:
    """Runs the benchmark and prints its result."""
    settings = {"length": 2048, "heads": 16, "kv_heads": 2, "repeats": 5, "threads": 1}
    settings |= {k: int(v) for k, v in (argument.split("=") for argument in sys.argv[1:])}
    length, heads, kv_heads = settings["length"], settings["heads"], settings["kv_heads"]
    torch.set_num_threads(settings["threads"])
    inputs = layer_inputs(length, heads, kv_heads)
    product, operations = square_product()
    result: dict[str, Any] = {"benchmark": "attention"}
    errors, fractions, seconds = [], {}, {}
    for layer, window in (("full", None), ("sliding", WINDOW)):
        sides = {"ours": ours(inputs, window), "eager": eager(inputs, window), "gemm": product}
        errors.append(largest_error(sides["ours"](), sides["eager"]()))
        times = interleaved(sides, settings["repeats"])
        name = "speedup_eager" if window is None else "speedup_eager_sliding"
        result[name] = round(median_ratio(times["eager"], times["ours"]), 2)
        ideal = needed_operations(length, heads, window) / operations
        fractions[layer] = round(ideal * median_ratio(times["gemm"], times["ours"]), 3)
        seconds |= {
            f"{side}_{layer}": round(statistics.median(times[side]), 4)
            for side in ("ours", "eager")
        }
    slope, medians = length_exponent(heads, kv_heads, max(3, settings["repeats"] // 2))
    result |= {
        "length_exponent": round(slope, 3),
        "max_error": max(errors),
        "gemm_fraction": fractions,
        "cpu_s": seconds,
        "sliding_cpu_s": {n: round(value, 4) for n, value in medians.items()},
        **settings,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
