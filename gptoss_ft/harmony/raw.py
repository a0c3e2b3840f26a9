"""Raw Harmony text, special tokens and all, to its messages.

Source: the Harmony response format (OpenAI).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.options import CHANNELS
from gptoss_ft.harmony.vocabulary import CALL, CHANNEL, CONSTRAIN, END, RETURN, SPECIAL_NAMES

ROLES = ("system", "developer", "user", "assistant")
# The channels in which an assistant can speak; in ours, `tool_call` is one more.
SPOKEN = ("analysis", "commentary", "final")
STRUCTURE = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")
CLOSINGS = tuple(SPECIAL_NAMES[token] for token in (END, RETURN, CALL))

_NAME = re.compile(r"<\|[^\s<>|]+\|>")
_INSIDE = re.compile("|".join(re.escape(name) for name in (*STRUCTURE, *CLOSINGS)))
_HEADER = re.compile(
    r"(?P<author>[^\s<]+)(?P<after>[^<]*)"
    r"(?:<\|channel\|>(?P<channel>[^<]*))?(?:<\|constrain\|>(?P<content_type>[^<]*))?"
)
_EXCERPT = 40


class RawMessage(NamedTuple):
    """One message of the text.

    Attributes:
        kind: of an assistant message one of `CHANNELS`, `tool` for a result, else the role.
        author: the first word of the header.
        header: the rest of it up to `<|message|>`, texts and special ids in their order.
        content: ordinary text.
        in_analysis: whether it stands in the analysis channel.
    """

    kind: str
    author: str
    header: tuple[str | int, ...]
    content: str
    in_analysis: bool

    @property
    def sampled(self) -> bool:
        """True if the assistant wrote it."""
        return self.kind in CHANNELS


@dataclass(frozen=True)
class _Text:
    """The text, where it comes from, and what is wrong with it."""

    text: str
    where: str
    problems: list[Problem]

    def refuse(self, what: str, at: int, mend: str) -> None:
        shown = self.text[at : at + _EXCERPT]
        found = f"{shown}…" if at + _EXCERPT < len(self.text) else shown
        self.problems.append(Problem(what, f"{self.where} offset {at}", repr(found), mend))


def read_raw(text: str, where: str) -> list[RawMessage]:
    """Reads the messages of a text, in order.

    White space between two messages, which people write for their eyes, is not part of the format
    and is left out. The end of the last message may be missing, since samplers cut it off. A final
    may end in `<|end|>` or `<|return|>` anywhere.

    Args:
        text: messages `<|start|>header<|message|>content<|end|>`.
        where: put before the offset in every problem.

    Raises:
        DataError: with every problem, each with its offset in characters, counted from 0; or the
            text holds neither an answer nor a call of the assistant.
    """
    source = _Text(text, where, [])
    _refuse_unknown_names(source)
    messages = [message for message in _messages(source) if message is not None]
    if not source.problems and not any(m.kind in ("final", "tool_call") for m in messages):
        mend = "end with <|start|>assistant<|channel|>final<|message|>…<|return|>"
        source.refuse("the text holds neither an answer nor a call to train", 0, mend)
    if source.problems:
        raise DataError(source.problems)
    return messages


def _refuse_unknown_names(source: _Text) -> None:
    known = (*STRUCTURE, *CLOSINGS)
    for match in _NAME.finditer(source.text):
        if match[0] not in known:
            mend = f"messages are made with {', '.join(known)} alone"
            source.refuse(f"{match[0]} is no special token of a message", match.start(), mend)


def _messages(source: _Text) -> Iterator[RawMessage | None]:
    """Yields the message after each `<|start|>`, None where it cannot be read."""
    opening = STRUCTURE[0]
    starts = [match.start() for match in re.finditer(re.escape(opening), source.text)]
    before = source.text[: starts[0]] if starts else ""
    if before.strip() or not starts:
        mend = f"write {opening}, the role and <|message|> before the first message"
        source.refuse(f"the text does not begin with {opening}", 0, mend)
    for start, stop in pairwise([*starts, len(source.text)]):
        yield _message(source, start + len(opening), stop)


def _message(source: _Text, start: int, stop: int) -> RawMessage | None:
    """Reads the message whose header begins at `start` and which ends before `stop`."""
    at = source.text.find("<|message|>", start, stop)
    if at < 0:
        source.refuse("a message without <|message|>", start, "write it after the header")
        return None
    message = _header(source, start, at)
    content = at + len("<|message|>")
    end = _INSIDE.search(source.text, content, stop)
    if end is None:
        if stop < len(source.text):
            source.refuse("a message that is not closed", content, "end it with <|end|>")
    elif end[0] not in CLOSINGS:
        source.refuse(f"{end[0]} inside a message", end.start(), "end the message before it")
    else:
        if source.text[end.end() : stop].strip():
            mend = "put it inside a message, or write <|start|> and a role before it"
            source.refuse("text after the end of a message", end.end(), mend)
        if message is not None:
            _check_closing(source, message.kind, end)
    if message is None:
        return None
    return message._replace(content=source.text[content : end.start() if end else stop])


def _check_closing(source: _Text, kind: str, end: re.Match[str]) -> None:
    allowed = {"tool_call": ("<|call|>",), "final": ("<|return|>", "<|end|>")}.get(
        kind, ("<|end|>",)
    )
    if end[0] not in allowed:
        what = f"a message of kind {kind} that ends with {end[0]}"
        source.refuse(what, end.start(), f"end it with {' or '.join(allowed)}")


def _header(source: _Text, start: int, stop: int) -> RawMessage | None:
    """Reads the header of a message and returns the message without content."""
    match = _HEADER.fullmatch(source.text, start, stop)
    if match is None:
        mend = "write role, ` to=…`, <|channel|>name, ` <|constrain|>json`, in this order"
        source.refuse("a header that cannot be read", start, mend)
        return None
    author, named = match["author"], match["channel"] or ""
    channel = named.split()[0] if named.strip() else ""
    addressed = any(word.startswith("to=") for word in f"{match['after']} {named}".split())
    role = author.partition(":")[0]
    if role not in ROLES and not addressed:
        mend = f"write one of {', '.join(ROLES)}, or a tool's name and ` to=assistant`"
        source.refuse("unknown role", start, mend)
        return None
    if role == "assistant" and channel not in SPOKEN:
        mend = f"write <|channel|> and one of {', '.join(SPOKEN)}"
        source.refuse("a message of the assistant without a channel", start, mend)
        return None
    kind = role if role in ROLES else "tool"
    if role == "assistant":
        kind = "tool_call" if addressed else channel
    return RawMessage(kind, author, _pieces(match), "", channel == "analysis")


def _pieces(match: re.Match[str]) -> tuple[str | int, ...]:
    """Splits the header after its author."""
    pieces: list[str | int] = [match["after"]]
    for name, token in (("channel", CHANNEL), ("content_type", CONSTRAIN)):
        if match[name] is not None:
            pieces += [token, match[name]]
    return tuple(pieces)
