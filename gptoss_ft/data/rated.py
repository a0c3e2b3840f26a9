"""Preference pairs and rated answers in supervised training: refused, or their good side alone."""

from __future__ import annotations

from dataclasses import replace

from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import Conversation, Feedback, Preference

TIED = "ties: both completions have the same score"
CHOSEN = "preference pairs of which only the chosen completion is trained"
GOOD = "answers rated good, trained without their rating"
BAD = "answers rated bad, as data.on_rated=good says"


def good_side(
    example: Preference | Feedback, where: str, options: DataOptions, counts: Counts
) -> Conversation | None:
    """Returns the prompt with its good completion, None where there is none; the rest is counted.

    Raises:
        DataError: it has not been asked for.
    """
    is_pair = isinstance(example, Preference)
    if options.on_rated == "refuse":
        kind, recipe = ("a preference pair", "lora") if is_pair else ("a rated answer", "kto")
        mend = f"train it as such with dpo={recipe}_20b; data.on_rated=good trains the good side"
        raise DataError(Problem(f"this row is {kind}, which sft does not train", where, mend=mend))
    if isinstance(example, Preference):
        if example.tied:
            counts.dropped[TIED] += 1
            return None
        counts.changed[CHOSEN] += 1
        good = example.chosen
    else:
        if not example.label:
            counts.dropped[BAD] += 1
            return None
        counts.changed[GOOD] += 1
        good = example.completion
    return replace(example.prompt, messages=(*example.prompt.messages, *good))
