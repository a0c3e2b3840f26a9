"""Thinking that other models and programs write into a text between tags, or beside it in keys.

Left in place it would be trained as the visible answer. Tags must open the text, but for a closing
tag whose opening one stood in the chat template: then all before it is thinking. An answer that is
wrapped as a whole is unwrapped after thinking only. Whatever is left of a tag is counted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import OBJECTS, RowState
from gptoss_ft.data.formats.thinking_names import (
    ANSWER,
    ANSWER_ANYWHERE,
    ANSWERS,
    CLOSING,
    DOUBTFUL,
    MESSAGE_KEYS,
    OPENING,
    SURE,
    THINKING_KEYS,
    may_think,
    plain_tag,
)

__all__ = [
    "MESSAGE_KEYS",
    "THINKING_KEYS",
    "may_think",
    "same_thinking",
    "split_thinking",
    "thinking_text",
]

_TEXT_KEYS = ("text", "content", "thinking", "reasoning", "summary", "value")
_OPAQUE = ("reasoning.encrypted", "redacted_thinking", "encrypted")
LEFT = "answers with a tag of thinking left in them: it is trained as text"
LEFT_ANSWER = "answers with tags such as <answer> around a part of them: trained as text"
UNWRAPPED = "answers taken out of tags around them, such as <answer>…</answer>"
OPAQUE = "messages with encrypted thinking, which cannot be read"
_SUMMARY = re.compile(r"\s*<summary>.*?</summary>", re.IGNORECASE | re.DOTALL)
_QUOTES = "`'\"()\u201c\u201d\u2018\u2019\u00ab\u00bb"


class _Block(NamedTuple):
    """One block of thinking: where it starts, its text, and whether its tag is doubtful."""

    start: int
    text: str
    doubtful: bool


def split_thinking(content: str, key: str, state: RowState) -> tuple[str, str]:
    """Splits a text into thinking and answer; see the module.

    Args:
        content: the text of an assistant.
        key: where it stands.
        state: of the row; refused are tags that are never closed and a closing tag in the middle of
            a line.
    """
    if not may_think(content):
        return "", content
    blocks, at = list[_Block](), 0
    if OPENING.match(content) is None:
        closing = _bare_closing(content, key, state)
        if closing is not None:
            blocks, at = [_Block(0, content[: closing.start()], False)], closing.end()
    opened = OPENING.match(content, at)
    while opened:
        end = _end(content, opened)
        tag = plain_tag(opened["tag"])
        if end is None:
            if tag in DOUBTFUL:
                break
            _refuse_open(opened["tag"], _closing_of(tag), key, content, state)
            return content[opened.end() :].strip(), ""
        doubtful = tag in DOUBTFUL and not (tag == "<reflection>" and blocks)
        text = _cleaned(content[opened.end() : end.start()], tag)
        blocks.append(_Block(opened.start(), text, doubtful))
        opened = OPENING.match(content, at := end.end())
    return _parts(blocks, content, at, key, state)


def _parts(
    blocks: list[_Block], content: str, at: int, key: str, state: RowState
) -> tuple[str, str]:
    """Returns the thinking of the blocks and the answer from `at` on."""
    wrapped = _unwrapped(content[at:], key, state) if blocks else None
    if wrapped is None:
        first = next((i for i, block in enumerate(blocks) if block.doubtful), len(blocks))
        if first < len(blocks):
            at, blocks = blocks[first].start, blocks[:first]
    else:
        state.note(UNWRAPPED)
    answer = content[at:] if wrapped is None else wrapped
    if may_think(answer):
        state.note(LEFT)
    if blocks and wrapped is None and ANSWER_ANYWHERE.search(answer):
        state.note(LEFT_ANSWER)
    thinking = "\n\n".join(text for block in blocks if (text := block.text.strip()))
    return thinking, answer.lstrip() if blocks else answer


def _closing_of(tag: str) -> str:
    return SURE.get(tag) or DOUBTFUL.get(tag) or ANSWERS[tag]


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text), re.IGNORECASE)


def _end(content: str, opened: re.Match[str]) -> re.Match[str] | None:
    """Finds the tag that closes an opening one.

    That is the first one, unless the same tag opens once more before it and the next one after it
    closes as well: a thought within a thought.
    """
    tag = plain_tag(opened["tag"])
    opening, closing = _pattern(tag), _pattern(_closing_of(tag))
    end = closing.search(content, opened.end())
    at = opened.end()
    while end is not None and (inner := opening.search(content, at, end.start())):
        after = closing.search(content, end.end())
        if after is None or opening.search(content, end.end(), after.start()):
            break
        end, at = after, inner.end()
    return end


def _cleaned(text: str, tag: str) -> str:
    """Drops the heading and the marks of a quotation that Open WebUI writes into thinking."""
    if not tag.startswith("<details"):
        return text
    lines = _SUMMARY.sub("", text, count=1).split("\n")
    return "\n".join(
        line.removeprefix("&gt;").removeprefix(">").removeprefix(" ") for line in lines
    )


def _bare_closing(content: str, key: str, state: RowState) -> re.Match[str] | None:
    """Finds the closing tag of a thought whose opening one is missing; none where a text only
    speaks of it.
    """
    found = CLOSING.search(content)
    if found is None or may_think(content[: found.start()]):
        return None
    before, after = content[: found.start()], content[found.end() :]
    line = before.rpartition("\n")[2]
    quoted = bool(before and after) and before[-1] in _QUOTES and after[0] in _QUOTES
    if quoted or before.count("```") % 2 or line.count("`") % 2:
        return None
    inside = bool(line.strip()) and bool(after.partition("\n")[0].strip())
    if inside and line[-1].isspace():
        mend = (
            "put the thinking into `thinking` and the answer into `content`, set the tag in "
            "backticks if the text speaks of it, or leave such rows out with data.on_bad=drop"
        )
        what = f"{found[0]} in the middle of a line, and nothing opens it"
        state.refuse(what, key, content, mend)
        return None
    return found


def _unwrapped(answer: str, key: str, state: RowState) -> str | None:
    """Takes an answer out of the tags around the whole of it; None where there are none."""
    opened = ANSWER.match(answer)
    if opened is None:
        return None
    tag = plain_tag(opened["tag"])
    end = _pattern(_closing_of(tag)).search(answer, opened.end())
    if end is None:
        _refuse_open(opened["tag"], _closing_of(tag), key, answer, state)
        return None
    return None if answer[end.end() :].strip() else answer[opened.end() : end.start()].strip()


def _refuse_open(tag: str, closing: str, key: str, content: str, state: RowState) -> None:
    mend = (
        f"write {closing} where it ends; if the text was cut off while it was generated, leave "
        "such rows out with data.on_bad=drop"
    )
    state.refuse(f"{tag} is not closed", key, content, mend)


def thinking_text(raw: Any, key: str, state: RowState) -> str:
    """Reads what a key or column of thinking holds: a text, an object around one, or a list of
    such; empty for nothing, and where it is refused.

    Tags around the whole of it are dropped.
    """
    if raw is None or raw is False:
        return ""
    if isinstance(raw, str):
        if not may_think(raw):
            return raw
        thinking, rest = split_thinking(raw, key, state)
        return thinking if thinking and not rest else raw
    if isinstance(raw, list):
        return _joined(raw, key, state)
    if isinstance(raw, OBJECTS):
        if raw.get("type") in _OPAQUE:
            state.note(OPAQUE)
            return ""
        name = next((name for name in _TEXT_KEYS if raw.get(name)), None)
        if name is not None:
            return thinking_text(raw[name], f"{key}.{name}", state)
        if all(not value for value in raw.values()):
            return ""
    state.refuse("the thinking is not a text", key, raw, "write a string")
    return ""


def _joined(raw: list[Any], key: str, state: RowState) -> str:
    """Joins parts with a blank line between them; pieces of one part, as a stream brings them, with
    nothing.
    """
    joined, last = "", None
    for i, item in enumerate(raw):
        text = thinking_text(item, f"{key}[{i}]", state)
        index = item.get("index") if isinstance(item, OBJECTS) else None
        if text:
            piece = index is not None and index == last
            joined += text if piece or not joined else f"\n\n{text}"
            last = index
    return joined


def same_thinking(one: str, other: str) -> bool:
    """Returns whether two texts differ in white space at most."""
    return (
        one == other
        or one.split() == other.split()
        or "".join(one.split()) == "".join(other.split())
    )
