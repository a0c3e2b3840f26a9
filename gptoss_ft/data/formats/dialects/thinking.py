"""Thinking in keys of other names: `reasoning_content`, `thought`, OpenRouter's
`reasoning_details`, LiteLLM's `thinking_blocks` and more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    PlacedItem,
    RowState,
    is_empty,
    shell_list,
)
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.formats.thinking import (
    MESSAGE_KEYS,
    may_think,
    same_thinking,
    split_thinking,
    thinking_text,
)


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether a key of thinking stands in the message."""
    return any(fold(key) in MESSAGE_KEYS for key in message)


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Writes what the keys hold as `thinking`."""
    return [
        PlacedItem(place, _converted(item, place, state))
        if isinstance(item, OBJECTS) and fits(item)
        else PlacedItem(place, item)
        for place, item in items
    ]


def _converted(message: Mapping[str, Any], place: str, state: RowState) -> Mapping[str, Any]:
    given = {key: value for key, value in message.items() if fold(key) in MESSAGE_KEYS}
    rest = {key: value for key, value in message.items() if key not in given}
    texts: dict[str, str] = {}
    for key, value in given.items():
        if is_empty(value):
            continue
        if key in state.ignore:
            state.note(f"key `{key}` of messages ignored, as data.ignore says")
        elif text := thinking_text(value, f"{place}.{key}", state):
            texts[key] = text
    if not texts:
        return rest
    _check_tags(message.get("content"), texts, place, state)
    if message.get("role") not in ("assistant", "call"):
        key = next(iter(texts))
        mend = f"move it to an assistant message, or say {shell_list('data.ignore', [key])}"
        what = f"a {message.get('role')} message cannot have `{key}`"
        state.refuse(what, f"{place}.{key}", texts[key], mend)
        return rest
    first, *others = texts
    for other in others:
        if not same_thinking(texts[first], texts[other]):
            mend = f"keep one of them: {_choice(first)} or {_choice(other)} leaves one out"
            what = f"`{first}` and `{other}` are both thinking and differ"
            state.refuse(what, place, texts[other], mend)
    return {**rest, "thinking": texts[first]}


def _check_tags(content: Any, texts: Mapping[str, str], place: str, state: RowState) -> None:
    """Refuses thinking in tags of the text that is not what the keys say."""
    if not isinstance(content, str) or not may_think(content):
        return
    # `chat` reads the tags; what is wrong with them is its to say.
    inline, _ = split_thinking(content, place, RowState(state.where))
    for key, text in texts.items():
        if inline and not same_thinking(inline, text):
            what = f"`{key}` and the thinking in tags of the text are both given and differ"
            mend = f"keep one of them: {_choice(key)} keeps that of the text"
            state.refuse(what, place, text, mend)


def _choice(key: str) -> str:
    return shell_list("data.ignore", [key])
