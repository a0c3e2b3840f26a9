"""Images, sound and video in a message: a key such as `images`, or parts of its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, PlacedItem, RowState, is_empty, shell_list
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.formats.media import MEDIA, PARTS, WITHOUT, without_places


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether the message has a key or a part of media with something in it."""
    return bool(_keys(message) or _parts(message))


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Drops media that the user ignores, with their places in all the messages; refuses others."""
    before = len(state.problems)
    kept = [PlacedItem(place, _without(item, place, state)) for place, item in items]
    if len(state.problems) > before:
        return kept
    state.note(WITHOUT)
    return [PlacedItem(place, without_places(item)) for place, item in kept]


def _keys(message: Mapping[str, Any]) -> list[str]:
    return [key for key, value in message.items() if fold(key) in MEDIA and not is_empty(value)]


def _parts(message: Mapping[str, Any]) -> list[int]:
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [
        i for i, part in enumerate(content) if isinstance(part, OBJECTS) and _family(part) != ""
    ]


def _family(part: Mapping[str, Any]) -> str:
    """Returns the column that stands for the part in `data.ignore`, empty for other parts."""
    kind = part.get("type")
    return PARTS.get(fold(kind), "") if isinstance(kind, str) else ""


def _without(item: Any, place: str, state: RowState) -> Any:
    """Drops the media of one message."""
    if not isinstance(item, OBJECTS) or not fits(item):
        return item
    keys, parts = _keys(item), _parts(item)
    before = len(state.problems)
    for key in keys:
        _check((key,), f"`{key}` is not text", f"{place}.{key}", item[key], state)
    for i in parts:
        part = item["content"][i]
        names = (_family(part), str(part["type"]))
        what = f"this part is of type {part['type']!r}"
        _check(names, what, f"{place}.content[{i}]", part, state)
    kept = {key: value for key, value in item.items() if key not in keys}
    if parts:
        kept["content"] = [part for i, part in enumerate(item["content"]) if i not in parts]
        if not kept["content"] and len(state.problems) == before:
            mend = "leave such rows out with data.on_bad=drop"
            state.refuse("nothing is left of the message without its media", place, mend=mend)
        if not kept["content"]:
            kept["content"] = " "  # refused already; an empty message would be refused once more
    return kept


def _check(names: tuple[str, ...], what: str, key: str, found: Any, state: RowState) -> None:
    """Refuses media unless the user ignores one of their names, of which the first is advised."""
    if state.ignore.isdisjoint(names):
        mend = (
            f"say {shell_list('data.ignore', names[:1])} to train the text without, or describe it "
            "in words"
        )
        state.refuse(f"gpt-oss reads text only, and {what}", key, found, mend)
