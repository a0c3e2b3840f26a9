"""How much of a small update survives each way of storing base + update.

    python benchmarks/survival.py [width=1024] [rank=16] [rows=1024] [seed=0] [plot=FILE.svg]

One expert matrix `[width, width]` on the MXFP4 grid, an update of rank `rank` and of relative size
epsilon = |Δ| / |W|, and

    rho = |x (W + Δ - stored)ᵀ| / |x Δᵀ|

over fresh inputs x: 0 keeps the update, 1 has lost it, more than 1 is worse than not merging. The
update is aligned with the inputs as a trained one is: A is made of sums of inputs with random
signs, as gradient steps make it. Inputs are Gaussian with a mean that holds a fifth of their
square and with variances 1/k along random directions, k = 1..width; no sign of alignment, variance
or mean reaches the methods but through `rows` calibration inputs of their own.

Methods: `ceil` and `floor` derive fresh scales (the smallest power of two that holds the largest
value, and the rule of the OCP specification); `nearest` keeps the base's scales; `nearest_bias`
adds the bias correction; `gptq` is what `merge experts=gptq` does; `bf16` and `adapter` as named.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gptoss_ft.adapters.combine import LoraFactors
from gptoss_ft.files import atomic_file
from gptoss_ft.merge.calibrate import round_expert
from gptoss_ft.mxfp4.codec import BLOCK_SIZE, floor_scales, pack, unpack
from gptoss_ft.mxfp4.gptq import bias_correction
from gptoss_ft.mxfp4.rounding import nearest

EPSILONS = ("0.001", "0.003", "0.01", "0.03", "0.1")
MEAN_SHARE = 0.2
FRESH_ROWS = 4096


@dataclass(frozen=True)
class Case:
    """A base matrix, an update, and inputs.

    Attributes:
        blocks, scales: W.
        update: Δ.
        fit: calibration inputs `[rows, width]`.
        fresh: inputs that rho is measured on.
    """

    blocks: torch.Tensor
    scales: torch.Tensor
    update: LoraFactors
    fit: torch.Tensor
    fresh: torch.Tensor

    @property
    def delta(self) -> torch.Tensor:
        """Δ, `[width, width]`."""
        return (self.update.B @ self.update.A).mul_(self.update.scaling)

    @property
    def wanted(self) -> torch.Tensor:
        """W + Δ."""
        return unpack(self.blocks, self.scales) + self.delta


Stored = tuple[torch.Tensor, torch.Tensor | float]


def build(width: int, rank: int, rows: int, seed: int) -> tuple[Case, float]:
    """The case with an update of scaling 1, and its epsilon."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    values = normal(width, width) / math.sqrt(width)
    scales = floor_scales(values)
    blocks = pack(values, scales)
    directions = torch.linalg.qr(normal(width, width))[0]
    variances = 1 / torch.arange(1, width + 1)
    variances *= width * (1 - MEAN_SHARE) / variances.sum()
    mean = normal(width)
    mean *= math.sqrt(width * MEAN_SHARE) / mean.norm()

    def inputs(count: int) -> torch.Tensor:
        return normal(count, width) * variances.sqrt() @ directions.T + mean

    A = normal(rank, rows) @ inputs(rows) / math.sqrt(rows)
    update = LoraFactors(A, normal(width, rank), 1.0)
    case = Case(blocks, scales, update, inputs(rows), inputs(FRESH_ROWS))
    return case, float(case.delta.norm() / unpack(blocks, scales).norm())


def fresh_ceil(case: Case) -> Stored:
    """Scales anew: the smallest powers of two under which no value exceeds 6."""
    wanted = case.wanted
    largest = wanted.unflatten(-1, (-1, BLOCK_SIZE)).abs().amax(-1)
    scales = (torch.ceil(torch.log2(largest / 6)) + 127).to(torch.uint8)
    return unpack(pack(wanted, scales), scales), 0.0


def fresh_floor(case: Case) -> Stored:
    """Scales anew by the rule of the OCP specification."""
    scales = floor_scales(case.wanted)
    return unpack(pack(case.wanted, scales), scales), 0.0


def kept_nearest(case: Case) -> Stored:
    """The base's scales, nearest values."""
    update = case.update
    rounded = nearest(case.blocks, case.scales, update.A, update.B, update.scaling)
    return unpack(rounded.blocks, case.scales), 0.0


def kept_nearest_bias(case: Case) -> Stored:
    """The same, its mean error put into the bias."""
    stored = kept_nearest(case)[0]
    return stored, bias_correction(case.wanted - stored, case.fit.mean(0))


def kept_gptq(case: Case) -> Stored:
    """The base's scales, GPTQ and bias correction."""
    inputs = case.fit, case.fresh[:0]
    bias = torch.zeros(len(case.scales))
    found = round_expert(inputs, case.blocks, case.scales, case.update, bias)
    return unpack(found.rounded.blocks, case.scales), found.correction


METHODS: dict[str, Callable[[Case], Stored]] = {
    "ceil": fresh_ceil,
    "floor": fresh_floor,
    "nearest": kept_nearest,
    "nearest_bias": kept_nearest_bias,
    "gptq": kept_gptq,
    "bf16": lambda case: (case.wanted.to(torch.bfloat16).float(), 0.0),
    "adapter": lambda case: (case.wanted, 0.0),
}


def rho(case: Case, stored: Stored) -> float:
    """Error of the output relative to the update's effect, on fresh inputs."""
    weight, bias = stored
    error = case.fresh @ (case.wanted - weight).T - bias
    return float(error.norm() / (case.fresh @ case.delta.T).norm())


def draw(table: dict[str, dict[str, float]], file: Path) -> None:
    """Draws the table as SVG, both axes logarithmic; the same figures give the same file."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "gptoss-ft", "font.size": 9, "legend.frameon": False}
    with atomic_file(file) as temporary, matplotlib.rc_context(style):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for method, row in table.items():
            if any(row.values()):  # zero has no place on a logarithmic axis
                axes.loglog([float(key) for key in row], list(row.values()), "o-", label=method)
        axes.axhline(1, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xlabel("relative size of the update, |Δ| / |W|")
        axes.set_ylabel("rho: error of the output / effect of the update")
        axes.legend(ncols=2)
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Runs the benchmark and prints its result."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    plot = given.pop("plot", "")
    settings = {"width": 1024, "rank": 16, "rows": 1024, "seed": 0}
    settings |= {name: int(value) for name, value in given.items()}
    torch.set_num_threads(1)
    case, size = build(**settings)
    table: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    for epsilon in EPSILONS:
        update = LoraFactors(case.update.A, case.update.B, float(epsilon) / size)
        sized = Case(case.blocks, case.scales, update, case.fit, case.fresh)
        for method, store in METHODS.items():
            table[method][epsilon] = round(rho(sized, store(sized)), 4)
        print(epsilon, {m: row[epsilon] for m, row in table.items()}, file=sys.stderr)
    if plot:
        draw(table, Path(plot))
    print(json.dumps({"benchmark": "survival", "rho": table, **settings}))


if __name__ == "__main__":
    main()
