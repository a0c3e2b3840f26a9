"""The plots of RESULTS.md, as SVG files, from stored results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gptoss_ft.files import atomic_file

Result = Mapping[str, Any]


def write_plots(folder: Path, results: Mapping[str, Result]) -> dict[str, list[str]]:
    """Writes what can be drawn; returns the names of the files by benchmark."""
    written: dict[str, list[str]] = {}
    for name, draw in _PLOTS.items():
        if name in results:
            file = f"{name}.svg"
            with atomic_file(folder / file) as temporary, matplotlib.rc_context(_STYLE):
                # Without date and random ids the same figures give the same file.
                draw(results[name]).savefig(temporary, format="svg", metadata={"Date": None})
            written[name] = [file]
    return written


_STYLE = {
    "svg.hashsalt": "gptoss-ft",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def _figure(columns: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(3.6 * columns, 3), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    return figure, list(axes)


def _scaling(result: Result) -> Figure:
    """Step and arithmetic over each axis, both logarithmic."""
    figure, panels = _figure(len(result["axes"]))
    for panel, (name, found) in zip(panels, result["axes"].items(), strict=True):
        for key, label, style in (("cpu_s", "step", "o-"), ("arithmetic_s", "arithmetic", "s--")):
            panel.plot(found["values"], found[key], style, label=label)
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="CPU s")
        panel.set_xticks(found["values"], [str(value) for value in found["values"]])
        panel.minorticks_off()
        panel.legend()
    return figure


def _attention(result: Result) -> Figure:
    """A sliding layer's time over length."""
    figure, (panel,) = _figure(1)
    times = {int(length): seconds for length, seconds in result["sliding_cpu_s"].items()}
    panel.plot(list(times), list(times.values()), "o-", label="sliding layer")
    first, seconds = next(iter(times.items()))
    panel.plot(list(times), [seconds * n / first for n in times], "--", label="linear")
    panel.set(xscale="log", yscale="log", xlabel="tokens", ylabel="CPU s")
    panel.set_xticks(list(times), [str(n) for n in times])
    panel.minorticks_off()
    panel.legend()
    return figure


def _full_size(result: Result) -> Figure:
    """Where the step's CPU time goes, beside its bare matrix products."""
    figure, (panel,) = _figure(1)
    for bar, seconds in enumerate((result["breakdown_s"], result["fastest_gemm_s"])):
        bottom = 0.0
        for part, value in seconds.items():
            panel.bar(bar, value, bottom=bottom, edgecolor="white", label=part)
            bottom += value
    panel.set_xticks([0, 1], ["step", "products"])
    panel.set(ylabel="CPU s", xlim=(-0.6, 3.4))
    panel.legend(fontsize=6, loc="upper right")
    return figure


def _survival(result: Result) -> Figure:
    """Error relative to the delta's own effect, over the relative size of the delta."""
    figure, (panel,) = _figure(1)
    for method, found in result["rho"].items():
        sizes = {float(size): value for size, value in found.items() if value > 0}
        panel.plot(list(sizes), list(sizes.values()), "o-", label=method, markersize=3)
    panel.axhline(1, color="black", linewidth=0.5)
    panel.set(
        xscale="log", yscale="log", xlabel="relative size of the delta", ylabel="relative error"
    )
    panel.legend(fontsize=7)
    return figure


_PLOTS: dict[str, Callable[[Result], Figure]] = {
    "attention": _attention,
    "survival": _survival,
    "scaling": _scaling,
    "full_size_20b": _full_size,
}
