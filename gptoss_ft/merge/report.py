"""Plans and results of a merge as tables to read and as JSON."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptoss_ft.errors import Problem
from gptoss_ft.files import atomic_file, write_json
from gptoss_ft.merge.planned import MergeAction, MergePlan
from gptoss_ft.merge.statistics import TensorStatistics

REPORT_NAME = "merge_report.json"
TABLE_NAME = "merge_report.txt"
FORMAT = 1
LARGEST_RHO = 0.5
_HEADS = ("epsilon", "changed", "max error", "saturated", "rho")


def plan_lines(plan: MergePlan) -> list[str]:
    """Formats the plan as a short table, one line per action."""
    return [
        *_sources(plan),
        f"out      {plan.options.out}",
        "",
        *_actions(plan),
        "",
        f"shards: {len(plan.shards)}",
        f"free:   {_size(plan.free_bytes)}",
    ]


def _sources(plan: MergePlan) -> list[str]:
    options = plan.options
    experts = "MXFP4" if plan.checkpoint.is_packed else "dense"
    choice = f" experts={options.experts}" if options.experts else ""
    return [
        f"base     {options.base} ({experts} experts, {_size(plan.checkpoint.nbytes)})",
        *(
            f"adapter  {adapter.path} ({len(adapter.updates)} low-rank updates, "
            f"{len(adapter.trained)} trained tensors, weight {weight:g})"
            for adapter, weight in zip(plan.adapters, options.adapter_weights, strict=True)
        ),
        f"target   to={options.to}{choice}",
    ]


def _actions(plan: MergePlan) -> list[str]:
    rows = [(name, str(total["tensors"]), _size(total["bytes"])) for name, total in _totals(plan)]
    return table(("action", "tensors", "size"), rows)


def _totals(plan: MergePlan) -> Iterator[tuple[str, dict[str, int]]]:
    yield from plan.totals().items()
    yield "all", {"tensors": sum(1 for _ in plan.tensors), "bytes": plan.nbytes}


def tensor_lines(plan: MergePlan, speeds: dict[MergeAction, float]) -> list[str]:
    """Formats the plan tensor by tensor: what happens, how large the result is, how long it takes.

    Args:
        plan: what will be done.
        speeds: bytes of output per CPU second, by action.
    """
    rows, seconds = [], 0.0
    for shard in plan.files:
        for tensor in shard.tensors:
            took = tensor.nbytes / speeds[tensor.action]
            seconds += took
            rows.append((tensor.name, tensor.action, _size(tensor.nbytes), f"{took:.2f} s"))
    return [
        *table(("tensor", "action", "size", "time"), rows),
        "",
        f"estimated time: {_duration(seconds)}, if the disk keeps up",
    ]


def report_value(plan: MergePlan, statistics: dict[str, TensorStatistics]) -> dict[str, Any]:
    """Builds merge_report.json: what the merge did to every tensor that it changed."""
    actions = {tensor.name: tensor.action.value for tensor in plan.tensors}
    tensors = {
        name: {"action": actions[name], **asdict(statistics[name])} for name in sorted(statistics)
    }
    return {
        "format": FORMAT,
        "to": plan.options.to,
        "experts": plan.options.experts,
        "actions": plan.totals(),
        "largest_rho": max((s.rho for s in statistics.values() if s.rho is not None), default=None),
        "tensors": tensors,
    }


def write_report(folder: Path, plan: MergePlan, statistics: dict[str, TensorStatistics]) -> None:
    """Writes the report as JSON, and as a table of all changed tensors."""
    write_json(folder / REPORT_NAME, report_value(plan, statistics))
    lines = [*_sources(plan), "", *_actions(plan), "", *statistics_lines(statistics)]
    with atomic_file(folder / TABLE_NAME) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def statistics_lines(statistics: dict[str, TensorStatistics]) -> list[str]:
    """Formats one line for every changed tensor."""
    rows = [(name, *_cells([statistics[name]])) for name in sorted(statistics, key=_natural)]
    return [*table(("tensor", *_HEADS), rows), "", *_LEGEND]


def summary_lines(statistics: dict[str, TensorStatistics]) -> list[str]:
    """Formats one line for every kind of tensor, layers taken together, the worst of each
    number.
    """
    kinds: dict[str, list[TensorStatistics]] = defaultdict(list)
    for name in sorted(statistics, key=_natural):
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append(statistics[name])
    rows = [(kind, str(len(items)), *_cells(items)) for kind, items in kinds.items()]
    return [*table(("tensors", "count", *_HEADS), rows), "", *_LEGEND]


_LEGEND = (
    "epsilon: size of the update relative to the weights",
    "changed: values that differ from the base; blocks of 32 values in MXFP4",
    "max error: largest |merged - (W + update)|",
    "rho: error of the layer's output relative to the update's own effect, on calibration rows;",
    "     0 keeps all of the fine-tune, at 1 it is gone",
)


def _cells(items: Sequence[TensorStatistics]) -> tuple[str, ...]:
    saturated = [item.saturated for item in items if item.saturated is not None]
    rhos = [item.rho for item in items if item.rho is not None]
    return (
        f"{max(item.epsilon for item in items):.2e}",
        f"{sum(item.changed for item in items) / sum(item.parts for item in items):.2%}",
        f"{max(item.max_error for item in items):.2e}",
        str(sum(saturated)) if saturated else "",
        f"{max(rhos):.3f}" if rhos else "",
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def rho_problems(statistics: dict[str, TensorStatistics]) -> list[Problem]:
    """Finds tensors whose rounding loses more than half of the update's effect."""
    return [
        Problem(
            "rounding loses too much of the fine-tune here",
            name,
            f"rho {item.rho:.3f}, where {LARGEST_RHO} is the most",
            "experts=adapter keeps all of it; more calibration rows may help; "
            "force=true finishes this merge as it is",
        )
        for name, item in statistics.items()
        if item.rho is not None and item.rho > LARGEST_RHO
    ]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligns rows under heads, the first column to the left and the others to the right."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.3f} GB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
