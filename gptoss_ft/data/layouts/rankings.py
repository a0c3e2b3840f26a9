"""Several answers to one question with ranks or scores: read as the best against the worst."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState, decoded, is_empty, shell_list
from gptoss_ft.data.formats.ratings import read_number
from gptoss_ft.data.layouts.asked import (
    Asked,
    Row,
    asked,
    first,
    folded,
    handed_on,
    named,
    prompt_of,
)
from gptoss_ft.data.layouts.layout import Layout

LISTS = ("completions", "answers", "responses", "generations", "candidates", "outputs")
TEXTS = ("response", "answer", "text", "completion", "output", "content", "generation")
# Per answer or per list, the first that is there. UltraFeedback's `overall_score` has a known fault
# (tens for ones), and its fine-grained score has not.
RANKS = ("rank", "ranks", "ranking", "rankings")
SCORES = (
    "fine_grained_score",
    "score",
    "scores",
    "rating",
    "ratings",
    "reward",
    "rewards",
    "pm_score",
    "overall_score",
)
# What is told of the answers besides, in public datasets.
_BESIDE_TEXT = """
    num_responses good_natured turns models generation_model generation_models rationales
    rationale correct_answers incorrect_answers raw_generation_responses generation_prompt
    labelling_model
"""
BESIDE = frozenset(_BESIDE_TEXT.split())
BEST = "several answers with ranks or scores, read as one pair: the best against the worst"
_TURNS = re.compile(r"\n\n(Human|Assistant): ?")


class _Plan(NamedTuple):
    answers: str
    measures: str | None
    asked: Asked
    names: dict[str, str]


def _plan(row: Row) -> _Plan | None:
    if folded(tuple(row)).isdisjoint(LISTS):
        return None
    names = named(row)
    answers = next((names[name] for name in LISTS if name in names), None)
    if answers is None or not isinstance(decoded(row[answers]), list):
        return None
    measures = first(names, (*RANKS, *SCORES))
    return _Plan(answers, measures, asked(row, names, frozenset((answers,))), names)


def fits(row: Row) -> bool:
    """Returns whether a question has several answers, each with a rank or a score."""
    plan = _plan(row)
    if plan is None or not (plan.asked.turns or plan.asked.question):
        return False
    if not {"chosen", "rejected"}.isdisjoint(plan.names):
        return False
    answers = decoded(row[plan.answers])
    if all(isinstance(answer, Mapping) for answer in answers):
        return len(answers) > 1 and all(_key(answer, (*RANKS, *SCORES)) for answer in answers)
    measures = decoded(row[plan.measures]) if plan.measures else None
    return len(answers) > 1 and isinstance(measures, list) and len(measures) == len(answers)


def reads(row: Row) -> frozenset[str]:
    """Names the columns of a row that fits."""
    plan = _plan(row)
    if plan is None:
        return frozenset()
    beside = {name for column, name in plan.names.items() if column in BESIDE}
    measures = {plan.measures} if plan.measures and _is_parallel(row, plan) else set()
    return frozenset((plan.answers,)) | plan.asked.columns | measures | beside


def _is_parallel(row: Row, plan: _Plan) -> bool:
    return not all(isinstance(answer, Mapping) for answer in decoded(row[plan.answers]))


def _key(answer: Mapping[str, Any], wanted: tuple[str, ...]) -> str | None:
    names = named(answer)
    return first(names, wanted)


def convert(row: Row, state: RowState) -> dict[str, Any]:
    """Writes the best and the worst answer as chosen and rejected, with their scores."""
    plan = _plan(row)
    if plan is None:
        return dict(row)
    measured = _measured(row, plan, state)
    usable = [(text, number) for text, number in measured if text and number is not None]
    if len(usable) < 2:
        what = "fewer than two of the answers have a text and a rank or score"
        state.refuse(what, plan.answers, row[plan.answers], "delete the row")
        usable = [("", 0.0), ("", 0.0)]
    elif len(usable) > 2:
        state.note(BEST)
    usable.sort(key=lambda item: -item[1])
    (chosen, best), (rejected, worst) = usable[0], usable[-1]
    prompt = _spoken(prompt_of(row, plan.asked, state))
    written = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return written | {"score_chosen": best, "score_rejected": worst} | handed_on(row, plan.asked)


def _measured(row: Row, plan: _Plan, state: RowState) -> list[tuple[Any, float | None]]:
    """Returns the answers with a number each, higher for better ones."""
    answers = decoded(row[plan.answers])
    if _is_parallel(row, plan) and plan.measures:
        numbers = [read_number(raw) for raw in decoded(row[plan.measures])]
        return [
            (text, _signed(number, plan.measures))
            for text, number in zip(answers, numbers, strict=True)
        ]
    found = []
    for answer in answers:
        text, key = _key(answer, TEXTS), _key(answer, (*RANKS, *SCORES))
        number = read_number(answer[key]) if key else None
        found.append((answer.get(text), _signed(number, key or "")))
        _note_rest(answer, {text, key}, state)
    return found


def _note_rest(answer: Row, read: set[str | None], state: RowState) -> None:
    """Notes what else is said of an answer."""
    for name, value in answer.items():
        if name not in read and not is_empty(value):
            state.note(f"field `{name}` of ranked answers not read")


def _signed(number: float | None, name: str) -> float | None:
    """Turns ranks, of which 1 is the best, into scores."""
    is_rank = name.lower().startswith("rank")
    return -number if is_rank and number is not None else number


def _spoken(prompt: Any) -> Any:
    """Splits a prompt that is written as a dialogue of `Human:` and `Assistant:`."""
    if not (isinstance(prompt, str) and prompt.startswith("\n\nHuman:")):
        return prompt
    _, *parts = _TURNS.split(prompt)
    role_of = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": role_of[author], "content": text.strip()}
        for author, text in zip(parts[::2], parts[1::2], strict=True)
        if text.strip()
    ]
    return turns


def fits_summaries(row: Row) -> bool:
    """Returns whether a row compares two summaries of a post, as summarize_from_feedback does."""
    summaries = row.get("summaries")
    return isinstance(row.get("info"), Mapping) and isinstance(summaries, list) and "choice" in row


def reads_summaries(row: Row) -> frozenset[str]:
    """Names the columns of such a row; `extra` and `worker` are of its judges."""
    return frozenset(row.keys() & {"info", "summaries", "choice", "worker", "extra", "batch"})


def convert_summaries(row: Row, state: RowState) -> dict[str, Any]:
    """Writes such a row with the prompt that its authors wrote of a post."""
    info, summaries, choice = row["info"], row["summaries"], read_number(row["choice"])
    texts = [item.get("text") if isinstance(item, Mapping) else item for item in summaries]
    if len(texts) != 2 or choice not in (0, 1):
        mend = "write two summaries, and as `choice` 0 or 1"
        state.refuse("the row does not choose between two summaries", "choice", row["choice"], mend)
        return {}
    chosen = texts if choice == 0 else texts[::-1]
    return {"prompt": _post(info), "chosen": chosen[0], "rejected": chosen[1]}


def _post(info: Mapping[str, Any]) -> str:
    if not info.get("post"):
        return f"{info.get('article') or ''}\n\nTL;DR:"
    parts = (("SUBREDDIT", "r/", "subreddit"), ("TITLE", "", "title"), ("POST", "", "post"))
    lines = [f"{head}: {mark}{info[key]}" for head, mark, key in parts if info.get(key)]
    return "\n\n".join([*lines, "TL;DR:"])


def fits_steps(row: Row) -> bool:
    """Returns whether a row rates the steps of one answer, as TRL's stepwise supervision does."""
    steps, labels = row.get("completions"), row.get("labels")
    return isinstance(steps, list) and isinstance(labels, list) and row.get("prompt") is not None


def refuse_steps(row: Row, state: RowState) -> dict[str, Any]:
    """Refuses such a row: nothing here trains single steps."""
    mend = f"join the steps into one `completion`; {shell_list('data.ignore', ['labels'])} "
    mend += "does not read the labels"
    state.refuse(
        "this row rates the steps of an answer, which no recipe trains", "labels", mend=mend
    )
    return dict(row)


def _columns(row: Row) -> frozenset[str]:
    return frozenset(("prompt", "completions", "labels"))


LAYOUTS = (
    Layout("summaries", fits_summaries, convert_summaries, reads_summaries),
    Layout("rated steps", fits_steps, refuse_steps, _columns),
    Layout("ranked answers", fits, convert, reads, BESIDE),
)
