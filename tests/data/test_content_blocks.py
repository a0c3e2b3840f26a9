"""Content in parts, as every API writes it: which messages of the chat format it is."""

from __future__ import annotations

from typing import Any

import pytest
from block_rows import (
    ANTHROPIC_CALL,
    ASKED,
    HIGH,
    QUESTION,
    TABLE,
    result,
    said,
    text,
)
from format_rows import WHERE, problems

from gptoss_ft.data.formats.media import WITHOUT
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import read_row
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation


@pytest.mark.parametrize("name", TABLE)
def test_parts_become_messages(name: str) -> None:
    messages, expected = TABLE[name]
    example = read_row({"messages": messages}, WHERE).example
    assert isinstance(example, Conversation)
    assert list(example.messages) == expected


NOTED = [
    (said({"type": "redacted_thinking", "data": "x"}, text("High.")), "redacted"),
    (said(ANTHROPIC_CALL, result("No port.", is_error=True), text("High.")), "failed"),
    (said(ANTHROPIC_CALL, text("High."), result("3.1"), text("High.")), "moved before"),
]


@pytest.mark.parametrize(("message", "note"), NOTED)
def test_what_is_changed_is_said(message: Any, note: str) -> None:
    notes = read_row({"messages": [ASKED, message]}, WHERE).notes
    assert any(note in line for line in notes)


IMAGE = {"type": "image", "source": {"type": "base64", "data": "x"}}
REFUSED: list[tuple[Any, str, str]] = [
    (said(text("a"), IMAGE, role="user"), "messages[0].content[1]", "data.ignore=[images]"),
    (said({"image": {"format": "png"}}, role="user"), "messages[0].content[0]", "[image]"),
    (
        {"role": "user", "parts": [{"inlineData": {"data": "x"}}]},
        "messages[0].parts[0]",
        "data.ignore=[inlineData]",
    ),
    (
        {"role": "model", "parts": [{"executableCode": {"code": "1"}}]},
        "messages[0].parts[0]",
        "data.ignore=[executableCode]",
    ),
    (said({"type": "refusal", "refusal": "No."}), "messages[0].content[0]", "[refusal]"),
    (said(text("a") | {"loss": False}), "messages[0].content[0].loss", "data.ignore=[loss]"),
    (said({"type": "wavelet", "x": 1}), "messages[0].content[0]", "data.ignore=[wavelet]"),
    (said({"a": 1, "b": 2}), "messages[0].content[0]", '{"type": "text"'),
    (said(result([IMAGE])), "messages[0].content[0].content[0]", "data.ignore=[image]"),
    (
        {"type": "ai", "content": "a", "invalid_tool_calls": [{"name": "f"}]},
        "messages[0].invalid_tool_calls",
        "data.ignore=[invalid_tool_calls]",
    ),
    (
        {"type": "ai", "content": "a", "additional_kwargs": {"refusal": "No."}},
        "messages[0].additional_kwargs.refusal",
        "data.ignore=[refusal]",
    ),
    (
        {"role": "user", "content": "Other.", "parts": [text("a")]},
        "messages[0].content",
        "keep one",
    ),
    (
        said({"type": "tool-f", "toolCallId": "c", "state": "input-streaming"}),
        "messages[0].content[0]",
        "remove the part",
    ),
]


@pytest.mark.parametrize(("message", "place", "mend"), REFUSED)
def test_what_is_not_read_is_refused(message: Any, place: str, mend: str) -> None:
    found = problems({"messages": [message, ASKED, said("High.")]})
    assert [where for _, where, _ in found] == [place]
    assert mend in found[0][2]


def test_parts_that_the_user_ignores_are_left_out_and_counted() -> None:
    row = {"messages": [said(text("Tide?"), IMAGE, role="user"), said(text("High."))]}
    read = read_row(row, WHERE, Reading(ignore=frozenset(("images",))))
    assert isinstance(read.example, Conversation)
    assert read.example.messages == (QUESTION, HIGH)
    assert read.notes == {WITHOUT: 1}


def test_a_message_of_ignored_parts_alone_is_refused() -> None:
    row = {"messages": [said(IMAGE, role="user"), said(text("High."))]}
    with pytest.raises(DataError, match="nothing is left"):
        read_row(row, WHERE, Reading(ignore=frozenset(("images",))))
