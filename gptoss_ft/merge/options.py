"""Settings of a merge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_ft.data.layouts.maps import map_problems
from gptoss_ft.errors import Problem
from gptoss_ft.validation import choice_field, dotted, field_problems, number_field, path_field

TARGETS = ("mxfp4", "bf16")
EXPERTS = ("copy", "adapter", "gptq", "nearest")


@dataclass
class MergeOptions:
    """Base, adapters, target, and how far to go.

    Attributes:
        base: folder of the checkpoint that the adapters were trained on.
        adapter: folder of the adapter, or a list of folders.
        out: folder to write; must not exist, be empty, or hold this same merge, begun.
        to: `mxfp4` (released layout) or `bf16` (dense).
        experts: with `to=mxfp4`, what becomes of trained experts: `adapter` writes them as an
            adapter of their own beside the merged rest, `gptq` rounds them against calibration
            rows, `nearest` rounds them to the nearest value and needs `force`; `copy` is for
            adapters that train no expert. Empty: `copy` or `adapter`, whichever fits.
        weights: how much of each adapter to add, 1 each when empty.
        calibration: file of conversations for `gptq`, best the training data.
        map: how the columns of `calibration` are read, as in `data.map`.
        calibration_rows: how many of its conversations to use, from the first one on.
        statistics: measure what the merge changed, for the report.
        force: accept a rounding that is known to lose much of the fine-tune.
        max_shard_gb: largest shard in units of 10^9 bytes; what cannot be parted is larger.
        dry_run: show the plan only.
    """

    base: str = path_field()
    adapter: Any = path_field()
    out: str = path_field()
    to: str = choice_field("mxfp4", TARGETS, "unknown target")
    experts: str = choice_field("", ("", *EXPERTS), "unknown treatment of experts")
    weights: list[float] = field(default_factory=list)
    calibration: str = path_field()
    map: str = path_field()
    calibration_rows: int = number_field(256, least=1)
    statistics: bool = True
    force: bool = False
    max_shard_gb: float = number_field(5.0, above=0, finite=False)
    dry_run: bool = False

    @property
    def adapters(self) -> tuple[Path, ...]:
        """The adapter folders, in the order given."""
        names = self.adapter if isinstance(self.adapter, (list, tuple)) else [self.adapter]
        return tuple(Path(str(name)).expanduser() for name in names if name not in ("", None))

    @property
    def adapter_weights(self) -> tuple[float, ...]:
        """The weight of each adapter."""
        return tuple(self.weights) or (1.0,) * len(self.adapters)

    def problems(self, key: str = "") -> list[Problem]:
        """Returns everything that is wrong about the values themselves; the disk is not read."""
        return [
            *self._folder_problems(key),
            *field_problems(self, key),
            *self._experts_problems(key),
            *self._weight_problems(key),
            *map_problems(self.map, dotted(key, "map")),
        ]

    def _folder_problems(self, key: str) -> Iterator[Problem]:
        for name in ("base", "adapter", "out"):
            if not (self.adapters if name == "adapter" else getattr(self, name)):
                yield Problem("must name a folder", dotted(key, name), mend=f"say {name}=DIR")
        for path, count in Counter(map(str, self.adapters)).items():
            if count > 1:
                where = dotted(key, "adapter")
                yield Problem("named more than once", where, path, "weigh it with weights=")

    def _experts_problems(self, key: str) -> Iterator[Problem]:
        experts, calibration = dotted(key, "experts"), dotted(key, "calibration")
        if self.experts in EXPERTS and self.to == "bf16":
            mend = "leave it out: bfloat16 holds base and update together"
            yield Problem("only to=mxfp4 has a choice", experts, self.experts, mend)
        elif self.experts == "gptq" and not self.calibration:
            mend = "say calibration=FILE with conversations like the training data"
            yield Problem("gptq needs rows to calibrate on", calibration, mend=mend)
        if self.calibration and self.experts != "gptq":
            mend = "say experts=gptq, or leave it out"
            yield Problem("only experts=gptq calibrates", calibration, self.calibration, mend)
        if self.map and not self.calibration:
            mend = "say calibration=FILE, or leave it out"
            yield Problem(
                "only calibration rows are read by a map", dotted(key, "map"), self.map, mend
            )

    def _weight_problems(self, key: str) -> Iterator[Problem]:
        where = dotted(key, "weights")
        if self.weights and len(self.weights) != len(self.adapters):
            found = f"{len(self.weights)} weights for {len(self.adapters)} adapters"
            yield Problem("every adapter needs one weight", where, found)
        for weight in self.weights:
            if not math.isfinite(weight) or weight == 0:
                mend = "leave out an adapter that is not wanted"
                yield Problem("must be a finite number, not 0", where, str(weight), mend)
