"""Detection of a row's format by its columns.

A column whose value is null does not count. The table below is all there is to it: a row is in the
one format whose columns it has; `text` beside another format's columns is a copy of it, and
`label` beside prompt and completion makes the row KTO. A row with the columns of two formats is in
neither, and so is one of `harmony`, which looks like plain text: say the format then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import decoded, nearest, quote
from gptoss_ft.errors import Problem

# format, the columns it must have. Responses rows have `items`, or a list as `input` or `output`.
COLUMNS = (
    ("chat", ("messages",)),
    ("openai_preference", ("input", "preferred_output", "non_preferred_output")),
    ("prompt_completion", ("prompt", "completion")),
    ("trl_preference", ("chosen", "rejected")),
    ("kto", ("prompt", "completion", "label")),
    ("alpaca", ("instruction", "output")),
    ("sharegpt", ("conversations",)),
    ("responses", ("items",)),
    ("text", ("text",)),
)
ITEM_LISTS = ("input", "output")
# The second gives way to the first where a row has the columns of both.
GIVES_WAY = {"kto": "prompt_completion"}


def detect(row: Mapping[str, Any]) -> str | None:
    """Returns the name of the row's format; None when it fits none, or more than one."""
    found = _fitting(row)
    return found[0] if len(found) == 1 else None


def _fitting(row: Mapping[str, Any]) -> list[str]:
    given = {name for name, value in row.items() if value is not None}
    found = [name for name, columns in COLUMNS if given.issuperset(columns)]
    maybe_items = "responses" not in found and "instruction" not in given
    if maybe_items and not given.isdisjoint(ITEM_LISTS) and _has_item_list(row):
        found.append("responses")
    beaten = {GIVES_WAY.get(name) for name in found} | ({"text"} if len(found) > 1 else set())
    return [name for name in found if name not in beaten]


def _has_item_list(row: Mapping[str, Any]) -> bool:
    return any(isinstance(decoded(row.get(name)), list) for name in ITEM_LISTS)


def undetected(row: Mapping[str, Any], where: str) -> Problem:
    """Explains why `detect` returned None, and which format the row comes nearest to."""
    columns = [str(name) for name, value in row.items() if value is not None]
    found = _fitting(row)
    if len(found) > 1:
        mend = f"say which one with data.format: {' or '.join(found)}"
        what = f"the row fits several formats: {', '.join(found)}"
        return Problem(what, where, quote(columns), mend)
    formats = "; ".join(f"{name} ({', '.join(needed)})" for name, needed in COLUMNS)
    advice = _advice(tuple(columns))
    mend = f"{advice}. The formats and the columns they need: {formats}"
    return Problem("the row fits no format", where, quote(columns, 200), mend)


def _advice(columns: tuple[str, ...]) -> str:
    """Names the format that lacks the smallest share of its columns, and how to complete it."""
    best, best_share, best_steps = "", 0.0, [""]
    for name, needed in COLUMNS:
        steps, share = [], 0.0
        for column in needed:
            near = nearest(column, columns)
            share += 1.0 if column in columns else 0.9 if near else 0.0
            if column not in columns:
                steps.append(f"rename `{near}` to `{column}`" if near else f"add `{column}`")
        if share / len(needed) > best_share:
            best, best_share, best_steps = name, share / len(needed), steps
    if not best:
        return "rename the columns to those of a format"
    return f"nearest is {best}: {' and '.join(best_steps)}"
