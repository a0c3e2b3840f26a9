"""Who speaks and where the text stands: `from` and `value`, `type: human`, roles in any case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, PlacedItem, RowState
from gptoss_ft.data.formats.harmless import fold

# The chat format's roles, by what other programs call them. `call` is a turn that holds nothing but
# calls; the dialect of calls reads it.
ROLE_OF = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "environment": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "tool_results": "tool",
    "tool_output": "tool",
    "function_response": "tool",
    "function_result": "tool",
    "function_output": "tool",
    "call": "call",
    "tool_call": "call",
    "tool_calls": "call",
    "function_call": "call",
}
# Where the author and the text stand, the first that is there.
AUTHOR_KEYS = ("role", "from", "speaker", "sender", "author", "type")
# Of these, those that can hold nothing else.
SPEAKERS = ("from", "speaker", "sender")
TEXT_KEYS = ("content", "value", "text", "message", "system_prompt")
CHAT_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))


def author_of(message: Mapping[str, Any]) -> str | None:
    """Returns the chat role of a message's author; None where no known one is named."""
    author = next((message[key] for key in AUTHOR_KEYS if isinstance(message.get(key), str)), None)
    return None if author is None else ROLE_OF.get(fold(author))


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether the author or the text stands elsewhere, or the role has another name."""
    role = message.get("role")
    return (
        not isinstance(role, str)
        or role not in CHAT_ROLES
        or (message.get("content") is None and any(message.get(key) for key in TEXT_KEYS))
    )


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Writes `role` and `content`; an unknown author is left for the chat format to refuse."""
    return [PlacedItem(place, _renamed(item, state)) for place, item in items]


def _is_text(key: str, message: Mapping[str, Any]) -> bool:
    """Returns whether the text stands under a key; the last ones may hold something else."""
    if key in ("message", "system_prompt"):
        is_own = key == "message" or message.get("role") == "system"
        return is_own and isinstance(message.get(key), str)
    return key in message


def _renamed(item: Any, state: RowState) -> Any:
    if not isinstance(item, OBJECTS) or not fits(item):
        return item
    renamed = {key: value for key, value in item.items() if value is not None}
    author = next((key for key in AUTHOR_KEYS if isinstance(renamed.get(key), str)), None)
    role = ROLE_OF.get(fold(renamed[author])) if author else None
    if author is not None and (role is not None or author in SPEAKERS):
        renamed["role"] = role or renamed[author]
        if author != "role":
            del renamed[author]
            state.keys["role"] = author
    text = next((key for key in TEXT_KEYS if _is_text(key, renamed)), None)
    if text is not None and text != "content":
        renamed["content"] = renamed.pop(text)
        state.keys["content"] = text
    return renamed
