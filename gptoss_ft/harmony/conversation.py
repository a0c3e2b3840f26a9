"""Conversations, and how an OpenAI chat row becomes one.

The format read here is the chat format of the OpenAI API and its fine-tuning files: `messages`,
`tools`, `tool_calls`, a `weight` per message, plus `thinking` (or `reasoning_content`) for the
analysis.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import EFFORTS, ROLES, Conversation, Message, ToolCall, ToolSpec

__all__ = ["Conversation", "Message", "ToolCall", "ToolSpec", "parse_openai_chat"]

MESSAGE_KEYS = (
    "role",
    "content",
    "thinking",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "name",
    "weight",
)
# Written by the API or by exporters beside a message; nothing in them is rendered. The first three
# carry content when they are not null, and are then refused.
CONTENT_ELSEWHERE = {
    "refusal": "write the text as `content`",
    "audio": "write the transcript as `content`",
    "function_call": 'write `"tool_calls": [{"id": …, "type": "function", "function": …}]`',
}
IGNORED_KEYS = (
    *CONTENT_ELSEWHERE,
    "annotations",
    "id",
    "object",
    "metadata",
    "status",
    "index",
)
# Below this difflib ratio an unknown key is somebody's own, above it a misspelling.
MISSPELT = 0.65


@dataclass
class _Row:
    """What is collected while one row is read.

    `calls` maps ids of the calls seen so far to function names, `called` holds all the names.
    """

    where: str
    problems: list[Problem] = field(default_factory=list)
    calls: dict[str, str] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)

    def refuse(self, what: str, key: str = "", found: Any = None, mend: str = "") -> None:
        place = f"{self.where} {key}".strip()
        self.problems.append(Problem(what, place, "" if found is None else quote(found), mend))


def quote(value: Any, limit: int = 80) -> str:
    """A value as JSON, cut to `limit` characters, for the `found` part of a problem."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_openai_chat(
    row: Mapping[str, Any], where: str, *, needs_answer: bool = True
) -> Conversation:
    """Read one OpenAI chat row.

    Args:
        row: the decoded JSON object.
        where: `file:line`, put before the field in every problem.
        needs_answer: refuse a row without an assistant message, and one whose last assistant turn
            does not end; turn it off for prompts.

    Raises:
        DataError: with every problem of the row.
    """
    state = _Row(where)
    effort = _effort(row, state)
    tools = _tools(row.get("tools"), state)
    if row.get("functions"):
        state.refuse("`functions` is the old form of `tools`", "functions", mend=_TOOL_MEND)
    messages = _messages(row, state)
    if messages and not state.problems:
        _check_turns(messages, state, needs_answer)
    if state.problems:
        raise DataError(state.problems)
    return Conversation(tuple(messages), tools, effort)


def _effort(row: Mapping[str, Any], state: _Row) -> str | None:
    effort = row.get("reasoning_effort")
    if effort is None or effort in EFFORTS:
        return effort
    state.refuse(
        "unknown reasoning effort", "reasoning_effort", effort, f"write one of {', '.join(EFFORTS)}"
    )
    return None


def _messages(row: Mapping[str, Any], state: _Row) -> list[Message]:
    raw = row.get("messages")
    if raw is None:
        near = difflib.get_close_matches("messages", row, 1, MISSPELT)
        mend = f"rename `{near[0]}` to `messages`" if near else 'write {"messages": [...]}'
        state.refuse("the row has no `messages`", found=list(row), mend=mend)
    elif not isinstance(raw, list):
        state.refuse("`messages` is not a list", "messages", raw, "write a list of messages")
    elif not raw:
        state.refuse("`messages` is empty", "messages", mend="add the messages or delete the row")
    else:
        read = [_message(message, f"messages[{i}]", state) for i, message in enumerate(raw)]
        return [message for message in read if message is not None]
    return []


def _message(raw: Any, key: str, state: _Row) -> Message | None:
    """One message; None when it is so broken that only its problems matter."""
    if not isinstance(raw, Mapping):
        state.refuse("a message is not an object", key, raw, 'write {"role": …, "content": …}')
        return None
    _check_keys(raw, key, state)
    role = raw.get("role")
    if role not in ROLES:
        _refuse_role(role, key, state)
        return None
    content = _content(raw.get("content"), f"{key}.content", state)
    if role == "assistant":
        return _assistant(raw, content, key, state)
    _refuse_assistant_keys(raw, role, key, state)
    if content is None:
        if raw.get("content") is None:
            state.refuse(
                f"the {role} message has no content", f"{key}.content", mend="write a text"
            )
        return None
    name = _result_name(raw, key, state) if role == "tool" else ""
    return Message(role, content, name=name)


def _check_keys(raw: Mapping[str, Any], key: str, state: _Row) -> None:
    for name in raw:
        if name in MESSAGE_KEYS or name in IGNORED_KEYS:
            continue
        near = difflib.get_close_matches(str(name), MESSAGE_KEYS, 1, MISSPELT)
        if near:
            state.refuse("unknown key", f"{key}.{name}", name, f"did you mean `{near[0]}`?")
    for name, mend in CONTENT_ELSEWHERE.items():
        if raw.get(name) is not None:
            state.refuse(f"`{name}` is not read", f"{key}.{name}", raw[name], mend)


def _refuse_role(role: Any, key: str, state: _Row) -> None:
    if role is None:
        state.refuse("the message has no role", f"{key}.role", mend=f"write one of {_ROLE_LIST}")
    elif role == "function":
        mend = 'write role "tool" with the `tool_call_id` of the call it answers'
        state.refuse('role "function" is the old form of tool results', f"{key}.role", role, mend)
    else:
        state.refuse("unknown role", f"{key}.role", role, f"write one of {_ROLE_LIST}")


def _refuse_assistant_keys(raw: Mapping[str, Any], role: str, key: str, state: _Row) -> None:
    for name in ("thinking", "reasoning_content", "tool_calls"):
        if raw.get(name):
            mend = "move it to an assistant message"
            state.refuse(f"a {role} message cannot have `{name}`", f"{key}.{name}", mend=mend)
    if raw.get("weight"):
        mend = "remove it: only assistant messages are trained"
        state.refuse(f"a {role} message cannot be trained", f"{key}.weight", raw["weight"], mend)


def _content(raw: Any, key: str, state: _Row) -> str | None:
    """The text of a string or of a list of text parts, joined; None for null or broken content."""
    if raw is None or isinstance(raw, str):
        return _text(raw, key, state)
    if not isinstance(raw, list):
        state.refuse("content is not a text", key, raw, "write a string")
        return None
    texts = [_part(part, f"{key}[{i}]", state) for i, part in enumerate(raw)]
    return "".join(text for text in texts if text is not None)


def _part(part: Any, key: str, state: _Row) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return _text(part["text"], key, state)
    if isinstance(kind, str) and kind != "text":
        what = f"gpt-oss reads text only, and this part is of type {kind!r}"
        state.refuse(what, key, part, "remove the part, or describe it in a text part")
    else:
        state.refuse("not a text part", key, part, 'write {"type": "text", "text": …}')
    return None


def _text(text: str | None, key: str, state: _Row) -> str | None:
    if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
        state.refuse("the text holds half of a surrogate pair", key, mend="repair the escape")
    return text


def _assistant(
    raw: Mapping[str, Any], content: str | None, key: str, state: _Row
) -> Message | None:
    before = len(state.problems)
    thinking = _thinking(raw, key, state)
    weight = _weight(raw.get("weight"), f"{key}.weight", state)
    calls = _tool_calls(raw.get("tool_calls"), key, weight, state)
    if raw.get("tool_call_id") is not None:
        what, mend = "an assistant message answers no call", 'write role "tool" for a result'
        state.refuse(what, f"{key}.tool_call_id", raw["tool_call_id"], mend)
    if not (content or thinking or calls or raw.get("content")) and len(state.problems) == before:
        state.refuse(
            "the assistant message has no content, no thinking and no tool_calls",
            key,
            mend="write its answer as `content`, or delete the message",
        )
    return Message("assistant", content or "", thinking, calls, weight=weight)


def _thinking(raw: Mapping[str, Any], key: str, state: _Row) -> str:
    given = {name: raw[name] for name in ("thinking", "reasoning_content") if raw.get(name)}
    for name, text in given.items():
        if not isinstance(text, str):
            state.refuse(f"`{name}` is not a text", f"{key}.{name}", text, "write a string")
            return ""
        _text(text, f"{key}.{name}", state)
    if len(set(given.values())) > 1:
        what = "`thinking` and `reasoning_content` are both given and differ"
        state.refuse(what, key, mend="keep one of them")
    return next(iter(given.values()), "")


def _weight(raw: Any, key: str, state: _Row) -> float:
    if raw is None:
        return 1.0
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        state.refuse("the weight is not a number", key, raw, "write a number of at least 0")
    elif not (math.isfinite(raw) and raw >= 0):
        state.refuse("the weight is out of range", key, raw, "write a number of at least 0")
    else:
        return float(raw)
    return 1.0


def _tool_calls(raw: Any, key: str, weight: float, state: _Row) -> tuple[ToolCall, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        state.refuse("`tool_calls` is not a list", f"{key}.tool_calls", raw, _CALL_MEND)
        return ()
    calls = [
        _tool_call(call, f"{key}.tool_calls[{i}]", weight, state) for i, call in enumerate(raw)
    ]
    return tuple(call for call in calls if call is not None)


def _tool_call(raw: Any, key: str, weight: float, state: _Row) -> ToolCall | None:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping):
        state.refuse("a tool call without `function`", key, raw, _CALL_MEND)
        return None
    call_id = raw.get("id")
    if call_id is not None and not isinstance(call_id, str):
        state.refuse("the id of a call is not a text", f"{key}.id", call_id, "write a string")
        call_id = None
    name = _function_name(function.get("name"), f"{key}.function.name", "the call", state)
    arguments = _arguments(function.get("arguments"), f"{key}.function.arguments", weight, state)
    if call_id:
        # Kept even when the call is broken, so that its result is not reported as well.
        state.calls[call_id] = name or ""
    if name is not None:
        state.called.add(name)
    if name is None or arguments is None:
        return None
    return ToolCall(name, arguments, call_id or "")


def _function_name(raw: Any, key: str, owner: str, state: _Row) -> str | None:
    """A name that can stand in a Harmony header: one word, nothing that ends the header."""
    name = raw.removeprefix("functions.") if isinstance(raw, str) else raw
    if name is None or name == "":
        state.refuse(f"{owner} has no name", key, mend="write the name of the function")
    elif not isinstance(name, str) or any(c.isspace() or c in "<>|" for c in name):
        state.refuse("not a function name", key, raw, "use letters, digits, `_`, `-` and `.`")
    else:
        return name
    return None


def _arguments(raw: Any, key: str, weight: float, state: _Row) -> str | None:
    """JSON text as given; an object is written compactly, the way the model itself writes it."""
    if isinstance(raw, Mapping):
        return json.dumps(raw, ensure_ascii=False, separators=(",", ":"))
    if not isinstance(raw, str):
        mend = "write the arguments as an object, or as a string of JSON; `{}` for none"
        state.refuse("the arguments are neither an object nor a text", key, raw, mend)
        return None
    _text(raw, key, state)
    # A recorded mistake may stand in the history, but the model is not to learn to write it.
    if weight > 0 and not _is_json(raw):
        mend = "repair the JSON, `{}` for no arguments, or set the message's `weight` to 0"
        state.refuse("the arguments are not JSON", key, raw, mend)
        return None
    return raw


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _result_name(raw: Mapping[str, Any], key: str, state: _Row) -> str:
    """The function whose result this is, through `tool_call_id`, else through `name`."""
    call_id, name = raw.get("tool_call_id"), raw.get("name")
    what = "the tool result answers a call that was not made before it"
    if isinstance(call_id, str) and call_id in state.calls:
        return state.calls[call_id]
    if call_id is not None:
        mend = f"write the id of an earlier call: {_listed(state.calls)}"
        state.refuse(what, f"{key}.tool_call_id", call_id, mend)
    elif name is None:
        mend = "write the `id` of the call that this result answers"
        state.refuse("the tool result has no `tool_call_id`", f"{key}.tool_call_id", mend=mend)
    else:
        function = _function_name(name, f"{key}.name", "the tool result", state)
        if function is None or function in state.called:
            return function or ""
        mend = f"write the name of a function called before: {_listed(state.called)}"
        state.refuse(what, f"{key}.name", name, mend)
    return ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "there is none"


def _tools(raw: Any, state: _Row) -> tuple[ToolSpec, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        state.refuse("`tools` is not a list", "tools", raw, _TOOL_MEND)
        return ()
    tools = [_tool(tool, f"tools[{i}]", state) for i, tool in enumerate(raw)]
    return tuple(tool for tool in tools if tool is not None)


def _tool(raw: Any, key: str, state: _Row) -> ToolSpec | None:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping):
        state.refuse("not a function tool", key, raw, _TOOL_MEND)
        return None
    name = _function_name(function.get("name"), f"{key}.function.name", "the tool", state)
    description = function.get("description") or ""
    if not isinstance(description, str):
        where = f"{key}.function.description"
        state.refuse("the description is not a text", where, description, "write a string")
        return None
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        where = f"{key}.function.parameters"
        state.refuse("the parameters are not a JSON schema", where, parameters, "write an object")
        return None
    return None if name is None else ToolSpec(name, description, parameters)


def _check_turns(messages: list[Message], state: _Row, needs_answer: bool) -> None:
    """Every run of assistant messages must end in a final or a call, or nothing closes it."""
    if needs_answer and all(message.role != "assistant" for message in messages):
        mend = "add the assistant's answer, or delete the row"
        state.refuse("the row is all prompt: no assistant message", "messages", mend=mend)
    for i, message in enumerate(messages):
        follower = messages[i + 1].role if i + 1 < len(messages) else None
        open_ended = message.role == "assistant" and not (message.content or message.tool_calls)
        if open_ended and follower != "assistant" and (needs_answer or follower is not None):
            state.refuse(
                "the assistant turn ends in thinking, without an answer or a call",
                f"messages[{i}]",
                mend="write the answer as `content`",
            )


_ROLE_LIST = ", ".join(ROLES)
_TOOL_MEND = 'write {"type": "function", "function": {"name": …, "parameters": {…}}}'
_CALL_MEND = 'write [{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}]'
