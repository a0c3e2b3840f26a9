"""ShareGPT's format: `conversations` of turns with `from` and `value`.

Thinking in `<think>…</think>` before an answer becomes the analysis. Calls are turns of their own
(`function_call`, their value the JSON of one call or of several) and are answered in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.chat import check_turns, read_messages
from gptoss_ft.data.formats.common import (
    Placed,
    RowState,
    check_columns,
    check_keys,
    check_text,
    decoded,
    nearest,
    read_content,
    read_effort,
    read_weight,
    refuse_missing,
    split_thinking,
)
from gptoss_ft.data.formats.tool_calls import make_call, read_tools
from gptoss_ft.harmony.messages import Conversation, Message, ToolCall

ROLES_OF = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
NAMES = tuple(ROLES_OF)
TURN_KEYS = ("from", "value", "weight", "thinking", "reasoning_content")
OPTIONAL = ("system", "tools", "builtin_tools", "reasoning_effort")
# How some other models write calls; as text of an answer it would be trained as what users see.
TAGGED_CALL = ("<tool_call>", "</tool_call>")
TURN_MEND = 'write {"from": "human", "value": …} or {"from": "gpt", "value": …}'
CALL_MEND = 'write the call as JSON: {"name": …, "arguments": {…}}, or a list of such'


class _ShareGptReader:
    """Collects the messages of one row.

    Attributes:
        placed: the messages so far.
        unanswered: names of the calls that no result has followed yet, and whether builtin.
    """

    def __init__(self, state: RowState) -> None:
        self.state = state
        self.placed: list[Placed] = []
        self.unanswered: list[tuple[str, bool]] = []

    def turn(self, raw: Any, key: str) -> None:
        """Reads one turn."""
        if not isinstance(raw, Mapping):
            self.state.refuse("a turn is not an object", key, raw, TURN_MEND)
            return
        check_keys(raw, TURN_KEYS, ("id", "name"), key, self.state)
        role = self._role(raw.get("from"), f"{key}.from")
        place = f"{key}.value"
        if role != "tool":
            self.settle()
        if role == "call":
            self._calls(raw, key, place)
            return
        text = read_content(raw.get("value"), place, self.state)
        if raw.get("value") is None:
            self.state.refuse("the turn has no text", place, mend=TURN_MEND)
        if role is None or text is None:
            return
        if role != "tool":
            self.unanswered = []
        if role == "assistant":
            self._answer(raw, text, key, place)
            return
        if raw.get("weight"):
            mend = "remove it: only answers of the assistant are trained"
            self.state.refuse("a turn that is not trained", f"{key}.weight", raw["weight"], mend)
        message = self._result(text, key) if role == "tool" else Message(role, text)
        self.placed.append(Placed(key, message))

    def _role(self, raw: Any, key: str) -> str | None:
        role = ROLES_OF.get(raw.lower()) if isinstance(raw, str) else None
        if role is None:
            near = nearest(raw.lower(), NAMES) if isinstance(raw, str) else None
            mend = f"did you mean `{near}`?" if near else f"write one of {', '.join(NAMES)}"
            what = "the turn does not say who speaks" if raw is None else "unknown speaker"
            self.state.refuse(what, key, raw, mend)
        return role

    def _answer(self, raw: Mapping[str, Any], text: str, key: str, place: str) -> None:
        state = self.state
        inline, content = split_thinking(text, place, state)
        if all(tag in content for tag in TAGGED_CALL):
            mend = 'write the call as a turn of its own: {"from": "function_call", "value": …}'
            state.refuse("the answer calls a tool in tags, as other models do", place, text, mend)
        thinking = raw.get("thinking") or raw.get("reasoning_content") or ""
        if not isinstance(thinking, str):
            state.refuse(
                "the thinking is not a text", f"{key}.thinking", thinking, "write a string"
            )
            thinking = ""
        check_text(thinking, f"{key}.thinking", state)
        if thinking and inline:
            mend = "keep one of them"
            state.refuse("the thinking is given twice", f"{key}.thinking", thinking, mend)
        if not (content or thinking or inline):
            state.refuse("the answer is empty", place, mend="write a text, or delete the turn")
        weight = read_weight(raw.get("weight"), f"{key}.weight", state)
        message = Message("assistant", content, thinking or inline, weight=weight)
        self.placed.append(Placed(key, message))

    def _calls(self, raw: Mapping[str, Any], key: str, place: str) -> None:
        """Reads a turn of calls; assistant text right before it introduces them."""
        weight = read_weight(raw.get("weight"), f"{key}.weight", self.state)
        calls = self._read_calls(decoded(raw.get("value")), place, weight > 0)
        self.unanswered += [(call.name, call.builtin) for call in calls]
        if self.placed:
            last, message = self.placed[-1]
            joins = message.role == "assistant" and not message.tool_calls
            if joins and raw.get("weight") in (None, message.weight):
                self.placed[-1] = Placed(last, message._replace(tool_calls=calls))
                return
        self.placed.append(Placed(key, Message("assistant", tool_calls=calls, weight=weight)))

    def _read_calls(self, value: Any, place: str, strict: bool) -> tuple[ToolCall, ...]:
        listed = value if isinstance(value, list) else [value]
        calls = []
        for i, item in enumerate(listed):
            where = f"{place}[{i}]" if isinstance(value, list) else place
            if isinstance(item, Mapping) and isinstance(item.get("function"), Mapping):
                item, where = item["function"], f"{where}.function"
            if not isinstance(item, Mapping):
                self.state.refuse("not a call", where, item, CALL_MEND)
                continue
            call = make_call(item, "", where, strict, self.state)
            if call is not None:
                calls.append(call)
        if not listed:
            self.state.refuse("the turn holds no call", place, value, CALL_MEND)
        return tuple(calls)

    def settle(self) -> None:
        """Refuses calls without a result where others of the same turn have one."""
        if self.placed and self.placed[-1].message.role == "tool":
            if self.unanswered and not self.state.problems:
                names = ", ".join(name for name, _ in self.unanswered)
                mend = "write one tool turn for each call, in the order of the calls"
                what = "fewer results than calls"
                self.state.refuse(what, self.placed[-1].place, f"none for {names}", mend)
            self.unanswered = []

    def _result(self, text: str, key: str) -> Message:
        if self.unanswered:
            name, builtin = self.unanswered.pop(0)
            return Message("tool", text, name=name, builtin=builtin)
        if not self.state.problems:  # a call that could not be read is a problem already
            mend = 'put the call before it: {"from": "function_call", "value": …}'
            self.state.refuse("the tool result answers no call", key, mend=mend)
        return Message("tool", text)


def parse_sharegpt(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Conversation:
    """Reads one ShareGPT row; see `parse_openai_chat` for arguments and errors."""
    effort = read_effort(row, state)
    tools = read_tools(row, state, flat=True)
    check_columns(row, OPTIONAL, state)
    refuse_missing(row, "conversations", state, 'write {"conversations": [...]}')
    reader = _ShareGptReader(state)
    if row.get("system") not in (None, ""):
        system = read_content(row["system"], "system", state) or ""
        reader.placed.append(Placed("system", Message("system", system)))
    turns = decoded(row.get("conversations"))
    if turns is not None and not isinstance(turns, list):
        state.refuse("`conversations` is not a list", "conversations", turns, TURN_MEND)
    elif turns == []:
        mend = "add the turns or delete the row"
        state.refuse("`conversations` is empty", "conversations", mend=mend)
    elif isinstance(turns, list) and any(_is_chat(turn) for turn in turns):
        reader.placed += read_messages(turns, "conversations", state)
    elif isinstance(turns, list):
        for i, turn in enumerate(turns):
            reader.turn(turn, f"conversations[{i}]")
        reader.settle()
    if reader.placed and not state.problems:
        check_turns(reader.placed, state, needs_answer)
    state.check()
    messages = tuple(item.message for item in reader.placed)
    return Conversation(messages, tools, effort, state.builtin)


def _is_chat(turn: Any) -> bool:
    """Returns whether it is a message of the chat format, which some datasets keep in
    `conversations`.
    """
    return isinstance(turn, Mapping) and turn.get("role") is not None and turn.get("from") is None
