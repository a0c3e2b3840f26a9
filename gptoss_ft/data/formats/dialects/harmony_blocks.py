"""The system and developer messages of the model's own form.

What they say of the row goes into `RowState.found`: the lines of the system message, the effort,
the tools. A message that the renderer would put elsewhere, or in other words, is kept as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    check_text,
    decoded,
    is_empty,
    read_content,
    shell_list,
)
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.harmony.blocks import CHANNELS
from gptoss_ft.harmony.builtin import BUILTIN_NAMESPACES
from gptoss_ft.harmony.messages import (
    BUILTIN_TOOLS,
    EFFORTS,
    Header,
    Message,
    Namespace,
    SystemLines,
)
from gptoss_ft.harmony.tools import FUNCTIONS, tools_text

SYSTEM, DEVELOPER = "system_content", "developer_content"
SYSTEM_KEYS = frozenset(
    (
        "type",
        "model_identity",
        "reasoning_effort",
        "conversation_start_date",
        "knowledge_cutoff",
        "channel_config",
        "tools",
    )
)
CHANNEL_KEYS = frozenset(("valid_channels", "channel_required"))
DEVELOPER_KEYS = frozenset(("type", "instructions", "tools"))
NAMESPACE_KEYS = frozenset(("name", "description", "tools"))
# Text that is a whole message of the format already.
SYSTEM_MARK = "# Valid channels: "
DEVELOPER_MARKS = ("# Instructions\n\n", "# Tools\n\n## ")


def read_block(
    item: Mapping[str, Any],
    header: Header,
    place: str,
    state: RowState,
    *,
    first: bool,
    alone: bool,
) -> Message | None:
    """Reads a system or developer message; None where it only sets something of the row.

    Args:
        item: the message.
        header: of it.
        place: of it.
        state: of the row.
        first: whether it is the first message.
        alone: whether no other instructions stand right before it, with which the renderer would
            join it.
    """
    content, key = item.get("content"), f"{place}.content"
    part = _typed_part(content)
    if part is None:
        return _text_block(item, header, place, state, first)
    if isinstance(content, list) and len(content) > 1:
        what = "a system or developer message with several contents"
        state.refuse(what, key, content, "write one message for each")
        return None
    kind = part["type"]
    if kind.removesuffix("_content") != item["role"]:
        what = f"{kind} in a {item['role']} message"
        state.refuse(what, key, mend=f'write "role": "{kind.removesuffix("_content")}"')
        return None
    if kind == DEVELOPER:
        return _developer(part, header, f"{key}[0]", state, alone, first or state.found.opened)
    if not first or header != Header("system"):
        what = "a system content that is not the first message, or has a name"
        state.refuse(what, key, mend="write it as the first message, without `name`")
        return None
    _system(part, f"{key}[0]", state)
    state.found.opened = True
    return None


def _typed_part(content: Any) -> Mapping[str, Any] | None:
    if not isinstance(content, list):
        return None
    parts = (part for part in content if isinstance(part, OBJECTS))
    return next((part for part in parts if part.get("type") in (SYSTEM, DEVELOPER)), None)


def _text_block(
    item: Mapping[str, Any], header: Header, place: str, state: RowState, first: bool
) -> Message | None:
    """Reads a text. In the list form it is all of the message; flat it is instructions, as in any
    chat, unless it shows that it is a whole message of the format.
    """
    role, key = item["role"], f"{place}.content"
    text = read_content(item.get("content"), key, state)
    if text is None:
        if item.get("content") is None:
            state.refuse(f"the {role} message has no content", key, mend="write a text")
        return None
    listed = isinstance(item["content"], list)
    whole = SYSTEM_MARK in text if role == "system" else text.startswith(DEVELOPER_MARKS)
    if not listed and not whole:
        return Message(role, text)
    if role == "system" and first and header == Header("system"):
        state.found.give("system", text, key, state)
        state.found.opened = True
        return None
    # Where the system message says how to call functions, openai-harmony looks at contents of its
    # own kind only. The format asks for it wherever functions are declared.
    if text.startswith(DEVELOPER_MARKS) and f"\nnamespace {FUNCTIONS} {{\n" in text:
        state.found.functions_elsewhere = True
    return Message(role, text, header=header)


def _system(part: Mapping[str, Any], key: str, state: RowState) -> None:
    _refuse_unread(part, SYSTEM_KEYS, key, state)
    identity, cutoff, date = (
        _line(part, name, key, state)
        for name in ("model_identity", "knowledge_cutoff", "conversation_start_date")
    )
    effort = part.get("reasoning_effort")
    if effort is not None:
        known = effort.lower() if isinstance(effort, str) else effort
        if known in EFFORTS:
            state.found.give("effort", known, f"{key}.reasoning_effort", state)
        else:
            mend = f"write one of {', '.join(EFFORTS)}"
            state.refuse("unknown reasoning effort", f"{key}.reasoning_effort", effort, mend)
    channels, required = _channels(part, key, state)
    spaces = _namespaces(part, key, state)
    builtin = [space.name for space in spaces if space == BUILTIN_NAMESPACES.get(space.name)]
    state.builtin = tuple(name for name in BUILTIN_TOOLS if name in (*state.builtin, *builtin))
    state.found.builtin = tuple(builtin)
    state.found.namespaces = frozenset(space.name for space in spaces)
    own = tuple(space for space in spaces if space.name not in builtin)
    lines = SystemLines(identity, cutoff, date, channels, required, own)
    state.found.give("system", lines, key, state)


def _line(part: Mapping[str, Any], name: str, key: str, state: RowState) -> str | None:
    value = part.get(name)
    if value is None or isinstance(value, str):
        return None if value is None else check_text(value, f"{key}.{name}", state)
    state.refuse(f"`{name}` is not a text", f"{key}.{name}", value, "write a string")
    return None


def _channels(part: Mapping[str, Any], key: str, state: RowState) -> tuple[tuple[str, ...], bool]:
    config = part.get("channel_config")
    if config is None:
        return (), True
    if isinstance(config, OBJECTS):
        _refuse_unread(config, CHANNEL_KEYS, f"{key}.channel_config", state)
    channels = config.get("valid_channels") if isinstance(config, OBJECTS) else None
    if not isinstance(channels, list) or not all(isinstance(name, str) for name in channels):
        mend = 'write {"valid_channels": ["analysis", "commentary", "final"], '
        mend += '"channel_required": true}'
        state.refuse("not the config of channels", f"{key}.channel_config", config, mend)
        return CHANNELS, True
    return tuple(channels), not channels or config.get("channel_required") is not False


def _developer(
    part: Mapping[str, Any], header: Header, key: str, state: RowState, alone: bool, early: bool
) -> Message | None:
    _refuse_unread(part, DEVELOPER_KEYS, key, state)
    instructions = _line(part, "instructions", key, state)
    spaces = _namespaces(part, key, state)
    tools = spaces[0].tools if spaces else ()
    plain = not spaces or (early and spaces == (Namespace(FUNCTIONS, "", tools),) and bool(tools))
    if alone and plain and instructions != "" and (instructions or tools):
        if tools:
            state.found.give("tools", tools, f"{key}.tools", state)
        return Message("developer", instructions) if instructions else None
    functions = [space for space in spaces if space.name == FUNCTIONS and space.tools]
    state.found.functions_elsewhere |= bool(functions)
    sections = [] if instructions is None else [f"# Instructions\n\n{instructions}"]
    sections += [tools_text(spaces)] if spaces else []
    return Message("developer", "\n\n".join(sections), header=header)


def _namespaces(part: Mapping[str, Any], key: str, state: RowState) -> tuple[Namespace, ...]:
    """Reads the tools of a content, in the order in which they are declared."""
    given, key = decoded(part.get("tools")), f"{key}.tools"
    if not given:
        return ()
    if not isinstance(given, OBJECTS):
        mend = 'write {"functions": {"name": "functions", "tools": [{"name": …}]}}'
        state.refuse("`tools` is not an object of namespaces", key, given, mend)
        return ()
    spaces = [
        _namespace(name, given[name], f"{key}.{name}", state)
        for name in sorted(given)
        if given[name] is not None
    ]
    return tuple(space for space in spaces if space is not None)


def _namespace(name: str, raw: Any, key: str, state: RowState) -> Namespace | None:
    raw = decoded(raw)
    if not isinstance(raw, OBJECTS) or raw.get("name") != name:
        mend = f'write {{"name": "{name}", "description": …, "tools": […]}}'
        state.refuse("not a namespace of tools", key, raw, mend)
        return None
    _refuse_unread(raw, NAMESPACE_KEYS, key, state)
    description = _line(raw, "description", key, state) or ""
    # Only functions are called by their bare names.
    names = state if name == FUNCTIONS else replace(state, functions={}, builtin=())
    tools = read_tools({"tools": raw.get("tools")}, names, key=f"{key}.tools")
    return Namespace(name, description, tools)


def _refuse_unread(
    raw: Mapping[str, Any], known: Sequence[str] | frozenset[str], key: str, state: RowState
) -> None:
    for name, value in raw.items():
        if name in known or is_empty(value) or name in state.ignore:
            continue
        what = f"this key carries meaning that is not read: `{name}`"
        mend = f"delete it, or say {shell_list('data.ignore', [str(name)])} to train without it"
        state.refuse(what, f"{key}.{name}", value, mend)
