"""Conversations with one message per row, put together by their id and the number of each turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gptoss_ft.data.assemble.parts import Joined, Part, broken, joined, moment_of, number_of
from gptoss_ft.data.formats.common import is_empty
from gptoss_ft.data.formats.dialects.authors import ROLE_OF
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.layouts.names import SYSTEMS, TOOLS
from gptoss_ft.errors import Problem

CONVERSATIONS = (
    "conversation_id",
    "conversationid",
    "conv_id",
    "convo_id",
    "dialog_id",
    "dialogue_id",
    "dialogueid",
    "thread_id",
    "chat_id",
    "session_id",
)
# Numbers of turns run on without gaps; other positions may be counted over the whole file.
TURNS = ("turn", "turn_id", "turn_index", "turn_idx", "turn_number", "turn_no", "turn_num")
POSITIONS = (
    *TURNS,
    "message_index",
    "message_idx",
    "message_number",
    "msg_index",
    "msg_idx",
    "utterance_index",
    "utterance_idx",
    "utterance_id",
    "position",
    "order",
    "sequence",
    "seq",
    "step",
    "index",
    "idx",
)
# Where nothing counts the messages, the time of each orders them.
TIMES = (
    "created_at",
    "createdat",
    "created",
    "created_time",
    "timestamp",
    "ts",
    "time",
    "sent_at",
)
PLACES = (*POSITIONS, *TIMES)
ROLES = ("role", "from", "speaker", "sender", "author")
TEXTS = ("content", "text", "message", "value", "utterance")
CALLS = ("tool_calls", "function_call")
# What all messages of a conversation share; it stands beside them then.
SHARED = frozenset((*SYSTEMS, *TOOLS, "builtin_tools", "reasoning_effort"))


def fits(row: Mapping[str, Any]) -> bool:
    """Returns whether a row is one message of a conversation: it has the id of the conversation, a
    place in it, a role and a text.
    """
    names = _names(row)
    if _key(names, CONVERSATIONS) is None or _key(names, PLACES) is None:
        return False
    role = _key(names, ROLES)
    if role is None or "messages" in names or "conversations" in names:
        return False
    text = _key(names, (*TEXTS, *CALLS))
    known = isinstance(row[role], str) and fold(row[role]) in ROLE_OF
    return known and text is not None and (fold(text) in CALLS or isinstance(row[text], str | list))


def belongs(row: Mapping[str, Any]) -> bool:
    """Returns whether a row is part of a conversation."""
    return _key(_names(row), CONVERSATIONS) is not None


def join(parts: Sequence[Part]) -> Iterator[Joined]:
    """Puts each conversation together."""
    groups: dict[Any, list[Part]] = {}
    for part in parts:
        names = _names(part.row)
        groups.setdefault(part.row[_key(names, CONVERSATIONS) or ""], []).append(part)
    for group in groups.values():
        yield _conversation(group)


def _conversation(parts: list[Part]) -> Joined:
    problems = [*_unnumbered(parts)]
    if problems:
        return broken(parts, problems)
    ordered = sorted(parts, key=lambda part: _position(part)[1] or 0.0)
    shared = _shared(parts)
    problems = [*_misplaced(ordered), *_differing(parts, shared)]
    if problems:
        return broken(parts, problems)
    beside = {name: values[0] for name, values in shared.items()}
    return joined(parts[0], {**beside, "messages": [_message(part) for part in ordered]}, Counter())


def _unnumbered(parts: Sequence[Part]) -> Iterator[Problem]:
    for part in parts:
        name, number = _position(part)
        if number is None:
            mend = "write the place of the message in its conversation"
            found = repr(part.row.get(name))
            what = "neither a number nor a time" if fold(name) in TIMES else "not a number"
            yield Problem(f"`{name}` is {what}", f"{part.where} {name}", found, mend)


def _misplaced(ordered: Sequence[Part]) -> Iterator[Problem]:
    """Finds turns that are there twice, or missing."""
    for before, part in pairwise(ordered):
        (name, last), (_, number) = _position(before), _position(part)
        where, found = f"{part.where} {name}", repr(part.row[name])
        if number == last and fold(name) in TIMES:
            what = f"the message at {before.where} has the same time: either may be the first"
            yield Problem(what, where, found, "number the messages in a column `turn`")
        elif number == last and _role(part) == _role(before):
            what = f"the same turn of the same role stands at {before.where} already"
            yield Problem(what, where, found, "delete one of them, or number them anew")
        elif fold(name) in TURNS and (number or 0) - (last or 0) > 1:
            what = f"the turn before this one is missing: {before.where} is the last before it"
            yield Problem(what, where, found, "add it, or number the turns without gaps")


def _shared(parts: Sequence[Part]) -> dict[str, list[Any]]:
    """Collects the different values of what messages of a conversation share."""
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name, value in part.row.items():
            if name in SHARED and not is_empty(value) and value not in found.setdefault(name, []):
                found[name].append(value)
    return found


def _differing(parts: Sequence[Part], shared: Mapping[str, list[Any]]) -> Iterator[Problem]:
    for name, values in shared.items():
        if len(values) > 1:
            mend = "write the same in every row of the conversation"
            what = f"`{name}` differs between the rows of one conversation"
            yield Problem(what, parts[0].where, repr(values[:2])[:80], mend)


def _message(part: Part) -> dict[str, Any]:
    """Returns a message; keys that are not known here are for the chat format to judge."""
    names = _names(part.row)
    dropped = {_key(names, CONVERSATIONS), _position(part)[0], *SHARED}
    role, text = _key(names, ROLES), _key(names, TEXTS)
    others = {
        key: value
        for key, value in part.row.items()
        if key not in dropped and key not in (role, text) and value is not None
    }
    content = {"content": part.row[text]} if text else {}
    return {"role": _role(part), **content, **others}


def _role(part: Part) -> Any:
    return part.row.get(_key(_names(part.row), ROLES) or ROLES[0])


def _position(part: Part) -> tuple[str, float | None]:
    name = _key(_names(part.row), PLACES) or POSITIONS[0]
    value = part.row.get(name)
    return name, moment_of(value) if fold(name) in TIMES else number_of(value)


def _names(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the columns with a value, by their name in lower case."""
    return {fold(name): name for name, value in row.items() if value is not None}


def _key(names: Mapping[str, str], keys: Sequence[str]) -> str | None:
    return next((names[key] for key in keys if key in names), None)
