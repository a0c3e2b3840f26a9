"""Tools that a row declares, in whatever layout the functions are written.

OpenAI's nested and flat functions, bare ones, Anthropic's `input_schema`, Bedrock's `toolSpec`,
Gemini's `functionDeclarations`, MCP's `inputSchema`, LangChain's `args`, openai-harmony's
namespaces, functions by their names, and each of them as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    check_text,
    decoded,
    is_empty,
    nearest,
    template_settings,
    without_nulls,
)
from gptoss_ft.data.formats.loose_json import dumped, values
from gptoss_ft.data.formats.tool_names import function_name, plain_name
from gptoss_ft.data.formats.tool_types import is_regular, object_schema
from gptoss_ft.harmony.messages import BUILTIN_TOOLS, ToolSpec

# What the builtin tools are called among the tools of the Responses API and of gpt-oss servers.
BUILTIN_TYPES = {
    "browser": "browser",
    "browser_search": "browser",
    "web_search": "browser",
    "web_search_preview": "browser",
    "python": "python",
    "code_interpreter": "python",
}
TOOL_MEND = 'write {"type": "function", "function": {"name": …, "parameters": {…}}}'
# Where functions stand, in a row or on a message.
COLUMNS = ("tools", "functions")
PARAMETER_KEYS = (
    "parameters", "input_schema", "inputSchema", "parametersJsonSchema", "parameters_json_schema",
    "args_schema", "arguments", "args", "inputs", "input", "params", "schema",
)  # fmt: skip
PARAMETERS = frozenset(PARAMETER_KEYS)
# ToolBench lists required and optional parameters apart.
SPLIT_KEYS = (("required_parameters", True), ("optional_parameters", False))
# Settings of the API, of no meaning to the model.
API_KEYS = frozenset(
    ("strict", "cache_control", "cachePoint", "defer_loading", "title", "function")
)
# Keys around a list of functions; what stands beside one chooses among them.
LIST_KEYS = ("functionDeclarations", "function_declarations", "tools", "functions")
FUNCTION_TYPES = (None, "function", "custom", "tool")
NAMESPACES = frozenset(("functions", *BUILTIN_TOOLS))


def read_tools(
    row: Mapping[str, Any], state: RowState, *, key: str = "tools"
) -> tuple[ToolSpec, ...]:
    """Reads the functions of `tools`, or of `functions`; the builtin tools among them and those of
    `builtin_tools` go into the state.

    Args:
        row: the object that holds `tools` and `builtin_tools`.
        state: of the row.
        key: where `tools` stands, for problems.
    """
    _read_builtin(row, state)
    given = {name: row[name] for name in COLUMNS if not is_empty(row.get(name))}
    if len(given) > 1 and decoded(row["tools"]) != decoded(row["functions"]):
        mend = "keep one of them"
        state.refuse("`tools` and `functions` are both given and differ", "functions", mend=mend)
    name, raw = next(iter(given.items()), (key, None))
    return declare(raw, key if name == "tools" else name, state)


def declare(raw: Any, key: str, state: RowState) -> tuple[ToolSpec, ...]:
    """Reads functions in any layout; the state remembers them for the calls."""
    tools: list[ToolSpec] = []
    written: dict[str, Any] = {}
    for place, one in _functions(raw, key, state):
        tool = _tool(one, place, state)
        if tool is None:
            continue
        if tool.name in state.builtin:
            what = f"`{tool.name}` is a function and a builtin tool at once"
            state.refuse(what, key, mend="rename the function, or drop the builtin tool")
        if written.setdefault(tool.name, one["name"]) != one["name"]:
            what, mend = f"two tools would be called `{tool.name}`", "give each a name of its own"
            state.refuse(what, f"{place}.name", one["name"], mend)
        state.functions[tool.name] = tool.parameters
        tools.append(tool)
    return tuple(tools)


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
            _declare_builtin(name, state)
        else:
            state.refuse("unknown builtin tool", f"{key}[{i}]", name, mend)


def _declare_builtin(name: str, state: RowState) -> None:
    state.builtin = tuple(tool for tool in BUILTIN_TOOLS if tool in (*state.builtin, name))


Found = list[tuple[str, Mapping[str, Any]]]


def _functions(raw: Any, key: str, state: RowState) -> Found:
    """Finds the objects that hold a function's name, and where they stand."""
    if is_empty(raw):
        return []
    if isinstance(raw, str):
        read = values(raw)
        if read is None:
            state.refuse(f"`{key}` is neither a list nor JSON", key, raw, TOOL_MEND)
            return []
        raw = read[0] if len(read) == 1 else read
        if is_empty(raw):
            return []
    if isinstance(raw, list):
        places = [(f"{key}[{i}]", one) for i, one in enumerate(raw)]
        for place, one in places:
            if is_empty(one):
                state.refuse("not a function tool", place, one, TOOL_MEND)
        return [found for place, one in places for found in _functions(one, place, state)]
    if isinstance(raw, OBJECTS):
        return _of_object(raw, key, state)
    what = "not a function tool" if key.endswith("]") else f"`{key}` is not a list"
    state.refuse(what, key, raw, TOOL_MEND)
    return []


def _of_object(raw: Mapping[str, Any], key: str, state: RowState) -> Found:
    kind, name = raw.get("type"), raw.get("name")
    for inner in ("function", "toolSpec"):
        if isinstance(raw.get(inner), OBJECTS):
            _check_keys(raw, ("type", inner), key, state)
            return [(f"{key}.{inner}", raw[inner])]
    if isinstance(kind, str) and kind in BUILTIN_TYPES and raw.get("parameters") is None:
        _declare_builtin(BUILTIN_TYPES[kind], state)
        return []
    if NAMESPACES.issuperset(raw) and all(isinstance(one, OBJECTS) for one in raw.values()):
        for builtin in BUILTIN_TOOLS:
            if builtin in raw:
                _declare_builtin(builtin, state)
        return _functions(raw["functions"], f"{key}.functions", state) if "functions" in raw else []
    for inner in LIST_KEYS:
        if isinstance(raw.get(inner), list) and name in (None, "functions"):
            return _functions(raw[inner], f"{key}.{inner}", state)
    if isinstance(name, str) and (kind in FUNCTION_TYPES or not PARAMETERS.isdisjoint(raw)):
        return [(key, raw)]
    if isinstance(raw.get("title"), str) and isinstance(raw.get("properties"), OBJECTS):
        schema = {k: v for k, v in raw.items() if k not in ("title", "description")}
        about = {"name": raw["title"], "description": raw.get("description")}
        return [(key, {**about, "parameters": schema})]
    by_name = kind is None and name is None and all(_holds_function(one) for one in raw.values())
    if by_name:
        return [(f"{key}.{k}", {"name": k, **_without_wrap(one)}) for k, one in raw.items()]
    state.refuse("not a function tool", key, raw, TOOL_MEND)
    return []


def _holds_function(raw: Any) -> bool:
    return isinstance(raw, OBJECTS) and (
        "description" in raw or "function" in raw or not PARAMETERS.isdisjoint(raw)
    )


def _without_wrap(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = raw.get("function")
    return inner if isinstance(inner, OBJECTS) else raw


def _tool(function: Mapping[str, Any], key: str, state: RowState) -> ToolSpec | None:
    name = function_name(function.get("name"), f"{key}.name", "the tool", state)
    description = function.get("description") or ""
    if not isinstance(description, str):
        where = f"{key}.description"
        state.refuse("the description is not a text", where, description, "write a string")
        return None
    check_text(description, f"{key}.description", state)
    keys = ("name", "description", "parameters", "type", *_parameter_keys(function))
    keys += ("required",) if isinstance(function.get("required"), list) else ()
    _check_keys(function, keys, key, state)
    parameters = _parameters(function, key, state)
    return None if name is None else ToolSpec(name, description, parameters)


def _check_keys(raw: Mapping[str, Any], read: tuple[str, ...], key: str, state: RowState) -> None:
    """Notes what Harmony cannot declare, such as results; refuses a misspelt key."""
    for name, value in raw.items():
        if name in read or name in API_KEYS or is_empty(value):
            continue
        near = nearest(str(name), ("parameters", "description"), 0.8)
        if near and near in read and raw.get(near) is None:
            state.refuse("unknown key of a tool", f"{key}.{name}", value, f"did you mean `{near}`?")
        else:
            state.note(f"key `{name}` of tools not read: Harmony declares parameters only")


def _parameter_keys(function: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the key under which the parameters stand, or the two that share them."""
    name = next((one for one in PARAMETER_KEYS if function.get(one) not in (None, "", [])), None)
    return tuple(one for one, _ in SPLIT_KEYS) if name is None else (name,)


def _parameters(function: Mapping[str, Any], key: str, state: RowState) -> Mapping[str, Any] | None:
    name, *others = _parameter_keys(function)
    if others:
        return _split_parameters(function, state)
    raw, key = decoded(function[name]), f"{key}.{name}"
    if isinstance(raw, OBJECTS) and raw.keys() == {"json"}:  # Bedrock's
        raw = decoded(raw["json"])
    if not isinstance(raw, OBJECTS):
        listed = object_schema(raw, None, state) if isinstance(raw, list) else None
        if listed is None or not isinstance(listed.get("properties"), OBJECTS):
            state.refuse("the parameters are not a JSON schema", key, raw, "write an object")
            return None
        return _checked(listed, key, state)
    # Pydantic writes `"default": null` and means it; any other null was filled in by Arrow, and
    # then so were the defaults.
    regular = is_regular(raw)
    schema = without_nulls(raw) if not regular and _has_filled_nulls(raw) else raw
    if raw and not schema:
        return None
    required = function.get("required")
    return _checked(object_schema(schema, required, state, regular=regular), key, state)


def _checked(schema: Mapping[str, Any], key: str, state: RowState) -> Mapping[str, Any]:
    text = dumped(schema)
    if text is None:
        state.refuse("the parameters are not JSON", key, schema, "write a JSON schema")
    else:
        check_text(text, key, state)
    return schema


def _split_parameters(function: Mapping[str, Any], state: RowState) -> Mapping[str, Any] | None:
    listed = [
        {**one, "required": needed}
        for key, needed in SPLIT_KEYS
        if isinstance(function.get(key), list)
        for one in function[key]
        if isinstance(one, OBJECTS)
    ]
    return object_schema(listed, None, state) if listed else None


def _has_filled_nulls(schema: Any) -> bool:
    if isinstance(schema, OBJECTS):
        return any(
            name not in ("default", "const") if value is None else _has_filled_nulls(value)
            for name, value in schema.items()
        )
    return isinstance(schema, list) and any(_has_filled_nulls(item) for item in schema)


def is_declared(name: Any, state: RowState) -> bool:
    """Returns whether the row declares a function of this name."""
    return isinstance(name, str) and plain_name(name) in state.functions
