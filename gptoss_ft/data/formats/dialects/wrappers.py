"""Messages inside other objects, and keys of messages, as LangChain and Vercel's AI SDK write them.

LangChain keeps a message as `{"type": "human", "data": {…}}` or as a constructor with `kwargs`, its
calls as `{"name", "args", "id"}`, and what a provider adds in `additional_kwargs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, PlacedItem, RowState, check_keys, is_empty
from gptoss_ft.data.formats.dialects import authors
from gptoss_ft.data.formats.harmless import fold

CLASSES = MappingProxyType(
    {
        "HumanMessage": "user",
        "AIMessage": "assistant",
        "SystemMessage": "system",
        "ToolMessage": "tool",
        "FunctionMessage": "tool",
    }
)
# Keys that tell how a message was made, by the programs read here.
_BESIDE = """
    response_metadata usage_metadata example tool_call_chunks artifact chunk_position lc_kwargs
    lc_attributes provider_specific_fields
"""
BESIDE = frozenset(_BESIDE.split())
ADDED = frozenset(("tool_calls", "function_call", "reasoning_content"))
# Read again in `additional_kwargs`: the answer itself, as an object.
COPIES = frozenset(("parsed", "reasoning_details", "citations"))
WRAPPED = (
    frozenset(("lc", "data", "additional_kwargs", "invalid_tool_calls", "toolInvocations", "parts"))
    | BESIDE
)


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether a message stands in another object, or has keys of these programs."""
    kind = message.get("type")
    if not WRAPPED.isdisjoint(message) or kind == "message" or _role_of_class(kind):
        return True
    calls = message.get("tool_calls")
    return isinstance(calls, list) and any(isinstance(c, OBJECTS) and "args" in c for c in calls)


def unwrapped(place: str, item: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Returns a message as one object with the chat format's keys, its content as it was."""
    message = _opened(place, {k: v for k, v in item.items() if v is not None}, state)
    message = {name: value for name, value in message.items() if value is not None}
    if message.get("type") == "message" or _says_role(message.get("type"), message.get("role")):
        del message["type"]
    for name in BESIDE.intersection(message):
        if not is_empty(message.pop(name)):
            state.note(f"key `{name}` of messages not read: it carries nothing to train")
    _take_added(message, place, state)
    _take_invocations(message, place, state)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_call(call) for call in calls]
    if message.get("invalid_tool_calls"):
        mend = "delete the row, or say 'data.ignore=[invalid_tool_calls]' to train without them"
        what = "the message holds calls that could not be read"
        if "invalid_tool_calls" not in state.ignore:
            where = f"{place}.invalid_tool_calls"
            state.refuse(what, where, message["invalid_tool_calls"], mend)
    message.pop("invalid_tool_calls", None)
    return message


def _opened(place: str, item: dict[str, Any], state: RowState) -> dict[str, Any]:
    """Takes a message out of the object around it, and its role from its class."""
    inner = item.get("kwargs") if "lc" in item else item.get("data")
    message, path = item, item.get("id")
    if isinstance(inner, OBJECTS):
        outer = {k: v for k, v in item.items() if k not in ("lc", "type", "id", "kwargs", "data")}
        message = {**outer, **{k: v for k, v in inner.items() if v is not None}}
        twice = [k for k in outer if k != "role" and not is_empty(outer[k]) and k in inner]
        for name in twice:
            if outer[name] != inner[name] and not is_empty(inner[name]):
                what = f"`{name}` stands in the message and around it, and differs"
                state.refuse(what, f"{place}.{name}", outer[name], "keep one of them")
    made = "lc" in item and isinstance(path, list) and bool(path)
    role = _role_of_class(path[-1] if made and path else message.get("type"))
    if role is not None:
        message = {"role": role, **{k: v for k, v in message.items() if k != "type"}}
    [(_, opened)] = authors.convert([PlacedItem(place, message)], state)
    return dict(opened)


def _role_of_class(name: Any) -> str | None:
    return CLASSES.get(name.removesuffix("Chunk")) if isinstance(name, str) else None


def _says_role(kind: Any, role: Any) -> bool:
    """Returns whether `type` repeats the role, `chat` for any."""
    if not isinstance(kind, str):
        return False
    return kind == "chat" or (role is not None and authors.ROLE_OF.get(fold(kind)) == role)


def _take_added(message: dict[str, Any], place: str, state: RowState) -> None:
    """Reads `additional_kwargs`: what the message does not say itself."""
    added = message.pop("additional_kwargs", None)
    if not isinstance(added, OBJECTS):
        return
    for name in COPIES.intersection(added):
        if not is_empty(added[name]):
            state.note(f"key `{name}` of additional_kwargs not read: the answer once more")
    rest = {name: value for name, value in added.items() if name not in COPIES}
    check_keys(rest, ADDED, f"{place}.additional_kwargs", state)
    if is_empty(message.get("tool_calls")):
        for name in ("tool_calls", "function_call"):
            if not is_empty(added.get(name)) and is_empty(message.get("tool_calls")):
                message[name] = added[name]
    if added.get("reasoning_content") and not message.get("thinking"):
        message["thinking"] = added["reasoning_content"]


def _take_invocations(message: dict[str, Any], place: str, state: RowState) -> None:
    """Moves Vercel's `toolInvocations` among the parts, where newer versions have them too."""
    invocations = message.pop("toolInvocations", None)
    parts, content = message.get("parts"), message.get("content")
    if not isinstance(invocations, list) or not invocations:
        return
    if not isinstance(parts, list):
        said = [{"type": "text", "text": content}] if isinstance(content, str) and content else []
        calls = [{"type": "tool-invocation", "toolInvocation": call} for call in invocations]
        # The text is the answer after the results, if the calls have run.
        message["parts"] = [*calls, *said]
        return
    state.note("key `toolInvocations` of messages not read: the same stands in `parts`")
    there = json.dumps(parts, ensure_ascii=False, default=str)
    for call in invocations:
        if not isinstance(call, OBJECTS) or str(call.get("toolCallId")) not in there:
            where, mend = f"{place}.toolInvocations", "keep one of them"
            state.refuse("`toolInvocations` and `parts` differ", where, call, mend)


def _call(call: Any) -> Any:
    """Writes a call of `name` and `args` as the chat format does."""
    if not isinstance(call, OBJECTS) or "args" not in call or call.get("function") is not None:
        return call
    rest = {k: v for k, v in call.items() if k not in ("name", "args", "type", "function")}
    function = {"name": call.get("name"), "arguments": call["args"] or {}}
    return {**rest, "type": "function", "function": function}
