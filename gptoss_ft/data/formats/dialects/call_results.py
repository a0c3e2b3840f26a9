"""Results of tools in other clothes: in tags, in turns of the user, as objects, one for several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, is_empty, without_nulls
from gptoss_ft.data.formats.loose_json import COMPACT, elements

_TAGGED = re.compile(
    r"<(tool_response|tool_results?|function_response|function_results?|TOOL_RESPONSE)>"
    r"\s*(.*?)\s*</\1>",
    re.DOTALL,
)
# OpenHands, with calls in the text.
_EXECUTED = re.compile(r"\s*EXECUTION RESULT of \[([^\]]+)\]:[ ]?\n?(.*)\Z", re.DOTALL)
EMPTY_NOTE = "results of tools without content: read as empty"
JSON_NOTE = "results of tools that are objects: written as JSON"


def is_odd_result(message: Mapping[str, Any]) -> bool:
    """Returns whether a result names no call by id, or is not a plain text."""
    content = message.get("content")
    return (
        not isinstance(message.get("tool_call_id"), str)
        or not isinstance(content, str)
        or (content.lstrip()[:1] == "<" and _TAGGED.search(content) is not None)
    )


def results_of(message: Mapping[str, Any], state: RowState) -> list[Mapping[str, Any]]:
    """Rewrites a tool message as one message for each result in it, the content a text."""
    content = message.get("content")
    if content is None:
        state.note(EMPTY_NOTE)
        return [{**message, "content": ""}]
    if isinstance(content, str):
        tagged = _tagged(content)
        return [{**message, "content": text} for text in tagged or [content]]
    if not _has_parts(content):
        text = _json(content)
        if text is not None:
            state.note(JSON_NOTE)
            return [{**message, "content": text}]
    return [message]


def _has_parts(content: Any) -> bool:
    """Returns whether it is a list of parts, as the chat format writes contents."""
    return isinstance(content, list) and any(
        isinstance(part, OBJECTS) and isinstance(part.get("type"), str) for part in content
    )


def _json(content: Any) -> str | None:
    try:
        return COMPACT.encode(without_nulls(content))
    except (TypeError, ValueError, RecursionError):
        return None


def _tagged(text: str) -> list[str] | None:
    """Cuts the tags off results; None if the text is anything else than results in tags."""
    if text.lstrip()[:1] != "<" or _TAGGED.sub("", text).strip():
        return None
    return [match[2] for match in _TAGGED.finditer(text)] or None


def user_results(
    message: Mapping[str, Any],
) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """Reads the results that a user's turn brings after calls in the text of an answer, and what
    the user says besides.
    """
    content = message.get("content")
    if not isinstance(content, str):
        return [], None
    # What else is said of the message goes with the first result, unless the user says more.
    others = {key: value for key, value in message.items() if key not in ("role", "content")}
    executed = _EXECUTED.match(content)
    if executed:
        return [{**others, "role": "tool", "name": executed[1], "content": executed[2]}], None
    results = [{"role": "tool", "content": match[2]} for match in _TAGGED.finditer(content)]
    rest = _TAGGED.sub("", content).strip() if results else ""
    if rest:
        return list(results), {**message, "content": rest}
    return [{**others, **one} if not i else one for i, one in enumerate(results)], None


def split_results(
    message: Mapping[str, Any], names: Sequence[Any]
) -> list[Mapping[str, Any]] | None:
    """Splits one result, a list with an element for each call, into one result for each."""
    content = message.get("content")
    if not isinstance(content, str) or is_empty(content):
        return None
    parts = elements(content)
    if parts is None or len(parts) != len(names):
        return None
    return [
        {**message, "name": name, "content": part} for name, part in zip(names, parts, strict=True)
    ]
