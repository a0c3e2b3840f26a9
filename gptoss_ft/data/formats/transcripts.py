"""Conversations that a chat template has written as one text, split into messages again.

A text is a transcript if it begins as one; a document that shows such markup further down is not.
White space around a turn belongs to the markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.formats.markups import (
    BEGINNINGS,
    BOILERPLATE,
    ENDS,
    FINISHES,
    MARKUPS,
    MORE,
    SPEAKERS,
    Markup,
)

# What no text begins with is no transcript: this is all that an ordinary document costs.
_MAYBE = re.compile(
    r"\s*(?:[<\[#]|Below is an|(?:A chat|The conversation) between|(?:GPT4|Code) |"
    r"(?i:user|system|human):)"
)
# One test for all markups: the group that matches is numbered as the markup.
_BEGIN = rf"(?:\s|{'|'.join(map(re.escape, BEGINNINGS))})*"
_OPENING = re.compile(_BEGIN + "(?:" + "|".join(f"({m.opening})" for m in MARKUPS) + ")")
_HEADED = ("\n\nAssistant:", "<|")  # what a completion may begin with: the header of its own turn
_SYSTEM, _END_SYSTEM = "<<SYS>>", "<</SYS>>"
# An answer that is still to be written; some templates open the thinking as well.
_UNWRITTEN = frozenset(("", "<think>"))


class Transcript(NamedTuple):
    """A text in a markup.

    Attributes:
        name: of the markup.
        messages: role and content of each.
        fault: why it cannot be split with certainty; empty if it can.
        unclosed: whether the last turn lacks the token that closes the others.
    """

    name: str
    messages: list[dict[str, Any]]
    fault: str = ""
    unclosed: bool = False


class _Turn(NamedTuple):
    role: str
    text: str
    fault: str = ""
    closed: bool = True


def transcript(text: str, needs_answer: bool = True) -> Transcript | None:
    """Splits a whole conversation; None for a text that is none.

    Args:
        text: it begins with the first turn.
        needs_answer: find fault with one that ends before the assistant's answer.
    """
    found = _split(text)
    if found is None or found.fault:
        return found
    messages = _written(found.messages)
    if needs_answer and (messages is not found.messages or messages[-1]["role"] == "user"):
        return found._replace(fault="it ends before the assistant's answer")
    return found._replace(messages=messages)


def split_prompt(text: str) -> Transcript | None:
    """Splits what comes before an answer, which the text may have the header of."""
    found = _split(text)
    if found is None or found.fault:
        return found
    messages = _written(found.messages)
    if messages[-1]["role"] == "assistant":
        return found._replace(fault="it ends in an assistant's turn")
    return found._replace(messages=messages, unclosed=False)


def split_answer(text: str) -> tuple[str, str]:
    """Cuts the header and the tokens of the markup off an answer; returns it and what was cut."""
    if text.startswith(_HEADED):
        found = (
            _split(text) if text[0] == "<" else Transcript("", [_message("assistant", text[13:])])
        )
        alone = found is not None and not found.fault and len(found.messages) == 1
        if found is not None and alone and found.messages[0]["role"] == "assistant":
            return found.messages[0]["content"].strip(), "the header of the assistant's turn"
    cut = text.rstrip()
    end = next((end for end in ENDS if cut.endswith(end)), "")
    # `<s>…</s>` is struck text in HTML.
    if not end or (end == "</s>" and "<s>" in text):
        return text, ""
    return cut.removesuffix(end).rstrip(), f"`{end}`"


def turns_of(
    found: Transcript | None, text: str, key: str, state: RowState
) -> list[dict[str, Any]] | None:
    """Returns the messages of a transcript; None for a text that is none, or is refused."""
    if found is None:
        return None
    if found.fault:
        what = f"`{key}` is a conversation in {found.name} that cannot be split: {found.fault}"
        state.refuse(what, key, text, "repair it, or write a list of messages")
        return None
    state.note(f"`{key}` in {found.name} split into turns")
    return found.messages


def _split(text: str) -> Transcript | None:
    opening = _OPENING.match(text) if _MAYBE.match(text) else None
    if opening is None or opening.lastindex is None:
        return None
    markup = MARKUPS[opening.lastindex - 1]
    body = text[opening.start(opening.lastindex) :]
    headers = list(markup.header.finditer(body))
    if not headers:
        return Transcript(markup.name, [], "it has no header that can be read")
    stops = [header.start() for header in headers[1:]] + [len(body)]
    turns = [
        _turn(header[1], body[header.end() : stop], markup, stop == len(body))
        for header, stop in zip(headers, stops, strict=True)
    ]
    before = body[: headers[0].start()].strip()
    if before and not BOILERPLATE.match(before):
        turns.insert(0, _Turn("system", before))
    turns = [part for turn in turns for part in _parts(turn)]
    if len(turns) > 1 and turns[-1][:3] == ("user", "", ""):
        turns.pop()  # the header of a question that nobody has asked
    fault = next((turn.fault for turn in turns if turn.fault), "") or _order(turns, markup)
    messages = [_message(turn.role, turn.text) for turn in _joined(turns)]
    return Transcript(markup.name, messages, fault, bool(turns) and not turns[-1].closed)


def _turn(speaker: str, raw: str, markup: Markup, is_last: bool) -> _Turn:
    """Reads what stands between two headers."""
    role = SPEAKERS.get(fold(speaker))
    closing = markup.end.search(raw) if markup.end else None
    text, rest = (raw[: closing.start()], raw[closing.end() :]) if closing else (raw, "")
    text = text.rstrip() if closing else _without_tokens(text)
    fault = ""
    if role is None or role == "call":
        fault = f"the role `{speaker}` is not known"
    elif _without_tokens(rest) or (role == "" and text):
        fault = "text stands between the turns"
    elif markup.closed and closing is None and not is_last:
        fault = "a turn is not closed"
    closed = closing is not None or not markup.closed or not text
    return _Turn(role or "", text, fault, closed)


def _without_tokens(text: str) -> str:
    """Cuts white space, and tokens that end or begin a text, off the end of a turn."""
    text = text.rstrip()
    while end := next((t for t in (*FINISHES, *BEGINNINGS) if text.endswith(t)), ""):
        text = text.removesuffix(end).rstrip()
    return text


def _parts(turn: _Turn) -> Sequence[_Turn]:
    """Splits off the system message that Llama 2 writes into the first question; drops gaps and
    empty system messages.
    """
    if turn.role == "user" and turn.text.startswith(_SYSTEM):
        system, end, question = turn.text[len(_SYSTEM) :].partition(_END_SYSTEM)
        if not end:
            return (turn._replace(fault=f"{_SYSTEM} is not closed"),)
        both = _Turn("system", system.strip()), turn._replace(text=question.strip())
        return both if both[0].text else both[1:]
    return () if turn.role in ("", "system") and not (turn.text or turn.fault) else (turn,)


def _order(turns: Sequence[_Turn], markup: Markup) -> str:
    """Says what is wrong with the order of the turns; empty for nothing."""
    before = ""
    for i, (role, text, _, _) in enumerate(turns):
        if role == MORE and before != "user":
            return "an input follows no instruction"
        if not text and role != MORE and not (role == "assistant" and i == len(turns) - 1):
            return f"the {role}'s turn is empty"
        if markup.strict and role == before and role in ("user", "assistant"):
            return f"two turns of the {role} follow each other"
        before = role if role != MORE else before
    if not any(turn.role == "user" for turn in turns) and not markup.closed:
        return "it has no user's turn"
    return "" if turns else "it has no turn"


def _joined(turns: Sequence[_Turn]) -> list[_Turn]:
    """Puts an input under its instruction, with a blank line between."""
    joined: list[_Turn] = []
    for turn in turns:
        if turn.role != MORE:
            joined.append(turn)
        elif joined and turn.text:
            joined[-1] = joined[-1]._replace(text=f"{joined[-1].text}\n\n{turn.text}")
    return joined


def _written(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out the header of an answer that is still to be written."""
    last = messages[-1]
    unwritten = last["role"] == "assistant" and last["content"].strip() in _UNWRITTEN
    return messages[:-1] if unwritten and len(messages) > 1 else messages


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
