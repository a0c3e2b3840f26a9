"""Items of the OpenAI Responses API: messages, reasoning, function calls and their outputs.

A row holds `items`, or what a request and its response hold: `input`, and `output` after it.
Reasoning, message and calls that follow each other are one assistant message here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.chat import check_turns
from gptoss_ft.data.formats.common import (
    Placed,
    RowState,
    check_keys,
    check_text,
    decoded,
    read_content,
    read_effort,
    read_weight,
    refuse_missing,
)
from gptoss_ft.data.formats.raw_tokens import check_words
from gptoss_ft.data.formats.thinking import split_thinking
from gptoss_ft.data.formats.tool_calls import make_call, read_id, result_of
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.harmony.messages import Conversation, Message

ROLES = ("system", "developer", "user", "assistant")
TYPES = ("message", "reasoning", "function_call", "function_call_output")
CONTENT_PARTS = ("input_text", "output_text", "text")
REASONING_PARTS = ("reasoning_text", "summary_text", "text")
# What is read of each type, and what says nothing to train beside it.
_ALWAYS = ("type", "id", "status", "phase", "encrypted_content", "annotations", "object")
KEYS = {
    kind: frozenset((*_ALWAYS, *names))
    for kind, names in {
        "message": ("role", "content", "weight"),
        "reasoning": ("summary", "content"),
        "function_call": ("call_id", "name", "arguments", "weight"),
        "function_call_output": ("call_id", "output"),
    }.items()
}
ITEM_MEND = f'write {{"type": …}}, the type one of {", ".join(TYPES)}'


class _ResponsesReader:
    """Collects the messages of one row."""

    def __init__(self, state: RowState) -> None:
        self.state = state
        self.placed: list[Placed] = []

    def item(self, raw: Any, key: str) -> None:
        """Reads one item."""
        if not isinstance(raw, Mapping):
            self.state.refuse("an item is not an object", key, raw, ITEM_MEND)
            return
        kind = raw.get("type")
        if kind is None and raw.get("role") is not None:
            kind = "message"
        if kind not in TYPES:
            what = (
                "the item has no type" if kind is None else f"items of type {kind!r} are not read"
            )
            mend = f"{ITEM_MEND}, or leave the item out"
            self.state.refuse(what, f"{key}.type", raw, mend)
            return
        check_keys(raw, KEYS[kind], key, self.state)
        readers = {
            "message": self._message,
            "reasoning": self._reasoning,
            "function_call": self._call,
            "function_call_output": self._output,
        }
        readers[kind](raw, key)

    def _message(self, raw: Mapping[str, Any], key: str) -> None:
        state, role = self.state, raw.get("role")
        text = read_content(raw.get("content"), f"{key}.content", state, CONTENT_PARTS)
        check_words(text or "", str(role), f"{key}.content", state)
        if raw.get("content") is None:
            state.refuse("the message has no content", f"{key}.content", mend="write a text")
        if role not in ROLES:
            state.refuse("unknown role", f"{key}.role", role, f"write one of {', '.join(ROLES)}")
        elif role != "assistant":
            if raw.get("weight"):
                what, mend = f"a {role} message cannot be trained", "remove it"
                state.refuse(what, f"{key}.weight", raw["weight"], mend)
            self.placed.append(Placed(key, Message(role, text or "")))
        elif text is not None:
            weight = read_weight(raw.get("weight"), f"{key}.weight", state)
            thinking, content = split_thinking(text, f"{key}.content", state)
            if not content and not thinking:
                mend = "write the answer, or leave the item out"
                state.refuse("the answer is empty", f"{key}.content", mend=mend)
            self._said(Message("assistant", content, thinking, weight=weight), key)

    def _said(self, message: Message, key: str) -> None:
        """Reads an answer; reasoning right before it belongs to it."""
        last = self.placed[-1].message if self.placed else None
        waits = last is not None and last.role == "assistant" and not last.content
        if last is not None and waits and not last.tool_calls and not message.thinking:
            message = message._replace(thinking=last.thinking)
            self.placed[-1] = Placed(key, message)
        else:
            self.placed.append(Placed(key, message))

    def _reasoning(self, raw: Mapping[str, Any], key: str) -> None:
        """Reads the reasoning if it is there, else its summary; encrypted reasoning has neither."""
        texts = [
            read_content(_joined(raw.get(name)), f"{key}.{name}", self.state, REASONING_PARTS)
            for name in ("content", "summary")
        ]
        thinking = next((text for text in texts if text), "")
        if thinking:
            self.placed.append(Placed(key, Message("assistant", thinking=thinking)))

    def _call(self, raw: Mapping[str, Any], key: str) -> None:
        state = self.state
        weight = read_weight(raw.get("weight"), f"{key}.weight", state)
        call_id = read_id(raw.get("call_id"), f"{key}.call_id", state)
        call = make_call(raw, call_id, key, weight > 0, state)
        if call is None:
            return
        last = self.placed[-1] if self.placed else None
        if last is not None and last.message.role == "assistant":
            # What was said or called right before is the same turn, unless it weighs otherwise.
            message = last.message
            same = raw.get("weight") is None or weight == message.weight
            if same or not (message.content or message.tool_calls):
                calls = (*message.tool_calls, call)
                weight = message.weight if same else weight
                joined = message._replace(tool_calls=calls, weight=weight)
                self.placed[-1] = Placed(last.place, joined)
                return
        self.placed.append(Placed(key, Message("assistant", tool_calls=(call,), weight=weight)))

    def _output(self, raw: Mapping[str, Any], key: str) -> None:
        name, builtin = result_of(raw, key, self.state, "call_id")
        text = read_content(raw.get("output"), f"{key}.output", self.state, CONTENT_PARTS)
        if raw.get("output") is None:
            self.state.refuse("the output is missing", f"{key}.output", mend="write a text")
        self.placed.append(Placed(key, Message("tool", text or "", name=name, builtin=builtin)))


def _joined(parts: Any) -> Any:
    """Parts with a blank line between them: each is a paragraph of the reasoning."""
    if not isinstance(parts, list):
        return parts
    spaced = []
    for i, part in enumerate(parts):
        if i and isinstance(part, Mapping) and isinstance(part.get("text"), str):
            part = {**part, "text": "\n\n" + part["text"]}
        spaced.append(part)
    return spaced


def parse_responses(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Conversation:
    """Reads one row of Responses items; see `parse_openai_chat` for arguments and errors."""
    effort = read_effort(row, state)
    tools = read_tools(row, state)
    reader = _ResponsesReader(state)
    if row.get("items") is None and row.get("input") is None:
        refuse_missing(row, "items", state, 'write {"items": [...]} or {"input": [...]}')
    for key in ("items", "input", "output"):
        _read_items(row.get(key), key, reader)
    if reader.placed and not state.problems:
        check_turns(reader.placed, state, needs_answer)
    state.check()
    messages = tuple(item.message for item in reader.placed)
    return Conversation(messages, (*tools, *state.declared), effort, state.builtin)


def _read_items(raw: Any, key: str, reader: _ResponsesReader) -> None:
    items = decoded(raw)
    if isinstance(items, list):
        if not items and key != "output":
            mend = "add the items or delete the row"
            reader.state.refuse(f"`{key}` is empty", key, mend=mend)
        for i, item in enumerate(items):
            reader.item(item, f"{key}[{i}]")
    elif isinstance(items, str) and key == "input":
        text = check_text(items, key, reader.state)
        reader.placed.append(Placed(key, Message("user", text)))
    elif items is not None:
        reader.state.refuse(f"`{key}` is not a list", key, items, "write a list of items")
