"""Examples as short texts, for tables of tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import ReadRow, read_row
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Feedback, Message, Preference


def turn(role: str, content: str) -> dict[str, str]:
    """Returns a message."""
    return {"role": role, "content": content}


def spoken(messages: Iterable[Message]) -> str:
    """Writes messages as `user: … / assistant: …`."""
    return " / ".join(f"{message.role}: {message.content}" for message in messages)


def sides(row: dict[str, Any], **said: Any) -> tuple[Any, ...]:
    """Reads a row and returns prompt, chosen and rejected, or prompt, completion and label."""
    example = taken(row, **said).example
    if isinstance(example, Preference):
        parts = (example.prompt.messages, example.chosen, example.rejected)
        return tuple(map(spoken, parts)) + (("tied",) if example.tied else ())
    if isinstance(example, Feedback):
        return spoken(example.prompt.messages), spoken(example.completion), example.label
    assert isinstance(example, Conversation)
    return (spoken(example.messages),)


def taken(row: dict[str, Any], **said: Any) -> ReadRow:
    """Reads a row; `said` are columns and ignore of `Reading`."""
    columns = tuple(said.get("columns", {}).items())
    return read_row(row, "rows.jsonl:1", Reading("", columns, frozenset(said.get("ignore", ()))))


def refusal(row: dict[str, Any], **said: Any) -> str:
    """Returns the problems of a row that is refused, as the user sees them."""
    try:
        read = taken(row, **said)
    except DataError as error:
        return str(error)
    raise AssertionError(f"read as {read.example}")
