"""A question, tools, and the calls that answer it in a column of their own, as xLAM's rows are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState, decoded
from gptoss_ft.data.layouts.asked import Asked, Row, asked, folded, handed_on, named, prompt_of
from gptoss_ft.data.layouts.layout import Layout

CALLS = ("answers", "tool_calls", "function_calls", "calls")
_CALLS = frozenset(CALLS)


class _Plan(NamedTuple):
    calls: str
    asked: Asked


def _plan(row: Row) -> _Plan | None:
    if folded(tuple(row)).isdisjoint(_CALLS):
        return None
    names = named(row)
    calls = [names[name] for name in CALLS if name in names and _are_calls(row[names[name]])]
    if len(calls) != 1 or "tools" not in names:
        return None
    found = asked(row, names, frozenset(calls))
    return _Plan(calls[0], found) if found.question else None


def _are_calls(raw: Any) -> bool:
    calls = decoded(raw)
    return isinstance(calls, list) and bool(calls) and all(map(_is_call, calls))


def _is_call(call: Any) -> bool:
    return isinstance(call, Mapping) and ("arguments" in call or "function" in call)


def fits(row: Row) -> bool:
    """Returns whether a row has a question, tools, and nothing but calls as its answer."""
    return _plan(row) is not None


def reads(row: Row) -> frozenset[str]:
    """Names the columns of a row that fits."""
    plan = _plan(row)
    return frozenset() if plan is None else plan.asked.columns | {plan.calls}


def convert(row: Row, state: RowState) -> dict[str, Any]:
    """Writes a row as messages, of which the last one makes the calls."""
    plan = _plan(row)
    if plan is None:
        return dict(row)
    prompt = prompt_of(row, plan.asked, state)
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    answer = {"role": "assistant", "content": "", "tool_calls": decoded(row[plan.calls])}
    return {"messages": [*turns, answer]} | handed_on(row, plan.asked)


LAYOUTS = (Layout("a question and the calls that answer it", fits, convert, reads),)
