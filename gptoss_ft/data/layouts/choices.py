"""Two answers side by side, and a column that says which is the better one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState, decoded, shell_list
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.formats.ratings import read_number
from gptoss_ft.data.layouts.asked import (
    Asked,
    Row,
    asked,
    folded,
    handed_on,
    is_turns,
    is_whole,
    named,
    prompt_of,
)
from gptoss_ft.data.layouts.layout import Layout

_WORDS_TEXT = """
    response answer completion output conversation generation summary reply candidate
"""
_WORDS = tuple(_WORDS_TEXT.split())
_MARKS = (("a", "b"), ("0", "1"), ("1", "2"))
# The columns of both answers, and what tells them apart.
ANSWERS = (
    *chain.from_iterable(
        ((f"{word}_{a}", f"{word}_{b}", a, b), (f"{word}{a}", f"{word}{b}", a, b))
        for word in _WORDS
        for a, b in _MARKS
    ),
    ("human_ref_a", "human_ref_b", "a", "b"),
)
_LEFTS = frozenset(left for left, *_ in ANSWERS)
# How the better answer may be called: by its column, or by its author.
_KINDS = (*_WORDS, "model", "assistant", "option")
# Columns that name the better answer.
_NAMES_BETTER_TEXT = """
    winner preference preferred preferred_response preferred_answer preferred_output
    preferred_index preferred_id preferred_model chosen choice chosen_response better
    better_response better_answer better_response_id better_id best best_response best_answer
    safer_response_id human_preference human_choice selected selected_response verdict judgement
    judgment label labels
"""
NAMES_BETTER = frozenset(_NAMES_BETTER_TEXT.split())
# From -3 to 3: below 0 the first answer is the better one, above it the second.
STRENGTHS = frozenset(("overall_preference", "preference_strength"))
# One column per outcome, 1 in the one that holds: left, right, equal.
ONE_HOT = ("winner_model_a", "winner_model_b", "winner_tie")
# A number here may be the place of an answer, or say whether the first one is better.
DOUBTFUL = frozenset(("label", "labels"))
_TIES_TEXT = """
    tie tied equal same draw both neither bothbad both_bad tie_(bothbad) tie_both_bad
"""
TIES = frozenset(_TIES_TEXT.split())
SCORES = ("score", "rating", "reward")
# What is told of the answers, their authors and their judges besides, in public datasets.
_BESIDE_TEXT = """
    individual_preference preference_statement preference_elaboration margin confidence
    three_most_similar_preferences all_preferences_unprocessed judge judge_hash anony
    conv_metadata category_tag is_code is_refusal dedup_tag dataset full_conversation
    evaluation_order evaluation_session_id score_ratio seconds_difference upvote_ratio
    justification explanation tstamp
"""
BESIDE = frozenset(_BESIDE_TEXT.split())
_MARKED_TEXT = """
    model score rating reward tokens quotes critique feedback created_at_utc c_root_id
"""
MARKED = frozenset(_MARKED_TEXT.split())
NO_TIE, EQUAL = 1.0, 0.0


class _Plan(NamedTuple):
    left: str
    right: str
    marks: tuple[str, str]
    asked: Asked
    names: dict[str, str]

    @property
    def says(self) -> list[str]:
        """The folded columns that name the better answer."""
        return [name for name in self.names if name in NAMES_BETTER or name in STRENGTHS]


def _plan(row: Row) -> _Plan | None:
    if folded(tuple(row)).isdisjoint(_LEFTS):
        return None
    names = named(row)
    for left, right, a, b in ANSWERS:
        if left in names and right in names:
            columns = names[left], names[right]
            return _Plan(*columns, (a, b), asked(row, names, frozenset(columns)), names)
    return None


def fits(row: Row) -> bool:
    """Returns whether there are two answers and something that says which is the better one."""
    plan = _plan(row)
    if plan is None:
        return False
    both = (row[plan.left], row[plan.right])
    has_prompt = plan.asked.turns or plan.asked.question or all(map(is_whole, both))
    return bool(has_prompt) and bool(plan.says or _one_hot(plan) or _score_columns(plan))


def reads(row: Row) -> frozenset[str]:
    """Names the columns of a row that fits, those of its judges included."""
    plan = _plan(row)
    if plan is None:
        return frozenset()
    said = {plan.names[name] for name in (*plan.says, *ONE_HOT) if name in plan.names}
    opposite = {plan.names["rejected"]} if _names_rejected(row, plan) else set()
    beside = {name for column, name in plan.names.items() if _is_beside(column, plan)}
    return frozenset((plan.left, plan.right)) | plan.asked.columns | said | opposite | beside


def _is_beside(column: str, plan: _Plan) -> bool:
    word, _, mark = column.rpartition("_")
    of_answer = tuple(
        f"{before}{fold(answer)}_" for answer in (plan.left, plan.right) for before in ("", "is_")
    )
    return (
        column in BESIDE or (mark in plan.marks and word in MARKED) or column.startswith(of_answer)
    )


def convert(row: Row, state: RowState) -> dict[str, Any]:
    """Writes a row as prompt, chosen and rejected; equal answers get equal scores."""
    plan = _plan(row)
    if plan is None:
        return dict(row)
    better = _better(row, plan, state)
    for column, name in plan.names.items():
        if _is_beside(column, plan) and column not in _scored(plan):
            state.note(f"column `{name}` not read: it says how the answers were compared")
    prompt = prompt_of(row, plan.asked, state)
    sides = [_answer(row[name], prompt, name, state) for name in (plan.left, plan.right)]
    scores = _score_columns(plan)
    numbers = [read_number(row[name]) for name in scores] if scores else [NO_TIE, EQUAL]
    if better == "tie" or None in numbers:
        numbers = [EQUAL, EQUAL if better == "tie" else NO_TIE]
    elif better == "right" and not scores:
        numbers = [EQUAL, NO_TIE]
    if better == "right":
        sides, numbers = sides[::-1], numbers[::-1]
    written = {} if all(map(is_whole, sides)) else {"prompt": prompt}
    written |= {"chosen": sides[0], "rejected": sides[1]}
    given = dict(zip(("score_chosen", "score_rejected"), numbers, strict=True))
    return written | given | handed_on(row, plan.asked)


def _better(row: Row, plan: _Plan, state: RowState) -> str:
    """Returns left, right or tie; left too where a problem was noted."""
    says = [name for name in plan.says if plan.names[name] not in state.ignore]
    if len(says) > 1:
        columns = [plan.names[name] for name in says]
        advice = "; ".join(
            f"{shell_list('data.ignore', [other for other in columns if other != name])} "
            f"takes `{name}`"
            for name in columns
        )
        state.refuse(
            "several columns say which answer is the better one", found=columns, mend=advice
        )
        return "left"
    hot = _one_hot(plan)
    if not says and hot:
        return _hottest([row.get(name) for name in hot], hot[0], state)
    if not says:
        return _by_scores(row, _score_columns(plan), state)
    name = plan.names[says[0]]
    found = _named_better(row, row[name], plan, says[0])
    if found is None:
        # A number in a doubtful column may count from 0 or from 1.
        sides = (plan.left, plan.right) if says[0] in DOUBTFUL else plan.marks
        mend = f"write {sides[0]} or {sides[1]}, or tie, in every row"
        state.refuse(f"`{name}` does not say which answer is the better one", name, row[name], mend)
    return found or "left"


def _named_better(row: Row, raw: Any, plan: _Plan, column: str) -> str | None:
    """Reads the name, mark or strength of the better answer; None where it says neither."""
    number = read_number(raw)
    if column in STRENGTHS:
        return None if number is None else _signed(number)
    if column in DOUBTFUL and number is not None:
        known = fold(plan.left) == "human_ref_a" and number in (0, 1)
        return ("left" if number == 1 else "right") if known else None
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return None
    word = fold(str(int(number)) if number is not None and number == int(number) else str(raw))
    if word in TIES:
        return "tie"
    for side, answer, mark in zip(
        ("left", "right"), (plan.left, plan.right), plan.marks, strict=True
    ):
        model = row.get(plan.names.get(f"model_{mark}", ""))
        marked = {mark, *(f"{kind}_{mark}" for kind in _KINDS)}
        if word in marked or word == fold(answer) or (isinstance(model, str) and model == raw):
            return side
    return None


def _signed(number: float) -> str:
    return "tie" if number == 0 else "left" if number < 0 else "right"


def _one_hot(plan: _Plan) -> list[str]:
    names = [plan.names[name] for name in ONE_HOT if name in plan.names]
    return names if len(names) >= 2 else []


def _hottest(values: list[Any], key: str, state: RowState) -> str:
    numbers = [read_number(value) for value in values]
    if [number for number in numbers if number] != [1.0]:
        mend = "write 1 in one of the columns and 0 in the others"
        state.refuse("the columns of outcomes do not say one winner", key, values, mend)
        return "left"
    return ("left", "right", "tie")[numbers.index(1.0)]


_SCORED: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType(
    {marks: tuple(f"{word}_{mark}" for word in SCORES for mark in marks) for marks in _MARKS}
)


def _scored(plan: _Plan) -> tuple[str, ...]:
    answers = tuple(f"{fold(a)}_{word}" for word in SCORES for a in (plan.left, plan.right))
    return (*_SCORED[plan.marks], *answers)


def _score_columns(plan: _Plan) -> list[str]:
    """Returns the columns with the scores of both answers, or none."""
    scored = _scored(plan)
    for left, right in zip(scored[::2], scored[1::2], strict=True):
        if left in plan.names and right in plan.names:
            return [plan.names[left], plan.names[right]]
    return []


def _by_scores(row: Row, columns: list[str], state: RowState) -> str:
    numbers = [read_number(row[name]) for name in columns]
    if None in numbers or len(numbers) != 2:
        found = {name: row[name] for name in columns}
        state.refuse("the scores of the answers are no numbers", found=found, mend="write numbers")
        return "left"
    return _signed((numbers[1] or 0.0) - (numbers[0] or 0.0))


def _names_rejected(row: Row, plan: _Plan) -> bool:
    """Returns whether `rejected` is but the name of the answer that `chosen` does not name."""
    if not {"chosen", "rejected"} <= plan.names.keys():
        return False
    both = {
        _named_better(row, row[plan.names[name]], plan, name) for name in ("chosen", "rejected")
    }
    return both == {"left", "right"}


def _answer(raw: Any, prompt: Any, key: str, state: RowState) -> Any:
    """Writes one answer: a text, messages, or a text for each question of the prompt."""
    stored = decoded(raw)
    if isinstance(stored, Mapping) and is_turns([stored]):
        return [stored]
    questions = decoded(prompt)
    if isinstance(stored, list) and None in stored:
        mend = "delete the row, or say 'data.on_bad=drop'"
        state.refuse("an answer is missing", key, raw, mend)
        return raw
    many = isinstance(stored, list) and bool(stored) and all(isinstance(x, str) for x in stored)
    if not (many and isinstance(questions, list) and len(questions) == len(stored)):
        return stored if is_turns(stored) else raw
    if not all(isinstance(question, str) for question in questions):
        state.refuse("an answer for each question, but no questions", key, raw, "write messages")
        return raw
    pairs = zip(questions, stored, strict=True)
    return [
        {"role": role, "content": text}
        for turn in pairs
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


LAYOUTS = (Layout("two answers and a choice", fits, convert, reads, BESIDE),)
