"""The settings of the renderer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gptoss_ft.errors import Problem
from gptoss_ft.harmony.messages import EFFORTS
from gptoss_ft.validation import (
    Range,
    choice_field,
    dotted,
    field_problems,
    number_problem,
    text_field,
    unknown_choice,
)

CHANNELS = ("analysis", "commentary", "final", "tool_call")
TURNS = ("all", "last")
TOOL_CALL_HEADERS = ("role", "channel")
CONSTRAINS = ("token", "text", "none")


def _full_weights() -> dict[str, float]:
    return dict.fromkeys(CHANNELS, 1.0)


@dataclass
class RenderOptions:
    """Rendering of conversations, and what of them is trained (config group `data.render`).

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

    identity: str = text_field("You are ChatGPT, a large language model trained by OpenAI.")
    knowledge_cutoff: str = "2024-06"
    date: str = "2025-06-28"
    effort: str = choice_field("medium", EFFORTS, "unknown effort")
    turns: str = choice_field("all", TURNS, "unknown turns")
    tool_call_header: str = choice_field("role", TOOL_CALL_HEADERS, "unknown tool_call_header")
    constrain: str = choice_field("token", CONSTRAINS, "unknown constrain")
    weights: dict[str, float] = field(default_factory=_full_weights)

    def problems(self, key: str = "") -> list[Problem]:
        """Finds values out of range; `key` is the config prefix, such as `data.render`."""
        problems = field_problems(self, key)
        if self.date and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.date):
            where, mend = dotted(key, "date"), "write YYYY-MM-DD"
            problems.append(Problem("not a date", where, repr(self.date), mend))
        return problems + self._weight_problems(dotted(key, "weights"))

    def _weight_problems(self, key: str) -> list[Problem]:
        problems: list[Problem | None] = []
        for channel, weight in self.weights.items():
            where = dotted(key, channel)
            if channel in CHANNELS:
                problems.append(number_problem(where, weight, Range(least=0)))
            else:
                problems.append(unknown_choice("unknown channel", where, channel, CHANNELS))
        return [problem for problem in problems if problem]
