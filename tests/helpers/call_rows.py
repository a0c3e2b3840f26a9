"""Rows with calls of two tools, and what is read from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_rows import USER, WHERE

from gptoss_ft.data.reading import read_row
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Message

TIDE = {
    "name": "tide",
    "description": "Height.",
    "parameters": {
        "type": "object",
        "properties": {"port": {"type": "string"}, "hours": {"type": "integer"}},
        "required": ["port"],
    },
}
WIND = {
    "name": "wind",
    "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
}
TOOLS = [TIDE, WIND]
FARO = {"name": "tide", "arguments": {"port": "Faro"}}
LAGOS = {"name": "wind", "arguments": {"port": "Lagos"}}
FARO_TEXT = json.dumps(FARO)
LAGOS_TEXT = json.dumps(LAGOS)
CALL = ("tide", '{"port":"Faro"}')
BOTH = [CALL, ("wind", '{"port":"Lagos"}')]
DONE = {"role": "assistant", "content": "3.1 m"}
UNDECLARED = "calls of tools that the row does not declare"


def read(
    *messages: Any, tools: Any = TOOLS, **keys: Any
) -> tuple[tuple[Message, ...], dict[str, int]]:
    """The messages of a chat row, without the user's question, and the notes."""
    found = read_row({"messages": [USER, *messages], "tools": tools} | keys, WHERE)
    assert isinstance(found.example, Conversation)
    return found.example.messages[1:], dict(found.notes)


def said(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | keys


def calls_of(message: Message) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in message.tool_calls]


def problem(*messages: Any, tools: Any = TOOLS, **keys: Any) -> tuple[str, str, str]:
    """What, where and mend of the only problem of a row."""
    with pytest.raises(DataError) as caught:
        read_row({"messages": [USER, *messages], "tools": tools} | keys, WHERE)
    (found,) = caught.value.problems
    return found.what, found.where.removeprefix(WHERE).strip(), found.mend


def turn(who: str, text: Any, **keys: Any) -> dict[str, Any]:
    return {"from": who, "value": text} | keys
