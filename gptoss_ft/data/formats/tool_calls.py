"""Calls of tools, and which call a result answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import (
    RowState,
    check_keys,
    check_text,
    decoded,
    listed,
    without_nulls,
)
from gptoss_ft.data.formats.loose_json import dumped, json_value
from gptoss_ft.data.formats.tool_names import function_name
from gptoss_ft.harmony.messages import ToolCall

# The recipients that a builtin tool answers to.
RECIPIENTS = {
    "browser": ("browser.search", "browser.open", "browser.find"),
    "python": ("python",),
}
CALL_KEYS = frozenset(("id", "type", "index", "function"))
FUNCTION_KEYS = frozenset(("name", "arguments"))
UNDECLARED_NOTE = "calls of tools that the row does not declare"
MISSING_NOTE = "calls without arguments that their tool requires"
UNKNOWN_NOTE = "calls with arguments that their tool does not declare"
TWICE_NOTE = "arguments of calls encoded twice: one encoding taken off"
NO_OBJECT_NOTE = "arguments of calls that are JSON, but no object: trained as they stand"
OTHER_NAME_NOTE = "key `name` of results of tools not read: their call has another name"
EMPTY_NOTE = "calls without arguments: written with `{}`"
CALL_MEND = 'write [{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}]'


def read_tool_calls(raw: Any, key: str, strict: bool, state: RowState) -> tuple[ToolCall, ...]:
    """Reads the `tool_calls` of an OpenAI chat message; `strict` as in `make_call`."""
    if raw is None:
        return ()
    if not isinstance(raw, list):
        state.refuse("`tool_calls` is not a list", f"{key}.tool_calls", raw, CALL_MEND)
        return ()
    calls = [
        _tool_call(call, f"{key}.tool_calls[{i}]", strict, state) for i, call in enumerate(raw)
    ]
    return tuple(call for call in calls if call is not None)


def _tool_call(raw: Any, key: str, strict: bool, state: RowState) -> ToolCall | None:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    if not isinstance(function, Mapping):
        state.refuse("a tool call without `function`", key, raw, CALL_MEND)
        return None
    if not (raw.keys() <= CALL_KEYS and function.keys() <= FUNCTION_KEYS):
        check_keys(raw, CALL_KEYS, key, state)
        check_keys(function, FUNCTION_KEYS, f"{key}.function", state)
    call_id = read_id(raw.get("id"), f"{key}.id", state)
    return make_call(function, call_id, f"{key}.function", strict, state)


def read_id(raw: Any, key: str, state: RowState) -> str:
    """Reads the id of a call, empty for none."""
    if raw is None or isinstance(raw, str):
        return raw or ""
    state.refuse("the id of a call is not a text", key, raw, "write a string")
    return ""


def make_call(
    function: Mapping[str, Any], call_id: str, key: str, strict: bool, state: RowState
) -> ToolCall | None:
    """Builds a call from an object with `name` and `arguments`, remembered for the result that
    answers it.

    Args:
        function: holds `name` and `arguments`.
        call_id: empty for none.
        key: of `function`.
        strict: refuse arguments that are not JSON. A recorded mistake may stand in the history or
            in a rejected completion, but the model is not to learn to write it.
        state: of the row.
    """
    recipient = _recipient(function.get("name"), f"{key}.name", state)
    given, where = function.get("arguments"), f"{key}.arguments"
    if recipient == ("python", True):
        arguments = _code(given, where, state)
    else:
        tool = recipient[0] if recipient and not recipient[1] else ""
        arguments = _arguments(given, tool, where, strict, state)
    if call_id:
        # Kept even when the call is broken, so that its result is not reported as well.
        state.calls[call_id] = recipient or ("", False)
    if recipient is not None:
        state.called[recipient[0]] = recipient[1]
    if recipient is None or arguments is None:
        return None
    return ToolCall(recipient[0], arguments, call_id, recipient[1])


def _recipient(raw: Any, key: str, state: RowState) -> tuple[str, bool] | None:
    """Reads the name of the tool that is called, and whether it is a builtin one."""
    name = function_name(raw, key, "the call", state)
    if name is None or name != raw or name in state.functions:
        return None if name is None else (name, False)
    family = name.split(".")[0]
    if family in state.builtin:
        if name in RECIPIENTS[family]:
            return name, True
        mend = f"call {' or '.join(RECIPIENTS[family])}"
        state.refuse(f"the builtin tool `{family}` has no such function", key, raw, mend)
        return None
    if name in RECIPIENTS["browser"]:
        mend = 'write "builtin_tools": ["browser"] in the row, or declare the function in `tools`'
        state.refuse("a call of a builtin tool that the row does not declare", key, raw, mend)
        return None
    return name, False


def _arguments(raw: Any, tool: str, key: str, strict: bool, state: RowState) -> str | None:
    """Reads JSON text as given; an object or a list is written compactly, without nulls in it."""
    if raw in (None, "", []) and tool in state.functions and not _required(state.functions[tool]):
        state.note(EMPTY_NOTE)
        return "{}"
    if isinstance(raw, Mapping | list):
        value: Any = without_nulls(raw)
        if isinstance(raw, list):
            state.note(NO_OBJECT_NOTE)
        text = dumped(value)
        if text is None:
            state.refuse("the arguments are not JSON", key, raw, "write them as a string of JSON")
            return None
    elif isinstance(raw, str):
        text = raw
        try:
            text, value = _unwrapped(raw, json_value(raw), state)
        except ValueError:
            value = None
            if strict:
                mend = "repair the JSON, `{}` for no arguments, or set the message's `weight` to 0"
                state.refuse("the arguments are not JSON", key, raw, mend)
                return None
    else:
        mend = "write the arguments as an object, or as a string of JSON; `{}` for none"
        state.refuse("the arguments are neither an object nor a text", key, raw, mend)
        return None
    if tool:
        _compare(tool, value, state)
    return check_text(text, key, state)


def check_arguments(calls: Sequence[ToolCall], key: str, state: RowState) -> None:
    """Refuses calls that a row gives as text and says to be JSON, and that are not."""
    for call in calls:
        kind = call.header.content_type if call.header else "json"
        is_json = not call.builtin and kind.removeprefix("<|constrain|>") in ("json", "")
        if is_json and not _is_json(call.arguments):
            mend = "repair the JSON, `{}` for no arguments, or set the message's `weight` to 0"
            state.refuse("the arguments are not JSON", f"{key}.content", call.arguments, mend)


def _is_json(text: str) -> bool:
    try:
        json_value(text)
    except ValueError:
        return False
    return True


def _unwrapped(text: str, value: Any, state: RowState) -> tuple[str, Any]:
    """Takes one encoding off arguments that are JSON text within JSON text."""
    if isinstance(value, str):
        try:
            inner = json_value(value)
        except ValueError:
            inner = None
        if isinstance(inner, Mapping):
            state.note(TWICE_NOTE)
            return value, inner
    if not isinstance(value, Mapping):
        state.note(NO_OBJECT_NOTE)
    return text, value


def _compare(tool: str, value: Any, state: RowState) -> None:
    """Notes a call that does not fit its declaration."""
    if tool not in state.functions:
        state.note(UNDECLARED_NOTE)
        return
    schema = state.functions[tool]
    if not isinstance(value, Mapping) or schema is None:
        return
    properties = schema.get("properties")
    if any(name not in value for name in _required(schema)):
        state.note(MISSING_NOTE)
    if isinstance(properties, Mapping) and not (value.keys() <= properties.keys()):
        state.note(UNKNOWN_NOTE)


def _required(schema: Mapping[str, Any] | None) -> list[str]:
    names = None if schema is None else schema.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _code(raw: Any, key: str, state: RowState) -> str | None:
    """Reads the code that `python` is to run: a text, or the one value of an object `{"code":
    …}`. Code that fails is worth learning from as well.
    """
    given = decoded(raw)
    if isinstance(given, Mapping):
        given = {name: value for name, value in given.items() if value is not None}
    wrapped = isinstance(given, Mapping) and list(given) == ["code"]
    code = given["code"] if wrapped else raw
    if isinstance(code, str) and code.strip():
        return check_text(code, key, state)
    mend = 'write the code as a string, or as {"code": …}'
    state.refuse("the call of `python` holds no code", key, raw, mend)
    return None


def result_of(
    raw: Mapping[str, Any], key: str, state: RowState, id_key: str = "tool_call_id"
) -> tuple[str, bool]:
    """Finds the tool whose result this is, through `id_key`, else through `name`; return its name
    and whether it is builtin.
    """
    call_id, name = raw.get(id_key), raw.get("name")
    what = "the tool result answers a call that was not made before it"
    if isinstance(call_id, str) and call_id in state.calls:
        if name and name != state.calls[call_id][0]:
            state.note(OTHER_NAME_NOTE)
        return state.calls[call_id]
    if call_id is not None:
        mend = f"write the id of an earlier call: {listed(state.calls)}"
        state.refuse(what, f"{key}.{id_key}", call_id, mend)
    elif name is None:
        mend = "write the `id` of the call that this result answers"
        state.refuse(f"the tool result has no `{id_key}`", f"{key}.{id_key}", mend=mend)
    else:
        function = function_name(name, f"{key}.name", "the tool result", state)
        if function is None or function in state.called:
            return function or "", state.called.get(function or "", False)
        mend = f"write the name of a function called before: {listed(state.called)}"
        state.refuse(what, f"{key}.name", name, mend)
    return "", False
