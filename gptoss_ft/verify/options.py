"""The settings of `verify`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gptoss_ft.errors import Problem


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
        rows: how many of them to use, from the first one on.
        keep: the smallest share of the fine-tune that passes.
        answers: on how many rows greedy answers are compared.
        max_new_tokens: an answer is cut off there.
        spot_checks: how many tensors of each kind are computed a second time.
        out: JSON file for the result, or empty.
    """

    base: str = ""
    adapter: Any = ""
    weights: list[float] = field(default_factory=list)
    candidate: str = ""
    expert_adapter: str = ""
    prompts: str = ""
    rows: int = 32
    keep: float = 0.9
    answers: int = 4
    max_new_tokens: int = 64
    spot_checks: int = 2
    out: str = ""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapter folders, in the order given."""
        given = self.adapter if isinstance(self.adapter, (list, tuple)) else [self.adapter]
        return tuple(str(name) for name in given if name)

    def problems(self) -> list[Problem]:
        """Lists missing settings and values out of range."""
        found = [
            Problem("must be given", name, mend=f"say {name}={what}")
            for name, what in (
                ("base", "DIR"),
                ("candidate", "DIR"),
                ("adapter", "DIR"),
                ("prompts", "FILE"),
            )
            if not (self.adapters if name == "adapter" else getattr(self, name))
        ]
        if not 0 <= self.keep <= 1:
            found.append(Problem("must be between 0 and 1", "keep", str(self.keep)))
        for name, least in (("rows", 1), ("answers", 0), ("max_new_tokens", 1), ("spot_checks", 1)):
            if getattr(self, name) < least:
                value = str(getattr(self, name))
                found.append(Problem(f"must be at least {least}", name, value))
        if self.weights and len(self.weights) != len(self.adapters):
            counts = f"{len(self.weights)} weights for {len(self.adapters)} adapters"
            found.append(Problem("every adapter needs one weight", "weights", counts))
        return found
