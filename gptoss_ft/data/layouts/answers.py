"""Questions whose answer stands in a column of another kind: calls, or a text after messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded
from gptoss_ft.data.formats.dialects.authors import author_of
from gptoss_ft.data.formats.dialects.call_text import as_call
from gptoss_ft.data.layouts import names
from gptoss_ft.data.layouts.asked import HANDED_ON, Row, first, named
from gptoss_ft.data.layouts.layout import Layout

# Columns that hold the calls which answer a question, as lists of name and arguments.
CALLS = ("answers", "answer", "calls", "tool_calls", "function_calls", "output", "response")
# Columns that are handed on as they are, to be read beside the answer.
BESIDE = frozenset((*names.SYSTEMS, *names.THINKING, *names.TOOLS, *HANDED_ON))


def _beside(row: Row) -> dict[str, Any]:
    return {name: row[name] for column, name in named(row).items() if column in BESIDE}


def fits_calls(row: Row) -> bool:
    """Returns whether tools, a question and a list of calls stand in columns."""
    given = named(row)
    question, calls = first(given, names.PROMPTS), first(given, CALLS)
    if first(given, names.TOOLS) is None or question is None or calls is None:
        return False
    listed = decoded(row[calls])
    is_list = isinstance(row[question], str) and isinstance(listed, list) and bool(listed)
    return is_list and all(as_call(call, strict=True) for call in listed)


def convert_calls(row: Row, state: RowState) -> dict[str, Any]:
    """Writes the question and the calls as messages."""
    del state
    given = named(row)
    question, calls = given[_of(given, names.PROMPTS)], given[_of(given, CALLS)]
    answer = {"role": "assistant", "tool_calls": decoded(row[calls])}
    messages = [{"role": "user", "content": row[question]}, answer]
    return {"messages": messages, **_beside(row)}


def reads_calls(row: Row) -> frozenset[str]:
    """Names the columns that are read."""
    given = named(row)
    sides = (given[_of(given, names.PROMPTS)], given[_of(given, CALLS)])
    return frozenset((*sides, *_beside(row)))


def _of(given: Mapping[str, str], wanted: tuple[str, ...]) -> str:
    return next(name for name in wanted if name in given)


def _sides(row: Row) -> tuple[str, str] | None:
    """Returns the columns of the messages and of the answer to them, None where there are none.

    An answer beside messages is one to check against unless its thinking is there too.
    """
    given = named(row)
    answers = [given[name] for name in names.COMPLETIONS if name in given]
    thought = any(name in given for name in names.THINKING)
    told = thought or any(name in given for name in names.SYSTEMS)
    for column, is_enough in (("messages", thought), ("input", told)):
        if column in given and is_enough and len(answers) == 1:
            return (given[column], answers[0]) if _waits(row, given[column], answers[0]) else None
    return None


def _waits(row: Row, messages: str, answer: str) -> bool:
    """Returns whether messages end in a question, and the answer is a text."""
    listed = decoded(row[messages])
    last = listed[-1] if isinstance(listed, list) and listed else None
    asks = isinstance(last, OBJECTS) and author_of(last) in ("user", "tool")
    return asks and isinstance(row[answer], str)


def fits_answer(row: Row) -> bool:
    """Returns whether messages, an answer and what belongs to it stand in columns."""
    return _sides(row) is not None


def convert_answer(row: Row, state: RowState) -> dict[str, Any]:
    """Writes a row as prompt and completion."""
    del state
    sides = _sides(row)
    if sides is None:
        return dict(row)
    return {"prompt": decoded(row[sides[0]]), "completion": row[sides[1]], **_beside(row)}


def reads_answer(row: Row) -> frozenset[str]:
    """Names the columns that are read."""
    return frozenset((*(_sides(row) or ()), *_beside(row)))


LAYOUTS = (
    Layout("a question and calls", fits_calls, convert_calls, reads_calls),
    Layout("messages and an answer", fits_answer, convert_answer, reads_answer),
)
