"""Functions that a system text declares, where a row declares none elsewhere."""

from __future__ import annotations

import re
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS
from gptoss_ft.data.formats.loose_json import embedded, values
from gptoss_ft.data.formats.tool_schemas import PARAMETERS

_TAGGED = re.compile(
    r"<(tools|functions|available_tools|AVAILABLE_TOOLS)>\s*([\[{].*?)\s*</\1>", re.DOTALL
)
_MISTRAL = re.compile(r"\[AVAILABLE_TOOLS\]\s*(\[.*?\])\s*\[/AVAILABLE_TOOLS\]", re.DOTALL)
MARKS = ("<tools>", '"parameters"', "<functions>", "AVAILABLE_TOOLS", "<available_tools>")


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
