"""One answer and whether it is a good one, in the columns of other toolkits and of exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState, decoded, shell_list
from gptoss_ft.data.formats.ratings import read_label
from gptoss_ft.data.layouts.asked import (
    Asked,
    Row,
    asked,
    first,
    folded,
    handed_on,
    is_turns,
    named,
    prompt_of,
    split_answer,
)
from gptoss_ft.data.layouts.layout import Layout

ANSWERS = ("completion", "response", "output", "answer", "generation", "reply")
# Columns that say nothing but whether the answer is a good one. Others that may (`rating`,
# `feedback`, `preference`) count where their value says so in words.
LABELS = (
    "label",
    "kto_tag",
    "kto_label",
    "is_good",
    "is_desirable",
    "desirable",
    "is_preferred",
    "thumbs_up",
)
VERDICTS = ("thumbs", "thumb", "feedback", "user_feedback", "human_feedback", "rating", "vote")
_RATING = frozenset((*LABELS, *VERDICTS))
OPPOSITE = ("thumbs_down",)
# BeaverTails' question, another than how good an answer is.
SAFETY = "is_safe"


class _Plan(NamedTuple):
    label: str
    answer: str | None
    asked: Asked
    names: dict[str, str]


def _plan(row: Row) -> _Plan | None:
    if folded(tuple(row)).isdisjoint(_RATING):
        return None
    # False is a label, so empty columns are told from those that hold it by `named`.
    names = named(row)
    label = first(names, LABELS) or _verdict(row, names)
    if label is None:
        return None
    answer = first(names, ANSWERS)
    used = frozenset(name for name in (label, answer) if name)
    found = asked(row, names, used)
    answered = found.turns is not None and bool(split_answer(decoded(row[found.turns]))[1])
    return _Plan(label, None if answered else answer, found, names)


def _verdict(row: Row, names: Mapping[str, str]) -> str | None:
    """Returns a column that rates in words: a number there may be of any scale."""
    for name in VERDICTS:
        raw = row[names[name]] if name in names else None
        if isinstance(raw, bool) or (isinstance(raw, str) and not raw.strip().isnumeric()):
            return names[name] if read_label(raw) is not None else None
    return None


def fits(row: Row) -> bool:
    """Returns whether a row has one answer, what it answers, and a label."""
    plan = _plan(row)
    if plan is None or "rejected" in plan.names or "chosen" in plan.names:
        return False
    return bool(plan.asked.turns or (plan.asked.question and plan.answer))


def reads(row: Row) -> frozenset[str]:
    """Names the columns of a row that fits."""
    plan = _plan(row)
    if plan is None:
        return frozenset()
    sides = frozenset(name for name in (plan.label, plan.answer) if name)
    return sides | plan.asked.columns | _opposites(row, plan)


def _opposites(row: Row, plan: _Plan) -> frozenset[str]:
    """Returns the columns that say the same as the label, the other way round."""
    good = read_label(row[plan.label])
    found = (plan.names[name] for name in OPPOSITE if name in plan.names)
    return frozenset(name for name in found if read_label(row[name]) is (not good))


def convert(row: Row, state: RowState) -> dict[str, Any]:
    """Writes a row as prompt, completion and label."""
    plan = _plan(row)
    if plan is None:
        return dict(row)
    label = _label(row[plan.label], plan.label, state)
    prompt = prompt_of(row, plan.asked, state)
    if plan.answer is None:
        prompt, completion = split_answer(list(prompt))
    else:
        completion = _completion(row[plan.answer])
    return {"prompt": prompt, "completion": completion, "label": label} | handed_on(row, plan.asked)


def _completion(raw: Any) -> Any:
    stored = decoded(raw) if isinstance(raw, str) else raw
    if isinstance(stored, Mapping) and is_turns([stored]):
        return [stored]
    return stored if is_turns(stored) else raw


def _label(raw: Any, name: str, state: RowState) -> bool:
    label = read_label(raw)
    if label is None:
        mend = "write true for a good answer and false for a bad one; where the column does not "
        mend += f"rate the answer, {shell_list('data.ignore', [name])} trains without it"
        state.refuse(f"`{name}` is neither true nor false", name, raw, mend)
    return bool(label)


def fits_safety(row: Row) -> bool:
    """Returns whether a row says of an answer only that it is safe."""
    if SAFETY not in folded(tuple(row)):
        return False
    names = named(row)
    return SAFETY in names and first(names, LABELS) is None and bool(first(names, ANSWERS))


def reads_safety(row: Row) -> frozenset[str]:
    """Names the columns of such a row; all, since it is refused."""
    return frozenset(map(str, row))


def refuse_safety(row: Row, state: RowState) -> dict[str, Any]:
    """Refuses such a row unless the user says that safe answers are the good ones."""
    names = named(row)
    safe, answer = names[SAFETY], first(names, ANSWERS)
    prompt = asked(row, names, frozenset((str(answer),))).question
    others = [names[name] for name in ("category",) if name in names]
    columns = f"'data.columns={{prompt: {prompt}, completion: {answer}, label: {safe}}}'"
    ignored = shell_list("data.ignore", [safe, *others])
    mend = f"{columns} takes safe answers as good ones, with dpo=kto_20b; {ignored} trains them all"
    state.refuse(
        f"`{safe}` says that an answer is safe, not that it is good", safe, row[safe], mend
    )
    return dict(row)


LAYOUTS = (
    Layout("rated answer", fits, convert, reads),
    Layout("safe answer", fits_safety, refuse_safety, reads_safety),
)
