"""Pairs whose two answers stand in columns of their own, the better one named as such."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState, decoded, shell_list
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.formats.preference import ELSEWHERE
from gptoss_ft.data.formats.ratings import SCORE_COLUMNS, SCORE_NAMES, read_number
from gptoss_ft.data.layouts.asked import (
    TURNS,
    Asked,
    Row,
    asked,
    folded,
    handed_on,
    is_turns,
    is_whole,
    named,
    prompt_of,
    split_answer,
    texts_of,
    with_system,
)
from gptoss_ft.data.layouts.layout import Layout

_WORDS = ("response", "answer", "completion", "output", "message", "messages", "text", "reply")
# The better and the worse answer. `positive` and `negative` are not among them: as often they are
# passages to be found or not.
SIDES = (
    ("chosen", "rejected"),
    *chain.from_iterable(
        ((f"chosen_{word}", f"rejected_{word}"), (f"{word}_chosen", f"{word}_rejected"))
        for word in _WORDS
    ),
    ("chosen_conversation", "rejected_conversation"),
    ("chosen_conversations", "rejected_conversations"),
    ("accepted", "rejected"),
    ("accepted_response", "rejected_response"),
    ("accepted_answer", "rejected_answer"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred_response", "dispreferred_response"),
    ("preferred_response", "rejected_response"),
    ("preferred_output", "dispreferred_output"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_output", "rejected_output"),
    ("winning_response", "losing_response"),
    ("better_response", "worse_response"),
    ("good_response", "bad_response"),
    ("good_answer", "bad_answer"),
    ("y_w", "y_l"),
    ("response_w", "response_l"),
    ("response_j", "response_k"),
    ("response", "rejected_response"),
    ("answer", "rejected_answer"),
    ("output", "rejected_output"),
    ("completion", "rejected_completion"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
    ("messages", "rejected"),
    ("conversations", "rejected_conversations"),
    ("conversations", "rejected_response"),
    ("conversations", "rejected"),
)
_LEFTS = frozenset(chosen for chosen, _ in SIDES)
# Columns of those who compared the answers, known from public datasets.
JUDGED = frozenset(["margin", "status", "preference_strength", "order", "labelling_model"])
# The same where all the answers or their ratings are there too: else they may be of the answer.
_JUDGED_LISTS_TEXT = """
    generations new_generations generation_model generation_models raw_generation_responses
    generation_prompt original_response original_chosen original_rejected rating ratings
    rationale rationales
"""
JUDGED_LISTS = frozenset(_JUDGED_LISTS_TEXT.split())
_LISTS = ("generations", "new_generations")
_RATINGS = ("ratings", "rating")
COPIES = "messages beside a pair not read: a copy of one of its sides"


class _Plan(NamedTuple):
    chosen: str
    rejected: str
    asked: Asked
    names: dict[str, str]

    @property
    def sides(self) -> frozenset[str]:
        return frozenset((self.chosen, self.rejected))


def _plan(row: Row) -> _Plan | None:
    if folded(tuple(row)).isdisjoint(_LEFTS):
        return None
    present = {fold(str(name)): name for name, value in row.items() if value is not None}
    for chosen, rejected in SIDES:
        if chosen in present and rejected in present:
            sides = present[chosen], present[rejected]
            names = named(row)
            whole = next((texts_of(row[name]) for name in sides if is_whole(row[name])), [])
            return _Plan(*sides, asked(row, names, frozenset(sides), whole), names)
    return None


def fits(row: Row) -> bool:
    """Returns whether two answers are named, and what they answer is there."""
    plan = _plan(row)
    if plan is None:
        return False
    sides = [row[plan.chosen], row[plan.rejected]]
    if not all(isinstance(side, str | list | Mapping) for side in sides):
        return False
    has_prompt = plan.asked.turns or plan.asked.question or any(is_whole(side) for side in sides)
    return bool(has_prompt)


def reads(row: Row) -> frozenset[str]:
    """Names the columns of a row that fits, those of its judges included."""
    plan = _plan(row)
    if plan is None:
        return frozenset()
    beside = {
        name
        for column, name in plan.names.items()
        if column in SCORE_NAMES or column in _judged(plan)
    }
    return plan.sides | plan.asked.columns | beside | _copies(row, plan)[0]


def convert(row: Row, state: RowState) -> dict[str, Any]:
    """Writes a row as prompt, chosen and rejected, or as two whole conversations."""
    plan = _plan(row)
    if plan is None:
        return dict(row)
    chosen, rejected = (_side(row[name]) for name in (plan.chosen, plan.rejected))
    copies, others = _copies(row, plan)
    for _ in copies:
        state.note(COPIES)
    for name in others - state.ignore:
        mend = f"say {shell_list('data.ignore', [name])} to train the pair alone"
        state.refuse(f"`{name}` is no copy of either side of the pair", name, row[name], mend)
    for name in sorted(_judged(plan) & plan.names.keys()):
        state.note(f"column `{plan.names[name]}` not read: it says how the answers were compared")
    if is_whole(chosen) or is_whole(rejected):
        written = _whole(row, plan.asked, chosen, rejected, state)
    else:
        written = {"prompt": prompt_of(row, plan.asked, state)}
        written |= {"chosen": chosen, "rejected": rejected}
    return written | handed_on(row, plan.asked) | _scores(row, plan, chosen, rejected)


def _side(raw: Any) -> Any:
    """Writes one answer as a text or a list of messages."""
    stored = decoded(raw) if isinstance(raw, str) else raw
    if isinstance(stored, Mapping) and is_turns([stored]):
        return [stored]
    return stored if is_turns(stored) else raw


def _whole(row: Row, found: Asked, chosen: Any, rejected: Any, state: RowState) -> dict[str, Any]:
    """Writes sides of which at least one holds the prompt."""
    said = texts_of(chosen if is_whole(chosen) else rejected)
    question = row[found.question] if found.question else None
    if isinstance(question, str) and not is_turns(question):
        if question.strip() not in map(str.strip, said):
            state.note(ELSEWHERE)
    elif question is not None and not _begins(said, texts_of(question)):
        mend = "begin both answers with the prompt, or leave it out of both"
        state.refuse("`chosen` does not begin with the prompt", str(found.question), mend=mend)
    if is_whole(chosen) and is_whole(rejected):
        sides = (with_system(row, found, list(side), state) for side in (chosen, rejected))
        return dict(zip(("chosen", "rejected"), sides, strict=True))
    if is_whole(chosen):
        prompt, chosen = split_answer(list(chosen))
    else:
        prompt, rejected = split_answer(list(rejected))
    prompt = with_system(row, found, prompt, state)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _copies(row: Row, plan: _Plan) -> tuple[frozenset[str], frozenset[str]]:
    """Finds message lists beside the pair: those that repeat one of its sides, and the others."""
    sides = [texts_of(_side(row[name])) for name in (plan.chosen, plan.rejected)]
    whole = any(is_whole(row[name]) for name in plan.sides)
    if not whole:
        return frozenset(), frozenset()
    found = {
        plan.names[name]
        for name in TURNS
        if name in plan.names and plan.names[name] not in plan.sides
    }
    copies = frozenset(
        name for name in found if any(_begins(side, texts_of(row[name])) for side in sides)
    )
    return copies, frozenset(found) - copies


def _begins(whole: list[str], part: list[str]) -> bool:
    return bool(part) and whole[: len(part)] == part


def _judged(plan: _Plan) -> frozenset[str]:
    lists = any(name in plan.names for name in (*_LISTS, *_RATINGS))
    return JUDGED | JUDGED_LISTS if lists else JUDGED


def _scores(row: Row, plan: _Plan, chosen: Any, rejected: Any) -> dict[str, Any]:
    """Returns the scores of both sides; an equal pair of them, where there are several."""
    found = [
        (row[plan.names[good]], row[plan.names[bad]])
        for good, bad in SCORE_COLUMNS
        if good in plan.names and bad in plan.names
    ]
    found = found or _listed_scores(row, plan, chosen, rejected)
    if not found:
        return {}
    equal = (pair for pair in found if read_number(pair[0]) == read_number(pair[1]))
    return dict(zip(("score_chosen", "score_rejected"), next(equal, found[0]), strict=True))


def _listed_scores(row: Row, plan: _Plan, chosen: Any, rejected: Any) -> list[tuple[Any, Any]]:
    """Returns the ratings of a list, told apart by the texts of the answers in another."""
    rated = next((decoded(row[plan.names[n]]) for n in _RATINGS if n in plan.names), None)
    texts = next((decoded(row[plan.names[n]]) for n in _LISTS if n in plan.names), None)
    if not isinstance(rated, list):
        return []
    if len(rated) == 2 and rated[0] == rated[1]:
        return [(rated[0], rated[1])]
    if not isinstance(texts, list) or len(texts) != len(rated):
        return []
    score_of = dict(zip(map(str, texts), rated, strict=True))
    ends = [
        side if isinstance(side, str) else (texts_of(side) or [""])[-1]
        for side in (chosen, rejected)
    ]
    scores = [score_of.get(end) for end in ends]
    return [] if None in scores else [(scores[0], scores[1])]


LAYOUTS = (Layout("pairs", fits, convert, reads),)
