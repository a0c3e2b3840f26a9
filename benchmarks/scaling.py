"""How a training step's cost grows with tokens, experts and rank, against its bare arithmetic.

    python benchmarks/scaling.py [hidden=1024] [layers=4] [vocabulary=16384] [repeats=5] [threads=1]
                                 [tokens=N experts=N rank=N]

CPU seconds of an optimizer step of our trainer (half of the tokens trained, adapters on q, k, v, o
and every expert) on a mid-sized model of the released layout whose routing is spread over all
experts. One of tokens (128 to 2,048), experts (8 to 128) and rank (8 to 64) varies, the others are
those of `BASE`. The vocabulary is small so that the head does not hide the rest. Every point has a
process of its own; with tokens, experts and rank given, only that one is measured.

Steps follow one another as in training, so that each takes over the memory that the one before has
freed: in every repeat `UNCOUNTED` come first. (A virtual machine may give memory that has been free
for some seconds back to its host, and getting it again costs much more than clearing it.)

The arithmetic, in the same process right after the step: all matrix products (see `arithmetic.py`),
by the library that the step uses, with attention's, unpacking of every expert that is hit, forward
and backward, into one buffer, and clipping and AdamW on the adapter's parameters.

`exponent` is the least-squares slope of log cost over log value, `arithmetic_exponent` that of the
arithmetic, `excess` that of `over_arithmetic`, the median over the repeats of step over arithmetic.
Exits with 1 if one is above `TOLERANCE`, which is a tenth over the whole range. The last line is
one JSON object.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from arithmetic import Matrices, StepShape, score_products, seconds_of, step_seconds
from full_size import row_of
from laps import routed_pairs
from measure import Times, in_own_process, interleaved, settings_from, with_huge_pages
from synthetic import write_synthetic
from trainers import our_trainer, say, stepper

from gptoss_ft.model.experts.backends.tiled import TILE_VALUES
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.tiny import TinyOptions, tiny_config
from gptoss_ft.mxfp4.codec import unpack

DEFAULTS = {"hidden": 1024, "layers": 4, "vocabulary": 16_384, "repeats": 5, "threads": 1}
BASE = {"tokens": 512, "experts": 32, "rank": 8}
AXES = {
    "tokens": (128, 256, 512, 1024, 2048),
    "experts": (8, 16, 32, 64, 128),
    "rank": (8, 16, 32, 64),
}
ARITHMETIC = ("products", "unpack", "update")
UNCOUNTED = 2
TOLERANCE = 0.04  # 16 ** 0.04 = 1.12
Point = dict[str, int]


def points() -> dict[str, list[Point]]:
    """The points of every axis; the one they share is in each."""
    return {axis: [{**BASE, axis: value} for value in values] for axis, values in AXES.items()}


def config_of(point: Point, settings: dict[str, int]) -> dict[str, Any]:
    """config.json of the model of a point."""
    hidden = settings["hidden"]
    sizes = TinyOptions(
        layers=settings["layers"],
        hidden_size=hidden,
        intermediate_size=hidden,
        heads=hidden // 64,
        kv_heads=max(1, hidden // 512),
        experts=point["experts"],
    )
    return {**tiny_config(sizes), "vocab_size": settings["vocabulary"], "pad_token_id": 0}


@contextmanager
def built(point: Point, config: dict[str, Any]) -> Iterator[Any]:
    """Our trainer on a synthetic checkpoint, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="gptoss-ft-scaling-") as folder:
        write_synthetic(Path(folder), config)
        rows = datasets.Dataset.from_list([row_of(2, seed=1, vocabulary=config["vocab_size"])])
        yield our_trainer(Path(folder), rows, point["rank"])


def measure_point(trainer: Any, config: dict[str, Any], point: Point, repeats: int) -> Times:
    """CPU seconds of the step and of the parts of its arithmetic, in every repeat."""
    row = row_of(point["tokens"], seed=2, vocabulary=config["vocab_size"])
    batch = trainer.data_collator([row])
    counts = routed_pairs(trainer.model.get_base_model().model, point["experts"])
    step = stepper(trainer)
    step(batch)
    scored = point["tokens"] // 2
    shape = StepShape(config, [list(c) for c in counts], point["tokens"], scored, point["rank"])
    matrices, update = Matrices(), update_of(trainer)
    sides: dict[str, Callable[[], Any]] = {
        "earlier steps": lambda: [step(batch) for _ in range(UNCOUNTED)],
        "step": lambda: step(batch),
        "products": lambda: [
            step_seconds(shape, matrices),
            seconds_of(score_products(shape), matrices),
        ],
        "unpack": lambda: unpack_hit(trainer.model, shape),
        "update": update,
    }
    for name in ARITHMETIC:
        sides[name]()
    return interleaved(sides, repeats)


def unpack_hit(model: torch.nn.Module, shape: StepShape) -> None:
    """Every expert that is hit into one buffer of the size that the step uses, twice."""
    buffer = torch.empty(TILE_VALUES)
    blocks = [module for module in model.modules() if isinstance(module, PackedExperts)]
    for block, counts in zip(blocks, shape.counts, strict=True):
        for expert in [expert for expert, count in enumerate(counts) if count] * 2:
            for name in ("gate_up_proj", "down_proj"):
                packed = block.get_parameter(name)[expert]
                scales = block.get_parameter(f"{name}_scales")[expert]
                width = scales.shape[1] * 32
                rows = TILE_VALUES // width
                for part, scale in zip(packed.split(rows), scales.split(rows), strict=True):
                    unpack(part, scale, out=buffer[: len(part) * width].view(len(part), width))


def update_of(trainer: Any) -> Callable[[], None]:
    """Clipping and AdamW on tensors of the adapter's shapes."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    copies = [torch.nn.Parameter(torch.randn_like(p)) for p in trained]
    for copy in copies:
        copy.grad = torch.randn_like(copy)
    optimizer = torch.optim.AdamW(copies, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()

    return update


def slope(values: list[int], seconds: list[float]) -> float:
    """Of log seconds over log values."""
    logs = [math.log(s) for s in seconds]
    return statistics.linear_regression([math.log(v) for v in values], logs).slope


def axis_result(axis: str, measured: Sequence[Times]) -> dict[str, Any]:
    """Table and exponents of one axis."""
    values = list(AXES[axis])
    bare = [
        [sum(parts) for parts in zip(*(point[name] for name in ARITHMETIC), strict=True)]
        for point in measured
    ]
    over = [
        statistics.median(s / b for s, b in zip(point["step"], seconds, strict=True))
        for point, seconds in zip(measured, bare, strict=True)
    ]
    columns = {
        "cpu_s": [statistics.median(point["step"]) for point in measured],
        "arithmetic_s": [statistics.median(seconds) for seconds in bare],
        "over_arithmetic": over,
    }
    exponents = {
        name: round(slope(values, column), 3)
        for name, column in zip(
            ("exponent", "arithmetic_exponent", "excess"), columns.values(), strict=True
        )
    }
    rounded = {name: [round(value, 4) for value in column] for name, column in columns.items()}
    return {"values": values, **rounded, **exponents}


def alone(point: Point, settings: dict[str, int]) -> Times:
    """`measure_point` on a model of the point's shape."""
    torch.set_num_threads(settings["threads"])
    # The weights go with the process, however it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    config = config_of(point, settings)
    with built(point, config) as trainer:
        return measure_point(trainer, config, point, settings["repeats"])


def main() -> None:
    """Runs the benchmark, or one point of it, and prints the result."""
    with_huge_pages()
    given = settings_from(sys.argv[1:], {**dict.fromkeys(BASE, 0), **DEFAULTS})
    settings = {name: given[name] for name in DEFAULTS}
    point = {name: given[name] for name in BASE}
    if all(point.values()):
        print(json.dumps(alone(point, settings)))
        return
    if any(point.values()):
        raise SystemExit(f"one point needs all of {', '.join(BASE)}")
    measured: dict[tuple[int, ...], Times] = {}
    for point in [point for found in points().values() for point in found]:
        key = tuple(point.values())
        if key not in measured:
            say(f"measuring {point}")
            arguments = [f"{name}={value}" for name, value in {**point, **settings}.items()]
            measured[key] = in_own_process(__file__, *arguments)
    axes = {
        axis: axis_result(axis, [measured[tuple(point.values())] for point in found])
        for axis, found in points().items()
    }
    result = {"benchmark": "scaling", "axes": axes, "base": BASE, **settings}
    print(json.dumps(result))
    sys.exit(0 if all(axis["excess"] <= TOLERANCE for axis in axes.values()) else 1)


if __name__ == "__main__":
    main()
