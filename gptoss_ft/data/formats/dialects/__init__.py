"""Messages as other programs write them, rewritten as messages of the chat format.

A dialect is a module with two functions. `fits(message)` tells cheaply whether a message may be
written in it; `convert(items, state)` rewrites a whole list, and may join or split messages. They
are applied in the order of `DIALECTS`, each to what the one before has made: first who speaks and
where the text stands, then masks and media, then blocks and channels, calls and thinking. What
comes out has the keys of `chat.MESSAGE_KEYS` and is read by `chat` as if it had been written so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import OBJECTS, PlacedItem, RowState
from gptoss_ft.data.formats.dialects import (
    authors,
    blocks,
    calls,
    harmony,
    masks,
    media,
    thinking,
    turn_pairs,
)
from gptoss_ft.data.formats.dialects.call_text import may_call
from gptoss_ft.data.formats.dialects.declared_text import declares
from gptoss_ft.data.formats.thinking import may_think

STANDARD_KEYS = frozenset(
    ("role", "content", "thinking", "tool_calls", "tool_call_id", "name", "weight")
)
# Of a weight; a truth is a mark of another dialect.
NUMBERS = frozenset((int, float, type(None)))


class Dialect(NamedTuple):
    """One way of writing messages; see the module."""

    fits: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[list[PlacedItem], RowState], list[PlacedItem]]


# Marks come before whatever joins messages, so that nobody but `masks` need know them.
DIALECTS = (
    Dialect(authors.fits, authors.convert),
    Dialect(masks.fits, masks.convert),
    Dialect(harmony.fits, harmony.convert),
    Dialect(media.fits, media.convert),
    Dialect(blocks.fits, blocks.convert),
    Dialect(calls.fits, calls.convert),
    Dialect(thinking.fits, thinking.convert),
)


def translated(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Rewrites a list of messages; those that are no objects are left as they are."""
    items = turn_pairs.unrolled(items, state)
    for dialect in DIALECTS:
        if any(isinstance(item, OBJECTS) and dialect.fits(item) for _, item in items):
            items = dialect.convert(items, state)
            if all(is_standard(item) for _, item in items):
                return items
    return items


def is_standard(message: Any) -> bool:
    """Returns whether a message is surely written as the chat format has it, for every dialect."""
    if type(message) is not dict or not message.keys() <= STANDARD_KEYS:
        return False
    role, content = message.get("role"), message.get("content")
    if not (content is None or type(content) is str):
        return False
    if type(message.get("weight")) not in NUMBERS:
        return False
    if role == "assistant":
        return (not content or not may_call(content)) and _has_standard_parts(message)
    if role == "tool":
        has_id = type(message.get("tool_call_id")) is str
        return has_id and content is not None and content.lstrip()[:1] != "<"
    if role == "user":
        return content is not None
    return role in ("system", "developer") and content is not None and not declares(content)


def _has_standard_parts(message: Mapping[str, Any]) -> bool:
    """Returns whether thinking and calls, if any, are written as the chat format has them."""
    thought, given = message.get("thinking"), message.get("tool_calls")
    if thought is not None and (
        type(thought) is not str or may_think(thought) or may_think(message.get("content") or "")
    ):
        return False
    return given is None or (type(given) is list and all(map(calls.is_plain, given)))
