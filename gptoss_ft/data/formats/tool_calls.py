"""Tools that a row declares, calls of them, and which call a result answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    check_text,
    decoded,
    listed,
    template_settings,
    without_nulls,
)
from gptoss_ft.harmony.messages import BUILTIN_TOOLS, ToolCall, ToolSpec

# The recipients that a builtin tool answers to.
RECIPIENTS = {
    "browser": ("browser.search", "browser.open", "browser.find"),
    "python": ("python",),
}
# What the same two tools are called among the tools of the Responses API and of gpt-oss servers.
BUILTIN_TYPES = {
    "browser": "browser",
    "browser_search": "browser",
    "web_search": "browser",
    "web_search_preview": "browser",
    "python": "python",
    "code_interpreter": "python",
}
TOOL_MEND = 'write {"type": "function", "function": {"name": …, "parameters": {…}}}'
FLAT_TOOL_MEND = 'write {"type": "function", "name": …, "parameters": {…}}'
CALL_MEND = 'write [{"id": …, "type": "function", "function": {"name": …, "arguments": {…}}}]'


# Made once: `json.dumps` builds an encoder for every call.
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def read_tools(
    row: Mapping[str, Any], state: RowState, *, flat: bool = False, key: str = "tools"
) -> tuple[ToolSpec, ...]:
    """Reads the functions of `tools`; its builtin tools and those of `builtin_tools` go into the
    state.

    Args:
        row: the object that holds `tools` and `builtin_tools`.
        state: of the row.
        flat: whether a function may stand without the `function` object around it.
        key: where `tools` stands, for problems.
    """
    _read_builtin(row, state)
    if row.get("functions") is not None:
        state.refuse("`functions` is the old form of `tools`", "functions", mend=TOOL_MEND)
    raw = decoded(row.get("tools"))
    if raw is None:
        return ()
    if not isinstance(raw, list):
        state.refuse("`tools` is not a list", key, raw, FLAT_TOOL_MEND if flat else TOOL_MEND)
        return ()
    tools = [_tool(tool, f"{key}[{i}]", state, flat) for i, tool in enumerate(raw)]
    for tool in tools:
        if tool is not None and tool.name in state.builtin:
            what = f"`{tool.name}` is a function and a builtin tool at once"
            state.refuse(what, key, mend="rename the function, or drop the builtin tool")
    read = tuple(tool for tool in tools if tool is not None)
    state.functions.update(tool.name for tool in read)
    return read


def _read_builtin(row: Mapping[str, Any], state: RowState) -> None:
    raw, key = row.get("builtin_tools"), "builtin_tools"
    if raw is None:
        raw = template_settings(row).get("builtin_tools")
        key = "chat_template_kwargs.builtin_tools"
    raw = decoded(raw)
    mend = f"write a list of {' and '.join(BUILTIN_TOOLS)}"
    if raw is None:
        return
    if not isinstance(raw, list):
        state.refuse("`builtin_tools` is not a list", key, raw, mend)
        return
    for i, name in enumerate(raw):
        if name in BUILTIN_TOOLS:
            _declare(name, state)
        else:
            state.refuse("unknown builtin tool", f"{key}[{i}]", name, mend)


def _declare(name: str, state: RowState) -> None:
    state.builtin = tuple(tool for tool in BUILTIN_TOOLS if tool in (*state.builtin, name))


def _tool(raw: Any, key: str, state: RowState, flat: bool) -> ToolSpec | None:
    function = raw.get("function") if isinstance(raw, Mapping) else None
    inner = f"{key}.function"
    if function is None and isinstance(raw, Mapping):
        kind = raw.get("type")
        if isinstance(kind, str) and kind in BUILTIN_TYPES:
            _declare(BUILTIN_TYPES[kind], state)
            return None
        if flat and kind in (None, "function"):
            function, inner = raw, key
    if not isinstance(function, Mapping):
        mend = FLAT_TOOL_MEND if flat else TOOL_MEND
        state.refuse("not a function tool", key, raw, mend)
        return None
    name = _function_name(function.get("name"), f"{inner}.name", "the tool", state)
    description = function.get("description") or ""
    if not isinstance(description, str):
        where = f"{inner}.description"
        state.refuse("the description is not a text", where, description, "write a string")
        return None
    check_text(description, f"{inner}.description", state)
    parameters = _parameters(function.get("parameters"), f"{inner}.parameters", state)
    return None if name is None else ToolSpec(name, description, parameters)


def _parameters(raw: Any, key: str, state: RowState) -> Mapping[str, Any] | None:
    if raw is None:
        return None
    raw = decoded(raw)
    if not isinstance(raw, Mapping):
        state.refuse("the parameters are not a JSON schema", key, raw, "write an object")
        return None
    # Pydantic writes `"default": null` and means it; any other null was filled in by Arrow, and
    # then so were the defaults.
    schema = without_nulls(raw) if _has_filled_nulls(raw) else raw
    if raw and not schema:
        return None
    text = _dumped(schema)
    if text is None:
        state.refuse("the parameters are not JSON", key, raw, "write a JSON schema")
    else:
        check_text(text, key, state)
    return schema


def _has_filled_nulls(schema: Any) -> bool:
    if isinstance(schema, OBJECTS):
        return any(
            name not in ("default", "const") if value is None else _has_filled_nulls(value)
            for name, value in schema.items()
        )
    return isinstance(schema, list) and any(_has_filled_nulls(item) for item in schema)


def _dumped(value: Any) -> str | None:
    """Dumps compact JSON, the way the model itself writes it; None for what JSON cannot hold."""
    try:
        return COMPACT.encode(value)
    except (TypeError, ValueError, RecursionError):
        return None


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
    python = recipient == ("python", True)
    read = _code if python else _arguments
    arguments = read(function.get("arguments"), f"{key}.arguments", strict, state)
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
    name = _function_name(raw, key, "the call", state)
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


def _function_name(raw: Any, key: str, owner: str, state: RowState) -> str | None:
    """Reads a name that can stand in a Harmony header: one word, nothing that ends the header."""
    name = raw.removeprefix("functions.") if isinstance(raw, str) else raw
    if name is None or name == "":
        state.refuse(f"{owner} has no name", key, mend="write the name of the function")
    elif not isinstance(name, str) or not _is_word(name):
        state.refuse("not a function name", key, raw, "use letters, digits, `_`, `-` and `.`")
    else:
        return name
    return None


def _is_word(name: str) -> bool:
    return not any(c.isspace() or c in "<>|" or "\ud800" <= c <= "\udfff" for c in name)


def _arguments(raw: Any, key: str, strict: bool, state: RowState) -> str | None:
    """Reads JSON text as given; an object is written compactly, its null arguments left out."""
    if isinstance(raw, Mapping):
        text = _dumped(without_nulls(raw))
        if text is None:
            state.refuse("the arguments are not JSON", key, raw, "write them as a string of JSON")
            return None
        return check_text(text, key, state)
    if not isinstance(raw, str):
        mend = "write the arguments as an object, or as a string of JSON; `{}` for none"
        state.refuse("the arguments are neither an object nor a text", key, raw, mend)
        return None
    if strict and not _is_json(raw):
        mend = "repair the JSON, `{}` for no arguments, or set the message's `weight` to 0"
        state.refuse("the arguments are not JSON", key, raw, mend)
        return None
    return check_text(raw, key, state)


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
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _code(raw: Any, key: str, strict: bool, state: RowState) -> str | None:
    """Reads the code that `python` is to run: a text, or the one value of an object `{"code":
    …}`.
    """
    del strict  # Code that fails is worth learning from as well.
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
        return state.calls[call_id]
    if call_id is not None:
        mend = f"write the id of an earlier call: {listed(state.calls)}"
        state.refuse(what, f"{key}.{id_key}", call_id, mend)
    elif name is None:
        mend = "write the `id` of the call that this result answers"
        state.refuse(f"the tool result has no `{id_key}`", f"{key}.{id_key}", mend=mend)
    else:
        function = _function_name(name, f"{key}.name", "the tool result", state)
        if function is None or function in state.called:
            return function or "", state.called.get(function or "", False)
        mend = f"write the name of a function called before: {listed(state.called)}"
        state.refuse(what, f"{key}.name", name, mend)
    return "", False
