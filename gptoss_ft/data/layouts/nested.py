"""Objects inside rows: what they hold, and the refusal of their keys that nothing reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    decoded,
    is_empty,
    note_harmless,
    shell_list,
)
from gptoss_ft.data.formats.harmless import is_harmless


def opened(raw: Any) -> dict[str, Any]:
    """Returns the keys of an object that have a value, also if it was stored as JSON text; empty
    for all else.
    """
    value = decoded(raw)
    if not isinstance(value, OBJECTS):
        return {}
    return {str(name): item for name, item in value.items() if item is not None}


def tool_list(body: Mapping[str, Any]) -> list[Any]:
    """Returns the tools of a request or row, in whatever form they are declared."""
    config = opened(body.get("toolConfig", body.get("tool_config")))
    groups = (body.get("tools"), config.get("tools"), body.get("functions"))
    lists = [decoded(group) for group in groups]
    return [tool for group in lists if isinstance(group, list) for tool in group]


def is_hollow(value: Any) -> bool:
    """Returns whether a value holds nothing, at any depth."""
    if isinstance(value, OBJECTS):
        return all(is_hollow(item) for item in value.values())
    return is_empty(value)


def check_nested(raw: Mapping[str, Any], known: frozenset[str], key: str, state: RowState) -> None:
    """Refuses the keys of an object inside a row that carry something and are not read."""
    for name, value in raw.items():
        if name in known or is_hollow(value):
            continue
        if name in state.ignore:
            state.note(f"key `{name}` of `{key}` ignored, as data.ignore says")
            continue
        if is_harmless(name):
            note_harmless(name, value, "exports", state)
            continue
        state.refuse(
            f"this key carries meaning that is not read: `{name}`",
            f"{key}.{name}",
            value,
            f"say {shell_list('data.ignore', [name])} to train without it",
        )


def the_one(body: Mapping[str, Any], names: Sequence[str], key: str, state: RowState) -> str | None:
    """Returns which of several keys an object has; one more is refused unless it is a copy.

    Args:
        body: the object.
        names: those that count first come first.
        key: where the object stands, for problems.
        state: of the row.
    """
    given = [n for n in names if not is_hollow(body.get(n)) and n not in state.ignore]
    if not given:
        return None
    whole = json.dumps(body[given[0]], ensure_ascii=False, default=str)
    others = [
        name
        for name in given[1:]
        if json.dumps(body[name], ensure_ascii=False, default=str).strip('"') not in whole
    ]
    if others:
        what = f"{' and '.join(f'`{name}`' for name in (given[0], *others))} are both given"
        mend = f"say which is not to be read: {shell_list('data.ignore', others)}"
        state.refuse(what, key, [*body], mend)
    return given[0]
