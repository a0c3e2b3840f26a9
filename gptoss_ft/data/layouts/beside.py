"""The system message and the thinking that stand in columns beside a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss_ft.data.formats.common import RowState, check_text, decoded, read_content
from gptoss_ft.data.formats.thinking import thinking_text
from gptoss_ft.harmony.messages import Conversation, Example, Feedback, Message, Preference

SYSTEM_ROLES = ("system", "developer")


def with_beside(example: Example, system: Any, thinking: Any, state: RowState) -> Example:
    """Adds what stands in columns of its own.

    Args:
        example: of the row.
        system: the system message; it comes first. One that a system message of the conversation
            holds already adds nothing, another one is refused.
        thinking: of the only answer.
        state: of the row.
    """
    if system is not None:
        example = _with_system(example, system, state)
    if thinking is not None:
        example = _with_thinking(example, thinking, state)
    return example


def _with_system(example: Example, raw: Any, state: RowState) -> Example:
    text = _system_text(raw, state)
    if not text.strip():
        return example
    if isinstance(example, Conversation):
        return replace(example, messages=_after_system(text, example.messages, state))
    if isinstance(example, Preference | Feedback):
        messages = _after_system(text, example.prompt.messages, state)
        return replace(example, prompt=replace(example.prompt, messages=messages))
    state.refuse("plain text has no system message", "system", raw, _without("system", state))
    return example


def _system_text(raw: Any, state: RowState) -> str:
    """Reads a text, or a list of text blocks as some APIs take it."""
    raw = decoded(raw)
    if isinstance(raw, list):
        raw = [{"type": "text"} | dict(part) if isinstance(part, Mapping) else part for part in raw]
    text = read_content(raw, "system", state) or ""
    bare = text.removeprefix("SYSTEM:").lstrip() if text.startswith("SYSTEM:") else text
    if bare != text:
        state.note("`SYSTEM:` before the text of a system column cut off")
    return bare


def _after_system(text: str, messages: tuple[Message, ...], state: RowState) -> tuple[Message, ...]:
    there = [message.content for message in messages if message.role in SYSTEM_ROLES]
    if any(text.strip() in other for other in there):
        return messages
    if there and not any(other.strip() for other in there):
        messages = tuple(m for m in messages if m.role not in SYSTEM_ROLES)
    elif there:
        what = "a system message stands in its column and another one in the conversation"
        state.refuse(what, "system", text, _without("system", state))
    return (Message("system", text), *messages)


def _with_thinking(example: Example, raw: Any, state: RowState) -> Example:
    text = check_text(thinking_text(raw, "thinking", state).strip(), "thinking", state)
    if not text:
        return example
    if isinstance(example, Conversation):
        return replace(example, messages=_thought(example.messages, text, state))
    if isinstance(example, Feedback):
        return replace(example, completion=_thought(example.completion, text, state))
    state.refuse(
        "this column belongs to no one answer", "thinking", raw, _without("thinking", state)
    )
    return example


def _thought(messages: tuple[Message, ...], thinking: str, state: RowState) -> tuple[Message, ...]:
    places = [i for i, m in enumerate(messages) if m.role == "assistant" and m.weight > 0]
    if any(messages[i].thinking.strip() == thinking for i in places):
        return messages
    if len(places) != 1 or messages[places[0]].thinking:
        what = (
            "the thinking of this column belongs to one answer, and there are several"
            if len(places) != 1
            else "the answer has another thinking of its own"
        )
        state.refuse(what, "thinking", thinking, _without("thinking", state))
        return messages
    return _replaced(messages, places[0], messages[places[0]]._replace(thinking=thinking))


def _replaced(messages: Sequence[Message], at: int, message: Message) -> tuple[Message, ...]:
    return (*messages[:at], message, *messages[at + 1 :])


def _without(slot: str, state: RowState) -> str:
    return f"say 'data.ignore=[{state.names.get(slot, slot)}]' to train without it"
