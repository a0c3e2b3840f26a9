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
    return items
