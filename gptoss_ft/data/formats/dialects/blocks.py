"""Content written as a list of parts: thinking, calls and results stand among the text.

A message of parts may be several messages of the chat format: results of tools stand in the user's
message (Anthropic, Bedrock, Gemini), or in the middle of the assistant's (Claude's export, Vercel).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    PlacedItem,
    RowState,
    check_keys,
    decoded,
    is_empty,
)
from gptoss_ft.data.formats.dialects import wrappers
from gptoss_ft.data.formats.dialects.block_parts import Part, kind_of, read_block

# Parts of openai-harmony's own messages; the dialect of channels reads them.
HARMONY = frozenset(("system_content", "developer_content"))
# What belongs to the first message alone when one becomes several.
SAID_ONCE = frozenset(("tool_calls", "thinking", "reasoning", "reasoning_content", "id"))
COPY_KEYS = frozenset(("id", "type", "index", "function", "name", "args", "arguments"))
MOVED = "text or thinking after a call in the same message moved before it"


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether the content is no text, or the message one of another program's objects."""
    content = message.get("content")
    return (content is not None and not isinstance(content, str)) or wrappers.fits(message)


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Writes every message of parts as messages of text, thinking, calls and results."""
    converted = []
    for place, item in items:
        if isinstance(item, OBJECTS) and fits(item):
            converted += [PlacedItem(place, message) for message in _messages(place, item, state)]
        else:
            converted.append(PlacedItem(place, item))
    return converted


def _is_part(block: Any) -> bool:
    """Returns whether it says what kind of part it is, or holds its text or result."""
    return isinstance(block, OBJECTS) and (
        (isinstance(block.get("type"), str) and block["type"] != "function")
        or any(
            key in block for key in ("text", "toolResult", "functionResponse", "function_response")
        )
    )


def _messages(place: str, item: Mapping[str, Any], state: RowState) -> list[Mapping[str, Any]]:
    message = wrappers.unwrapped(place, item, state) if wrappers.fits(item) else dict(item)
    name = "parts" if isinstance(message.get("parts"), list) else "content"
    raw = message.get(name)
    blocks = [raw] if isinstance(raw, OBJECTS) else raw
    if not isinstance(blocks, list) or any(kind_of(block) in HARMONY for block in blocks):
        return [message]
    if message.get("role") in ("call", "tool") and not any(_is_part(block) for block in blocks):
        return [message]  # a call or a result as JSON, which `calls` reads
    rest = {key: value for key, value in message.items() if key not in ("parts", "content")}
    before = len(state.problems)
    parts = [
        part
        for i, block in enumerate(blocks)
        for part in read_block(block, f"{place}.{name}[{i}]", state)
    ]
    if len(state.problems) > before:
        # Whatever the rest says, it is not to be reported a second time as missing.
        return []
    if name == "parts":
        _check_copy(message.get("content"), parts, place, state)
    if rest.get("role") == "assistant":
        return _assistant(parts, rest, place, state)
    return _others(parts, rest, state)


def _check_copy(content: Any, parts: list[Part], place: str, state: RowState) -> None:
    """Refuses a `content` beside `parts` that says something else."""
    if is_empty(content) or (isinstance(content, str) and not content.strip()):
        return
    text = "".join("".join(part.value.split()) for part in parts if part.kind == "text")
    if not isinstance(content, str) or "".join(content.split()) not in text:
        what = "`content` and `parts` are both given and differ"
        state.refuse(what, f"{place}.content", content, "keep one of them")


def _others(parts: list[Part], rest: dict[str, Any], state: RowState) -> list[Mapping[str, Any]]:
    """Writes a message of anybody but the assistant: results first, then what is said."""
    role = rest.get("role")
    results = [{"role": "tool", **part.value} for part in parts if part.kind == "result"]
    texts = [part.value for part in parts if part.kind == "text"]
    others = [part for part in parts if part.kind in ("call", "thinking")]
    if any(a.kind == "text" and b.kind == "result" for a, b in pairwise(parts)):
        state.note("results of tools moved before the text of the same message")
    said: dict[str, Any] = {**rest, "content": "".join(texts)} if texts else {**rest}
    for part in others:  # The chat format refuses them, of whoever it is.
        name = "thinking" if part.kind == "thinking" else "tool_calls"
        said[name] = part.value if part.kind == "thinking" else [part.value]
    if texts or others or not results:
        return [*results, said]
    if role == "tool":
        return [{**rest, **result} for result in results]
    kept = {name: value for name, value in rest.items() if name not in ("role", "name")}
    return [{**kept, **results[0]}, *results[1:]]


def _assistant(
    parts: list[Part], rest: dict[str, Any], place: str, state: RowState
) -> list[Mapping[str, Any]]:
    """Writes the assistant's steps, each up to the results of its calls."""
    made: list[Mapping[str, Any]] = []
    steps = list(_steps(parts)) or [[]]
    later = {name: value for name, value in rest.items() if name not in SAID_ONCE}
    # LangChain keeps the calls of a message twice: among the parts, and as `tool_calls`.
    missing = _unsaid(rest.pop("tool_calls", None), parts, place, state)
    for i, step in enumerate(steps):
        own = later if i else rest
        if i == len(steps) - 1:
            step = [*step, *missing]
        spoken = [part for part in step if part.kind != "result"]
        if spoken or not step:
            made.append(_spoken(spoken, own, place, state))
        made += [{"role": "tool", **part.value} for part in step if part.kind == "result"]
    return made


def _steps(parts: list[Part]) -> Iterator[list[Part]]:
    """Cuts the parts where something follows a result."""
    step: list[Part] = []
    for part in parts:
        if step and step[-1].kind == "result" and part.kind != "result":
            yield step
            step = []
        step.append(part)
    if step:
        yield step


def _unsaid(raw: Any, parts: list[Part], place: str, state: RowState) -> list[Part]:
    """Returns the calls of `tool_calls` that do not stand among the parts."""
    said = [part.value for part in parts if part.kind == "call"]
    by_id = {call["id"]: call["function"] for call in said if "id" in call}
    missing = []
    for i, call in enumerate(raw if isinstance(raw, list) else ()):
        if isinstance(call, OBJECTS) and call.get("id") in by_id:
            _check_call(call, by_id[call["id"]], f"{place}.tool_calls[{i}]", state)
        elif not (isinstance(call, OBJECTS) and dict(call) in said):
            missing.append(Part("call", call))
    return missing


def _check_call(
    call: Mapping[str, Any], said: Mapping[str, Any], key: str, state: RowState
) -> None:
    """Refuses a call that stands among the parts too and says something else."""
    check_keys(call, COPY_KEYS, key, state, of="calls")
    function = call.get("function")
    function = function if isinstance(function, OBJECTS) else call
    if function is not call:
        check_keys(function, COPY_KEYS, f"{key}.function", state, of="calls")
    arguments = function.get("arguments", function.get("args"))
    if decoded(arguments) != decoded(said["arguments"]) and not is_empty(arguments):
        what = "a call stands among the parts as well, and its arguments differ"
        state.refuse(what, key, arguments, "keep one of them")


def _spoken(
    parts: list[Part], rest: Mapping[str, Any], place: str, state: RowState
) -> dict[str, Any]:
    """Writes one step: thinking, then text, then calls, which is the order of the chat format."""
    message = {name: value for name, value in rest.items() if name != "content"}
    order = [part.kind for part in parts]
    ranks = [("thinking", "text", "call").index(kind) for kind in order]
    if ranks != sorted(ranks) and any(_solid(part) for part in parts):
        state.note(MOVED)
    text = _joined_text(parts)
    if text:
        message["content"] = text
    thinking = "\n\n".join(part.value for part in parts if part.kind == "thinking")
    given = message.get("thinking")
    given = given.strip() if isinstance(given, str) else given
    if thinking and not is_empty(given) and given != thinking.strip():
        what = "the message holds thinking twice, and it differs"
        state.refuse(what, f"{place}.thinking", given, "keep one of them")
    if thinking:
        message["thinking"] = thinking
    calls = [part.value for part in parts if part.kind == "call"]
    if calls:
        message["tool_calls"] = calls
    return message


def _solid(part: Part) -> bool:
    return part.kind != "text" or bool(part.value.strip())


def _joined_text(parts: list[Part]) -> str:
    """Joins neighbours as they are, and texts with something between as paragraphs."""
    chunks, last = [""], ""
    for part in (part for part in parts if _solid(part) or len(parts) == 1 or last == "text"):
        if part.kind == "text" and last == "text":
            chunks[-1] += part.value
        elif part.kind == "text":
            chunks.append(part.value)
        last = part.kind
    return "\n\n".join(chunk for chunk in chunks if chunk)
