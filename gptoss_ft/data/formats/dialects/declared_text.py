"""Functions that stand in a system text or in metadata, where a row declares none elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded, is_empty
from gptoss_ft.data.formats.loose_json import embedded, values
from gptoss_ft.data.formats.tool_schemas import COLUMNS, PARAMETERS

_TAGGED = re.compile(
    r"<(tools|functions|available_tools|AVAILABLE_TOOLS)>\s*([\[{].*?)\s*</\1>", re.DOTALL
)
_MISTRAL = re.compile(r"\[AVAILABLE_TOOLS\]\s*(\[.*?\])\s*\[/AVAILABLE_TOOLS\]", re.DOTALL)
# Columns that may hold tools beside much else.
BESIDE = ("metadata", "meta", "meta_data", "extra", "extra_info")
TEXT_NOTE = "tools declared in a system text: declared to the model as well"
BESIDE_NOTE = "tools taken from the row's metadata"
MARKS = ("<tools>", '"parameters"', "<functions>", "AVAILABLE_TOOLS", "<available_tools>")


def with_tools(
    canonical: Mapping[str, Any], row: Mapping[str, Any], state: RowState
) -> Mapping[str, Any]:
    """Adds the tools that a row holds in its metadata or declares in the text of its system column,
    if it has no others.

    Args:
        canonical: the row in the columns of its format.
        row: as it was read from the file.
        state: of the row.
    """
    if not is_empty(canonical.get("tools")):
        return canonical
    tools = _tools_beside(row, state)
    if tools is not None:
        state.note(BESIDE_NOTE)
        return {**canonical, "tools": tools}
    system = canonical.get("system")
    if isinstance(system, str) and declares(system):
        tools, rest = without_declarations(system)
        if tools:
            state.note(TEXT_NOTE)
            return {**canonical, "tools": tools, "system": rest}
    return canonical


def _tools_beside(row: Mapping[str, Any], state: RowState) -> Any:
    """Returns the tools in a column of metadata; None if there are none."""
    for column in BESIDE:
        raw = row.get(column)
        if raw is None or column in state.ignore:
            continue
        if isinstance(raw, str) and '"tools"' not in raw and '"functions"' not in raw:
            continue
        held = decoded(raw)
        if isinstance(held, OBJECTS):
            for name in COLUMNS:
                tools = decoded(held.get(name))
                if isinstance(tools, list) and tools and all(isinstance(t, OBJECTS) for t in tools):
                    return tools
    return None


def declares(text: str) -> bool:
    """Returns whether a system text may declare functions; cheap, and yes a little too often."""
    return any(mark in text for mark in MARKS)


def without_declarations(text: str) -> tuple[list[Any], str]:
    """Finds the functions that a text declares; the text comes back empty if it says nothing else,
    and else as it is, since other words of it may speak of them.
    """
    for pattern, group in ((_TAGGED, 2), (_MISTRAL, 1)):
        matches = list(pattern.finditer(text))
        read = [values(match[group]) for match in matches]
        if matches and all(read):
            tools = [one for value in read for one in value or ()]
            return _flat(tools), text if pattern.sub("", text).strip() else ""
    found = [(begin, end, value) for begin, end, value in embedded(text) if _are_functions(value)]
    rest, place = "", 0
    for begin, end, _ in found:
        rest += text[place:begin]
        place = end
    said = (rest + text[place:]).strip()
    return _flat([value for _, _, value in found]), text if said else ""


def _flat(found: list[Any]) -> list[Any]:
    return [one for value in found for one in (value if isinstance(value, list) else [value])]


def _are_functions(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(_is_function(one) for one in listed)


def _is_function(value: Any) -> bool:
    if not isinstance(value, OBJECTS):
        return False
    inner = value.get("function")
    if isinstance(inner, OBJECTS):
        return _is_function(inner)
    return isinstance(value.get("name"), str) and not (PARAMETERS - {"arguments"}).isdisjoint(value)
