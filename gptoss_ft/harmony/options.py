"""The settings of the renderer."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field

from gptoss_ft.errors import Problem
from gptoss_ft.harmony.messages import EFFORTS

CHANNELS = ("analysis", "commentary", "final", "tool_call")
TURNS = ("all", "last")
TOOL_CALL_HEADERS = ("role", "channel")
CONSTRAINS = ("token", "text", "none")


def _full_weights() -> dict[str, float]:
    return dict.fromkeys(CHANNELS, 1.0)


@dataclass
class RenderOptions:
    """How conversations are rendered and what of them is trained (config group `data.render`).

    Attributes:
        identity: first line of the system message; empty for none.
        knowledge_cutoff: year and month named there; empty for none.
        date: the current date named there, YYYY-MM-DD; pinned, so that a file renders alike on
            every day; empty for none.
        effort: reasoning effort of rows that name none: low, medium or high.
        turns: all trains every assistant turn, last only what follows the last user message.
        tool_call_header: where a call names its recipient: role writes `to=functions.f` after
            `<|start|>assistant`, as openai-harmony does; channel writes it after the channel's
            name, as the examples of the specification show it.
        constrain: how the header of a function call says that its arguments are JSON: token
            writes ` <|constrain|>json`, text writes ` json`, none writes nothing. Calls of
            builtin tools say ` code` whatever is chosen.
        weights: loss weight per channel: analysis, commentary, final, tool_call. Multiplied with
            the weight of the message. The token that ends a message has the message's weight.
    """

    identity: str = "You are ChatGPT, a large language model trained by OpenAI."
    knowledge_cutoff: str = "2024-06"
    date: str = "2025-06-28"
    effort: str = "medium"
    turns: str = "all"
    tool_call_header: str = "role"
    constrain: str = "token"
    weights: dict[str, float] = field(default_factory=_full_weights)

    def problems(self, key: str) -> list[Problem]:
        """Finds values out of range; `key` is the config prefix, such as `data.render`."""
        problems = []
        for name, value, allowed in (
            ("effort", self.effort, EFFORTS),
            ("turns", self.turns, TURNS),
            ("tool_call_header", self.tool_call_header, TOOL_CALL_HEADERS),
            ("constrain", self.constrain, CONSTRAINS),
        ):
            if value not in allowed:
                mend = f"write one of {', '.join(allowed)}"
                problems.append(Problem(f"unknown {name}", f"{key}.{name}", repr(value), mend))
        if self.date and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.date):
            mend = "write YYYY-MM-DD"
            problems.append(Problem("not a date", f"{key}.date", repr(self.date), mend))
        return problems + self._weight_problems(f"{key}.weights")

    def _weight_problems(self, key: str) -> list[Problem]:
        problems = []
        for channel, weight in self.weights.items():
            where = f"{key}.{channel}"
            if channel not in CHANNELS:
                near = difflib.get_close_matches(channel, CHANNELS, 1)
                mend = f"did you mean {near[0]}?" if near else f"use one of {', '.join(CHANNELS)}"
                problems.append(Problem("unknown channel", where, mend=mend))
            elif not (math.isfinite(weight) and weight >= 0):
                mend = "write a number of at least 0"
                problems.append(Problem("weight out of range", where, str(weight), mend))
        return problems
