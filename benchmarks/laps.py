"""Where a step's CPU time and memory go: laps between the parts of a model, and a memory watch."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

WATCH_SECONDS = 0.05


class Laps:
    """CPU seconds, all threads, by what ran since the lap before.

    Attributes:
        seconds: by name.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap as `name`'s."""
        now = time.process_time()
        self.seconds[name] += now - self._last
        self._last = now

    def restart(self) -> None:
        """Forgets everything."""
        self.seconds.clear()
        self._last = time.process_time()


def attach(decoder: nn.Module, laps: Laps) -> None:
    """Laps for every layer of a gpt-oss decoder, forward and backward.

    A part ends forward when its module returns, and backward when the gradient of its input is
    there, which is the output of the norm before it.
    """
    for layer in decoder.get_submodule("layers"):
        for norm, part, name in (
            ("input_layernorm", "self_attn", "attention"),
            ("post_attention_layernorm", "mlp", "experts"),
        ):
            _mark(layer.get_submodule(norm), laps, "forward other", f"backward {name}")
            _mark(layer.get_submodule(part), laps, f"forward {name}", "backward other")
    _mark(decoder.get_submodule("norm"), laps, "forward other", "loss")


def _mark(module: nn.Module, laps: Laps, forward: str, backward: str) -> None:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        laps.lap(forward)
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(lambda _: laps.lap(backward))

    module.register_forward_hook(hook)


def memory_gib() -> dict[str, float]:
    """Resident memory of this process by kind, GiB: anonymous, of files, and all; Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmRSS"))
    }
    kinds = {"anon": "RssAnon", "file": "RssFile", "rss": "VmRSS"}
    return {kind: int(found[field]) / 2**20 for kind, field in kinds.items()}


@contextmanager
def memory_watch() -> Iterator[dict[str, float]]:
    """Yields the largest of each `memory_gib` while the block runs, looking 20 times a second."""
    peaks, done = memory_gib(), threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_SECONDS):
            for kind, value in memory_gib().items():
                peaks[kind] = max(peaks[kind], value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def routed_pairs(decoder: nn.Module, experts: int) -> list[list[int]]:
    """A list that each forward fills anew with the pairs of every expert, layer by layer."""
    counts: list[list[int]] = []
    routers = [layer.get_submodule("mlp.router") for layer in decoder.get_submodule("layers")]

    def hook(module: nn.Module, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        if module is routers[0]:
            counts.clear()
        counts.append(torch.bincount(output[2].flatten(), minlength=experts).tolist())

    for router in routers:
        router.register_forward_hook(hook)
    return counts


def memory_after_layers(decoder: nn.Module) -> list[float]:
    """A list that each forward fills anew with the anonymous GiB after every layer."""
    found: list[float] = []
    layers = list(decoder.get_submodule("layers"))

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if module is layers[0]:
            found.clear()
        found.append(memory_gib()["anon"])

    for layer in layers:
        layer.register_forward_hook(hook)
    return found
