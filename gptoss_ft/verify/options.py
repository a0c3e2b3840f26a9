"""Settings of `verify`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gptoss_ft.data.layouts.maps import map_problems
from gptoss_ft.errors import Problem
from gptoss_ft.validation import dotted, field_problems, number_field, path_field


@dataclass
class VerifyOptions:
    """The models to compare, and the rows to compare them on.

    Attributes:
        base: folder of the checkpoint that the adapters were trained on.
        adapter: folder of the adapter, or a list of folders.
        weights: how much of each adapter was merged, 1 each when empty.
        candidate: folder of the merged checkpoint.
        expert_adapter: folder of the separate expert adapter that runs on the candidate, or empty.
        prompts: file of conversations that were not trained on.
        map: how the columns of `prompts` are read, as in `data.map`.
        rows: how many of them to use, from the first one on.
        keep: the smallest share of the fine-tune that passes.
        answers: on how many rows greedy answers are compared.
        max_new_tokens: an answer is cut off there.
        spot_checks: how many tensors of each kind are computed a second time.
        out: JSON file for the result, or empty.
    """

    base: str = path_field()
    adapter: Any = path_field()
    weights: list[float] = field(default_factory=list)
    candidate: str = path_field()
    expert_adapter: str = path_field()
    prompts: str = path_field()
    map: str = path_field()
    rows: int = number_field(32, least=1)
    keep: float = number_field(0.9, least=0, most=1)
    answers: int = number_field(4, least=0)
    max_new_tokens: int = number_field(64, least=1)
    spot_checks: int = number_field(2, least=1)
    out: str = path_field()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapter folders, in the order given."""
        given = self.adapter if isinstance(self.adapter, (list, tuple)) else [self.adapter]
        return tuple(str(name) for name in given if name)

    def problems(self, key: str = "") -> list[Problem]:
        """Returns missing settings and values out of range."""
        needed = {"base": "DIR", "candidate": "DIR", "adapter": "DIR", "prompts": "FILE"}
        found = [
            Problem("must be given", dotted(key, name), mend=f"say {name}={what}")
            for name, what in needed.items()
            if not (self.adapters if name == "adapter" else getattr(self, name))
        ]
        found += [*field_problems(self, key), *map_problems(self.map, dotted(key, "map"))]
        if self.weights and len(self.weights) != len(self.adapters):
            counts = f"{len(self.weights)} weights for {len(self.adapters)} adapters"
            where = dotted(key, "weights")
            found.append(Problem("every adapter needs one weight", where, counts))
        return found
