"""RESULTS.md from stored results: every figure beside its target, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from catalogue import BENCHMARKS, Benchmark, Target

HEADER = """# Benchmark results

Written by `make bench` (`benchmarks/results.py`) from `benchmarks/results/*.json`; do not edit.
The command of a section repeats it, and its docstring says exactly what is measured. Where nothing
else is said, times are CPU seconds of all threads, ratios are medians of interleaved repeats, and
memory is resident memory of one process.
"""
FASTER_WITH_TOKENS = 1.4
Entry = Mapping[str, Any]


def page_text(entries: Mapping[str, Entry], plots: Mapping[str, Sequence[str]]) -> str:
    """The page.

    Args:
        entries: stored results by name, as `results.run` returns them.
        plots: names of image files by name of the benchmark they belong to.
    """
    parts = [HEADER, _machines(entries), _overview(entries)]
    for benchmark in BENCHMARKS:
        if benchmark.name in entries:
            parts.append(_section(benchmark, entries[benchmark.name]))
            parts += [f"![{benchmark.title}]({file})\n" for file in plots.get(benchmark.name, ())]
            parts += _NOTES[benchmark.name](entries) if benchmark.name in _NOTES else []
    missing = [benchmark.name for benchmark in BENCHMARKS if benchmark.name not in entries]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _machines(entries: Mapping[str, Entry]) -> str:
    """One line for every machine and set of versions, and what was run there."""
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        found, versions = entry["machine"], entry["versions"]
        line = (
            f"{found['processor']}, {found['cores']} cores, {found['vector_units']}, "
            f"{found['memory_gib']} GiB, {found['system']}; "
            + ", ".join(f"{library} {version}" for library, version in versions.items())
        )
        groups.setdefault(line, []).append(f"{name} ({entry['date']})")
    return "".join(f"- **{line}**: {', '.join(names)}\n" for line, names in groups.items())


def _overview(entries: Mapping[str, Entry]) -> str:
    """The targets that are not met, or that all are."""
    missed = [
        f"- {benchmark.title}: {target.meaning}, {_number(value)} (target {_bound(target)})\n"
        for benchmark in BENCHMARKS
        for target, value in _targets(benchmark, entries.get(benchmark.name))
        if not target.met(value)
    ]
    gain = _tokens_gain(entries, lambda result: result["cpu_s"])
    if gain is not None and gain < FASTER_WITH_TOKENS:
        missed.append(
            f"- gpt-oss-20b at full size: tokens per second of the long step over the short one's, "
            f"{gain:.2f} (target ≥ {FASTER_WITH_TOKENS})\n"
        )
    if not missed:
        return "All targets of what was run are met.\n"
    return "Targets that are not met:\n\n" + "".join(missed)


def _targets(benchmark: Benchmark, entry: Entry | None) -> Iterator[tuple[Target, float]]:
    for target in benchmark.targets if entry else ():
        value: Any = entry and entry["result"]
        for part in target.key.split("/"):
            value = value[part]
        yield target, value


def _section(benchmark: Benchmark, entry: Entry) -> str:
    lines = [f"## {benchmark.title}", "", f"`{entry['command']}`", ""]
    rows = [
        (target.key, target.meaning, _number(value), _bound(target), _yes(target.met(value)))
        for target, value in _targets(benchmark, entry)
    ]
    if rows:
        lines += [*table(("figure", "meaning", "measured", "target", "met"), rows), ""]
    shown = {target.key for target in benchmark.targets}
    flat = dict(_flat(entry["result"]))
    others = [(key, value) for key, value in flat.items() if key not in {*shown, "benchmark"}]
    lines += ["<details><summary>All figures</summary>", "", *table(("figure", "value"), others)]
    return "\n".join([*lines, "", "</details>", ""])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dictionaries with their paths; a list is one leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list):
        yield path, ", ".join(map(_number, value))
    else:
        yield path, _number(value)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _bound(target: Target) -> str:
    return f"{'≥' if target.relation == '>=' else '≤'} {target.bound:g}"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _scaling_table(entries: Mapping[str, Entry]) -> list[str]:
    """The measured points of every axis side by side."""
    parts = []
    for axis, found in entries["scaling"]["result"]["axes"].items():
        columns = ("values", "cpu_s", "arithmetic_s", "over_arithmetic")
        points = zip(*(found[column] for column in columns), strict=True)
        rows = [[_number(value) for value in point] for point in points]
        head = (axis, "step, CPU s", "its arithmetic, CPU s", "step over arithmetic")
        text = (
            f"Cost grows with {axis} to the power {found['exponent']:.2f}, "
            f"its arithmetic to {found['arithmetic_exponent']:.2f}.\n"
        )
        parts.append("\n".join([*table(head, rows), "", text]))
    return parts


def _tokens_gain(
    entries: Mapping[str, Entry], seconds: Callable[[Mapping[str, Any]], float]
) -> float | None:
    """Tokens per second of the long full-size step over the short one's; None without both."""
    names = ("full_size_20b", "full_size_20b_2048")
    if not all(name in entries for name in names):
        return None
    short, long = (entries[name]["result"] for name in names)
    return (long["tokens"] / seconds(long)) / (short["tokens"] / seconds(short))


def _tokens_note(entries: Mapping[str, Entry]) -> list[str]:
    """What the long step gains, by every clock."""
    gains = {
        "by CPU time": _tokens_gain(entries, lambda result: result["cpu_s"]),
        "by the clock": _tokens_gain(entries, lambda result: result["wall_s"]),
        "without the kernel's part": _tokens_gain(
            entries, lambda result: result["cpu_s"] - result["system_s"]
        ),
        "for the matrix products alone, which is the limit on this machine": _tokens_gain(
            entries, lambda result: sum(result["fastest_gemm_s"].values())
        ),
    }
    found = ", ".join(f"{gain:.2f} {how}" for how, gain in gains.items() if gain is not None)
    if not found:
        return []
    return [
        f"Tokens per second at 2,048 over 512 tokens: {found}; target ≥ {FASTER_WITH_TOKENS}.\n"
    ]


def _extrapolation_note(entries: Mapping[str, Entry]) -> list[str]:
    """The arithmetic from the measured layers to the whole model."""
    found = entries["full_size_120b"]["result"]
    whole, layers, loss = found["whole"], found["layers"], found["breakdown_s"]["loss"]
    count = whole["layers"]
    state = 12 * found["trained_parameters"] / layers / 2**30
    added = count - layers
    return [
        f"The whole model, {count} layers, extrapolated from {layers}. Everything but the loss "
        f"({loss:.1f} s) is done once a layer:\n\n"
        f"    CPU time: {loss:.1f} + ({found['cpu_s']:.1f} - {loss:.1f}) · {count} / {layers} "
        f"= {whole['cpu_s']:.0f} s for a step on {found['tokens']:,} tokens\n\n"
        f"Each further layer keeps {found['layer_anon_gib']:.3f} GiB of activations and "
        f"{state:.3f} GiB of adapter and AdamW moments (12 bytes for each of its "
        f"{found['trained_parameters'] // layers:,} parameters; gradients come while activations "
        "go):\n\n"
        f"    Memory: {found['anon_gib']:.2f} + {added} · ({found['layer_anon_gib']:.3f} + "
        f"{state:.3f}) = {whole['anon_gib']:.2f} GiB, beside file pages that may be evicted\n"
    ]


_NOTES = {
    "scaling": _scaling_table,
    "full_size_20b_2048": _tokens_note,
    "full_size_120b": _extrapolation_note,
}
