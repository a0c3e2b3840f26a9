"""Parts shared by the readers of all formats: problems of a row, texts, weights, effort.

A key whose value is null counts as absent throughout: Arrow fills the fields that a struct lacks
with nulls, and so does everything written from it.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from gptoss_ft.data.formats.harmless import is_harmless, weight_of
from gptoss_ft.data.formats.json_text import load_json
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import EFFORTS, Message, SystemLines, ToolSpec
from gptoss_ft.validation import close_match

# Below these difflib ratios an unknown key is somebody's own, above them a misspelling. A row may
# hold any columns beside ours, so there a name has to come closer.
MISSPELT = 0.65
# The column that the name of a field begins with.
_HEAD = re.compile(r"[^.\[]+")
# The key of a message, such as `content` in `messages[1].content`.
_KEY = re.compile(r"(?<=\]\.)\w+")
# What JSON objects may be. Asking for Mapping alone is slow, and nearly all are dicts.
OBJECTS = (dict, Mapping)
TEXT_PARTS = ("text",)
PART_KEYS = frozenset(("type", "text"))
EFFORT_COLUMNS = frozenset(("reasoning_effort", "chat_template_kwargs", "reasoning"))
# Key of a message that a dialect has read already, beside its role and what is said of its weight.
NATIVE = "<message>"

Use = Literal["trained", "history", "rejected"]
"""The use of messages: to be trained; as context, weighing 0; as a bad example."""


class Placed(NamedTuple):
    """A message and the field it was read from."""

    place: str
    message: Message


class PlacedItem(NamedTuple):
    """A message as it was written, before it is read, and the field it stands in."""

    place: str
    item: Any


@dataclass
class Found:
    """Settings of a whole row that its messages give.

    Attributes:
        tools: functions that a developer message declares.
        effort: that a system message names.
        system: the system message: its lines, or its text.
        builtin: the builtin tools that it declares.
        namespaces: names of all that it declares.
        functions_elsewhere: whether a developer message that is kept as text declares functions.
        opened: whether the first message was the system message.
    """

    tools: tuple[ToolSpec, ...] = ()
    effort: str | None = None
    system: SystemLines | str | None = None
    builtin: tuple[str, ...] = ()
    namespaces: frozenset[str] = frozenset()
    functions_elsewhere: bool = False
    opened: bool = False

    def give(self, name: str, value: Any, key: str, state: RowState) -> None:
        """Sets `tools`, `effort` or `system`; another one than before is refused.

        Args:
            name: the attribute.
            value: of it.
            key: the column that gives it, or the field of a message.
            state: of the row.
        """
        if getattr(self, name) not in (None, (), value):
            what = f"the row gives its {name} twice, and they differ"
            column = f", or say {shell_list('data.ignore', [key])}" if "[" not in key else ""
            state.refuse(what, key, mend=f"keep one of them{column}")
        setattr(self, name, value)


@dataclass
class RowState:
    """Everything collected while one row is read.

    Attributes:
        where: `file:line`.
        problems: in the order of the fields.
        ignore: columns and keys of messages that the user says carry nothing to train.
        names: what the file calls a column, where the format calls it otherwise.
        keys: the same of the keys of messages.
        unread: the columns that are not read, of a row that lacks others.
        said_format: whether the user says which format the rows are in.
        functions: the function tools that the row declares, by name: their parameters.
        declared: those of them that stand among the messages, not in `tools`.
        builtin: the builtin tools that it declares.
        calls: of the calls seen so far, by id: the name, and whether the tool is builtin.
        called: the same by name.
        notes: what the user is told of a row that is read all the same, such as calls of tools that
            it does not declare; counted over all rows.
        found_in_messages: what they say of the whole row, None for nothing; one for all
            continuations.
    """

    where: str
    ignore: frozenset[str] = frozenset()
    names: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    said_format: bool = False
    problems: list[Problem] = field(default_factory=list)
    functions: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    declared: list[ToolSpec] = field(default_factory=list)
    builtin: tuple[str, ...] = ()
    calls: dict[str, tuple[str, bool]] = field(default_factory=dict)
    called: dict[str, bool] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    found_in_messages: Found | None = None

    @property
    def found(self) -> Found:
        """All that messages say of the whole row; empty at first."""
        if self.found_in_messages is None:
            self.found_in_messages = Found()
        return self.found_in_messages

    def note(self, what: str) -> None:
        """Notes something that is to be counted and said; `what` is the same text for every row."""
        self.notes[what] += 1

    def refuse(self, what: str, key: str = "", found: Any = None, mend: str = "") -> None:
        """Notes a problem of the field `key`."""
        head = _HEAD.match(key)
        if head and head[0] in self.names:
            key = self.names[head[0]] + key[head.end() :]
        if self.keys:
            key = _KEY.sub(lambda match: self.keys.get(match[0], match[0]), key)
        place = f"{self.where} {key}".strip()
        self.problems.append(Problem(what, place, "" if found is None else quote(found), mend))

    def fork(self) -> RowState:
        """Copies the state of the row from here on, for one of several continuations; problems and
        notes are shared, and so is what messages say of the row.
        """
        return replace(
            self, found_in_messages=self.found, calls=dict(self.calls), called=dict(self.called)
        )

    def check(self) -> None:
        """Raises DataError if there are problems."""
        if self.problems:
            raise DataError(self.problems)


def quote(value: Any, limit: int = 80) -> str:
    """Writes a value as JSON, cut to `limit` characters, for the `found` part of a problem."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@lru_cache(maxsize=1024)
def nearest(name: str, names: tuple[str, ...], cutoff: float = MISSPELT) -> str | None:
    """Returns the one of `names` that `name` is a misspelling of, or None."""
    return close_match(name, names, cutoff)


def listed(names: Iterable[str]) -> str:
    """Names in order, for the end of a sentence."""
    return ", ".join(sorted(names)) or "there is none"


def refuse_missing(row: Mapping[str, Any], name: str, state: RowState, mend: str) -> None:
    """Refuses a row without the column `name`, naming the one that may be its misspelling."""
    if row.get(name) is None:
        given = (*(str(other) for other in row if row[other] is not None), *state.unread)
        near = nearest(name, given)
        mend = f"rename `{near}`, or say 'data.columns={{{name}: {near}}}'" if near else mend
        state.refuse(f"the row has no `{name}`", found=given, mend=mend)


def check_keys(
    raw: Mapping[str, Any],
    known: frozenset[str],
    key: str,
    state: RowState,
    of: str = "messages",
) -> None:
    """Refuses keys with content that are neither read nor harmless nor ignored by the user.

    Args:
        raw: the object.
        known: the keys that are read.
        key: its place.
        state: of the row; harmless keys are noted there.
        of: what the object is one of, for notes.
    """
    if raw.keys() <= known:
        return
    unread: list[str] = []
    for name, value in raw.items():
        if name in known or is_empty(value):
            continue
        if name in state.ignore:
            state.note(f"key `{name}` of {of} ignored, as data.ignore says")
        elif is_harmless(str(name)):
            note_harmless(name, value, of, state)
        else:
            unread.append(name)
    for name in unread:
        near = nearest(str(name), tuple(sorted(known)))
        guess = f"did you mean `{near}`? else " if near else ""
        state.refuse(
            f"this key carries meaning that is not read: `{name}`",
            f"{key}.{name}",
            raw[name],
            f"{guess}rename it to one of {', '.join(sorted(known))}, or say "
            f"{shell_list('data.ignore', map(str, unread))} to train without it",
        )


def note_harmless(name: str, value: Any, of: str, state: RowState) -> None:
    """Notes a key that is not read, and what it holds where that is more than its name promises."""
    held = weight_of(value)
    state.note(
        f"key `{name}` of {of} not read: it holds {held}"
        if held
        else f"key `{name}` of {of} not read: it carries nothing to train"
    )


def is_empty(value: Any) -> bool:
    """Returns whether a value carries nothing: null, an empty text, list or object."""
    return value is None or value == "" or value == [] or value == {}


def shell_list(setting: str, names: Iterable[str]) -> str:
    """Writes a setting with a list of names as an argument that a shell passes on unchanged."""
    return shlex.quote(f"{setting}=[{','.join(_bare_word(name) for name in names)}]")


def _bare_word(name: str) -> str:
    plain = name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    return name if plain and name.isascii() else json.dumps(name, ensure_ascii=False)


def decoded(raw: Any) -> Any:
    """Lists and objects that were stored as JSON text, as in CSV files; all else as it is."""
    if not (isinstance(raw, str) and raw.lstrip()[:1] in ("[", "{")):
        return raw
    try:
        return load_json(raw)
    except ValueError:
        return raw


def without_nulls(value: Any) -> Any:
    """Drops the keys whose value is null from a JSON value, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def check_text(text: str, key: str, state: RowState) -> str:
    """Refuses what UTF-8 cannot hold; return the text unchanged."""
    if not is_utf8(text):
        state.refuse("the text holds half of a surrogate pair", key, mend="repair the escape")
    return text


def is_utf8(text: str) -> bool:
    """Returns whether UTF-8 can hold the text; half of a surrogate pair it cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_content(
    raw: Any, key: str, state: RowState, kinds: tuple[str, ...] = TEXT_PARTS
) -> str | None:
    """Reads the text of a string or of a list of text parts, joined; None for null or broken
    content.
    """
    if raw is None:
        return None
    if isinstance(raw, str):
        return check_text(raw, key, state)
    if not isinstance(raw, list):
        state.refuse("content is not a text", key, raw, "write a string")
        return None
    texts = [_part(part, f"{key}[{i}]", state, kinds) for i, part in enumerate(raw)]
    whole = [text for text in texts if text is not None]
    return "".join(whole) if len(whole) == len(texts) else None


def _part(part: Any, key: str, state: RowState, kinds: tuple[str, ...]) -> str | None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in kinds and isinstance(part.get("text"), str):
        if len(part) > len(PART_KEYS) or not part.keys() <= PART_KEYS:
            check_keys(part, PART_KEYS, key, state, of="parts")
        return check_text(part["text"], key, state)
    if isinstance(kind, str) and kind not in kinds:
        what = f"gpt-oss reads text only, and this part is of type {kind!r}"
        state.refuse(what, key, part, "remove the part, or describe it in a text part")
    else:
        state.refuse("not a text part", key, part, f'write {{"type": "{kinds[0]}", "text": …}}')
    return None


def read_text(raw: Any, key: str, state: RowState) -> str | None:
    """Reads a non-empty string; None for null; a problem, and None, for everything else."""
    if isinstance(raw, str) and raw.strip():
        return check_text(raw, key, state)
    if isinstance(raw, str):
        state.refuse(f"`{key}` is empty", key, mend="write a text, or delete the row")
    elif raw is not None:
        state.refuse(f"`{key}` is not a text", key, raw, "write a string")
    return None


def read_weight(raw: Any, key: str, state: RowState) -> float:
    """Reads a factor of at least 0; 1 where none is given."""
    if raw is None:
        return 1.0
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        state.refuse("the weight is not a number", key, raw, "write a number of at least 0")
    elif not 0 <= raw <= sys.float_info.max:  # integers may be larger than any float
        state.refuse("the weight is out of range", key, raw, "write a number of at least 0")
    else:
        return float(raw)
    return 1.0


def template_settings(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reads TRL's `chat_template_kwargs`: what the released chat template would be given."""
    settings = decoded(row.get("chat_template_kwargs"))
    return settings if isinstance(settings, Mapping) else {}


def read_effort(row: Mapping[str, Any], state: RowState) -> str | None:
    """Reads `reasoning_effort` of the row, of its template settings, or of Responses'
    `reasoning`.
    """
    if EFFORT_COLUMNS.isdisjoint(row):
        return None
    reasoning = row.get("reasoning")
    given = {
        "reasoning_effort": row.get("reasoning_effort"),
        "chat_template_kwargs.reasoning_effort": template_settings(row).get("reasoning_effort"),
        "reasoning.effort": reasoning.get("effort") if isinstance(reasoning, Mapping) else None,
    }
    found = {key: effort for key, effort in given.items() if effort is not None}
    for key, effort in found.items():
        if effort not in EFFORTS:
            mend = f"write one of {', '.join(EFFORTS)}"
            state.refuse("unknown reasoning effort", key, effort, mend)
            return None
    if len(set(found.values())) > 1:
        what = f"{' and '.join(f'`{key}`' for key in found)} differ"
        state.refuse(what, next(iter(found)), found, "keep one of them")
    return next(iter(found.values()), None)
