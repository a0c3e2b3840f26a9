"""The model's own form: a channel, a recipient and a content type on each message.

It comes flat, with the content as a text, and as `to_dict` of openai-harmony's Conversation writes
it, with the content as a list of parts. Flat messages may leave out what the renderer writes by
itself; of the list form everything is read to the letter, also what it leaves out, so that it
renders as openai-harmony would render it.

What comes out is one message of ours for a run of thinking, preamble and calls, or of thinking and
answer; a message with a header that we would not write keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import (
    NATIVE,
    OBJECTS,
    PlacedItem,
    RowState,
    check_keys,
    is_empty,
    read_content,
    shell_list,
)
from gptoss_ft.data.formats.dialects.harmony_blocks import read_block
from gptoss_ft.data.formats.dialects.masks import DETAILS, FLAGS, WEIGHTS
from gptoss_ft.data.formats.tool_calls import RECIPIENTS
from gptoss_ft.harmony.blocks import CHANNELS
from gptoss_ft.harmony.messages import ROLES, Header, Message, ToolCall
from gptoss_ft.harmony.tools import FUNCTIONS

HEADER_KEYS = ("channel", "recipient", "content_type")
KEYS = frozenset(("role", "name", "content", *HEADER_KEYS))
AUTHOR_KEYS = frozenset(("role", "name"))
# What the chat format and the dialect of masks read of a message that only sets something.
MASKS = frozenset(("weight", *FLAGS, *DETAILS, *WEIGHTS))
# What the chat format or another dialect reads of an answer beside its text.
CHAT_KEYS = ("thinking", "reasoning_content", "reasoning", "tool_calls")
BLOCK_TYPES = ("system_content", "developer_content")
JSON_TYPE = "<|constrain|>json"
PREFIX = f"{FUNCTIONS}."
TOOL_AUTHOR = re.compile(r"functions\..+|browser\.(search|open|find)|python")
BUILTIN = frozenset(name for names in RECIPIENTS.values() for name in names)
# A run of assistant messages, a letter for each: what makes one message of ours. A: thinking, C:
# preamble, F: answer, T: call, X: anything whose header is to be kept.
SHAPES = re.compile("A?C?T+|A?F|A|C|X")


class _Said(NamedTuple):
    """One message of the assistant, or a finished one of anybody else."""

    place: str
    shape: str
    message: Message
    extras: dict[str, Any]


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether the message has a part of a Harmony header, or content of its own kind."""
    if message.get("channel") or message.get("recipient"):
        return True
    role, content = message.get("role"), message.get("content")
    if type(content) is list and content and isinstance(content[0], OBJECTS):
        return content[0].get("type") in BLOCK_TYPES
    if isinstance(role, str):
        return role not in ROLES and TOOL_AUTHOR.fullmatch(role) is not None
    author = message.get("author")
    return isinstance(author, OBJECTS) and author.get("role") in ROLES


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Reads the messages that have a Harmony header; the others are left to the chat format."""
    if not state.ignore.isdisjoint(HEADER_KEYS):
        return items
    reader = _Reader(state)
    read = [reader.read(item, first=not i) for i, item in enumerate(items)]
    return list(_joined([item for item in read if item is not None]))


def _joined(read: Sequence[_Said | PlacedItem]) -> Iterator[PlacedItem]:
    """Joins what the assistant says in one go into messages of ours."""
    for _, run in groupby(read, lambda item: isinstance(item, _Said) and item.extras):
        said = []
        for item in run:
            if isinstance(item, _Said):
                said.append(item)
            else:
                yield item
        for match in SHAPES.finditer("".join(item.shape for item in said)):
            group = said[match.start() : match.end()]
            message = _one_message(match[0], [item.message for item in group])
            keys = {"role": message.role, **group[0].extras, NATIVE: message}
            yield PlacedItem(group[0].place, keys)


def _one_message(shapes: str, parts: Sequence[Message]) -> Message:
    if len(parts) == 1:
        alone = parts[0]
        return alone._replace(header=Header("assistant", "commentary")) if shapes == "C" else alone
    said = "".join(part.content for part in parts)
    thinking = "".join(part.thinking for part in parts)
    calls = tuple(call for part in parts for call in part.tool_calls)
    return Message("assistant", said, thinking, calls)


class _Reader:
    """Reads the messages of one list.

    Attributes:
        after_block: whether instructions stand right before, with which the renderer would join
            more of them.
        unanswered: names of the calls that no result has followed yet, and whether builtin.
    """

    def __init__(self, state: RowState) -> None:
        self.state = state
        self.after_block = False
        self.unanswered: list[tuple[str, bool]] = []

    def read(self, placed: PlacedItem, *, first: bool) -> _Said | PlacedItem | None:
        """Reads one message; None for one that only sets something of the row, or is refused."""
        place, raw = placed
        if not isinstance(raw, OBJECTS):
            return placed
        item = self._with_author(raw, place)
        role = item.get("role")
        if role in ("system", "developer"):
            return self._block(PlacedItem(place, item), first=first)
        self.after_block = False
        if role == "assistant":
            return self._assistant(PlacedItem(place, item))
        if role == "tool":
            return self._result(PlacedItem(place, item))
        return self._user(PlacedItem(place, item)) if role == "user" else PlacedItem(place, item)

    def _with_author(self, raw: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """Writes role and name for an `author` object, or for a role that is a tool's name."""
        author, role = raw.get("author"), raw.get("role")
        if isinstance(author, OBJECTS) and not role:
            check_keys(author, AUTHOR_KEYS, f"{place}.author", self.state, of="authors")
            rest = {key: value for key, value in raw.items() if key != "author"}
            return {**rest, "role": author.get("role"), "name": author.get("name")}
        if isinstance(role, str) and role not in ROLES and TOOL_AUTHOR.fullmatch(role):
            return {**raw, "role": "tool", "name": role}
        return raw

    def _block(self, placed: PlacedItem, *, first: bool) -> _Said | PlacedItem | None:
        place, item = placed
        before, self.after_block = self.after_block, True
        refused = len(self.state.problems)
        header = self._header(item, place, item["role"])
        if len(self.state.problems) > refused:
            return None
        plain = header == Header(header.author) and not item.get("name")
        message = read_block(
            item, header, place, self.state, first=first, alone=plain and not before
        )
        if message is None:
            check_keys(_extras(item), MASKS, place, self.state)
            self.after_block = item["role"] == "developer"  # its tools open such a message too
            return None
        if message.header is not None:
            self.after_block = False
        return _Said(place, "X", message, _extras(item))

    def _user(self, placed: PlacedItem) -> _Said | PlacedItem | None:
        place, item = placed
        self.unanswered = []
        header = self._header(item, place, "user")
        text = read_content(item.get("content"), f"{place}.content", self.state)
        if text is None:
            return PlacedItem(place, {"role": "user", "content": item.get("content")})
        kept = None if header == Header("user") else header
        return _Said(place, "X", Message("user", text, header=kept), _extras(item))

    def _assistant(self, placed: PlacedItem) -> _Said | PlacedItem | None:
        place, item = placed
        header = self._header(item, place, "assistant")
        if header.recipient:
            return self._call(placed, header)
        if not header.channel:
            if item.get("content") and isinstance(item["content"], list):
                self.state.note("assistant messages without a channel read as answers")
            return _without(item, place)
        others = _chat_keys(item)
        if others and (header.channel == "final" or "tool_calls" in others):
            return _without(item, place)
        text = read_content(item.get("content"), f"{place}.content", self.state)
        if text is None:
            if item.get("content") is None:
                mend = "write its text as `content`, or delete the message"
                self.state.refuse("the message has no content", f"{place}.content", mend=mend)
            return None
        return _Said(place, *self._spoken(header, text), _extras(item))

    def _spoken(self, header: Header, text: str) -> tuple[str, Message]:
        """Reads a message to the user, or of thinking; an empty answer is left for the chat format
        to refuse.
        """
        usual = header == Header("assistant", header.channel)
        if usual and header.channel == "final":
            return "F", Message("assistant", text)
        if usual and text:
            if header.channel == "analysis":
                return "A", Message("assistant", thinking=text)
            return "C", Message("assistant", text)
        return "X", Message("assistant", text, header=header)

    def _call(self, placed: PlacedItem, header: Header) -> _Said | None:
        place, item = placed
        state = self.state
        text = read_content(item.get("content"), f"{place}.content", state)
        if text is None:
            if item.get("content") is None:
                mend = 'write the arguments as the text of `content`, "{}" for none'
                state.refuse("the call has no content", f"{place}.content", mend=mend)
            return None
        if header.channel == "final":
            mend = 'write "commentary", or "analysis" for a builtin tool'
            state.refuse("a call in the final channel", f"{place}.channel", "final", mend)
            return None
        if "." not in header.recipient and not self._is_builtin(header.recipient):
            state.note("recipients without a namespace read as functions")
            header = header._replace(recipient=PREFIX + header.recipient)
        builtin = not header.recipient.startswith(PREFIX)
        name = header.recipient.removeprefix(PREFIX)
        if not name:
            mend = 'write "functions." and the name of the function'
            state.refuse("the call names no function", f"{place}.recipient", PREFIX, mend)
        usual = Header(
            "assistant",
            "analysis" if builtin else "commentary",
            header.recipient,
            "code" if builtin else JSON_TYPE,
        )
        if not header.channel:
            state.note("calls without a channel written in that of such calls")
            header = header._replace(channel=usual.channel)
        if not header.content_type and not isinstance(item["content"], list):
            header = header._replace(content_type=usual.content_type)
        call = ToolCall(name, text, "", builtin, None if header == usual else header)
        self.unanswered.append((name, builtin))
        state.called[name] = builtin
        return _Said(place, "T", Message("assistant", tool_calls=(call,)), _extras(item))

    def _is_builtin(self, name: str) -> bool:
        if name in self.state.functions:
            return False
        return name in BUILTIN or name in self.state.found.namespaces

    def _result(self, placed: PlacedItem) -> _Said | PlacedItem | None:
        place, item = placed
        if item.get("tool_call_id"):
            return _without(item, place)
        name = item.get("name")
        if not name and self.unanswered:
            name, builtin = self.unanswered[0]
            item = {**item, "name": name if builtin else PREFIX + name}
        header = self._header(item, place, "tool")
        text = read_content(item.get("content"), f"{place}.content", self.state)
        if not isinstance(name, str) or not name or text is None:
            return _without(item, place)
        author = header.author
        builtin = not author.startswith(PREFIX)
        bare = author.removeprefix(PREFIX)
        if builtin and self.state.called.get(author) is False:
            builtin, header = False, header._replace(author=PREFIX + author)
        if (bare, builtin) in self.unanswered:
            self.unanswered.remove((bare, builtin))
        elif bare not in self.state.called:
            self.state.note("tool results whose call is not in the conversation")
        usual = Header(header.author, "analysis" if builtin else "commentary", "assistant")
        if not isinstance(item["content"], list):
            header = header._replace(
                channel=header.channel or usual.channel,
                recipient=header.recipient or usual.recipient,
            )
        kept = None if header == usual else header
        message = Message("tool", text, name=bare, builtin=builtin, header=kept)
        return _Said(place, "X", message, _extras(item))

    def _header(self, item: Mapping[str, Any], place: str, role: str) -> Header:
        """Reads the header, refusing what none can hold."""
        channel, recipient, content_type = (self._word(item, key, place) for key in HEADER_KEYS)
        name = self._word(item, "name", place)
        if channel and channel not in CHANNELS:
            self._refuse_value("channel", channel, CHANNELS, place)
        if recipient == "all":
            recipient = ""
        if recipient in ("user", "assistant") and role == "assistant":
            mend = "delete it: a recipient is a tool that is called"
            self.state.refuse("not a tool", f"{place}.recipient", recipient, mend)
            recipient = ""
        author = name if role == "tool" else f"{role}:{name}" if name else role
        return Header(author, channel, recipient, content_type)

    def _word(self, item: Mapping[str, Any], key: str, place: str) -> str:
        value = item.get(key) or ""
        bare = value.removeprefix("<|constrain|>") if isinstance(value, str) else None
        if bare is not None and not any(c.isspace() or c in "<>|" for c in bare):
            return str(value)
        mend = f"write one word, or {shell_list('data.ignore', [key])} to train without it"
        self.state.refuse(f"`{key}` is no part of a Harmony header", f"{place}.{key}", value, mend)
        return ""

    def _refuse_value(self, key: str, value: str, known: Sequence[str], place: str) -> None:
        ignore = shell_list("data.ignore", [key])
        mend = f"write one of {', '.join(known)}, or say {ignore} to train without it"
        self.state.refuse(f"unknown {key}", f"{place}.{key}", value, mend)


def _without(item: Mapping[str, Any], place: str) -> PlacedItem:
    """Leaves a message to the chat format, without the header that it would write itself."""
    return PlacedItem(place, {key: v for key, v in item.items() if key not in HEADER_KEYS})


def _extras(item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys with content that this dialect does not read: weights, masks, notes."""
    return {key: v for key, v in item.items() if key not in KEYS and not is_empty(v)}


def _chat_keys(item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the chat format or another dialect reads of an assistant message."""
    return {key: item[key] for key in CHAT_KEYS if not is_empty(item.get(key))}
