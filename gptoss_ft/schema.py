"""The settings of a command, read from its dataclass: keys, types, defaults, and what they are."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_ft.errors import Problem
from gptoss_ft.validation import CHOICES, LITERAL, close_match, dotted


@dataclass(frozen=True)
class Setting:
    """One key that a command takes.

    Attributes:
        key: dotted.
        hint: its type, without None.
        default: what it is when nothing is said.
        metadata: of its field; see `gptoss_ft.validation`.
        doc: the `Attributes:` entry of its dataclass.
    """

    key: str
    hint: Any
    default: Any
    metadata: Mapping[str, Any]
    doc: str

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def is_group(self) -> bool:
        """True for a dataclass, whose own settings follow it."""
        return isinstance(self.hint, type) and dataclasses.is_dataclass(self.hint)

    @property
    def is_free(self) -> bool:
        """True for a dictionary that takes any key."""
        return typing.get_origin(self.hint) is dict

    @property
    def literal(self) -> str:
        """`text` or `path` where the value is taken as it is typed, else empty."""
        return str(self.metadata.get(LITERAL, ""))

    @property
    def values(self) -> str:
        """The values that can be written, in a word or as a choice."""
        if choices := self.metadata.get(CHOICES):
            return "|".join(name for name in choices if name)
        return self.literal.upper() or _type_name(self.hint)


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Lists the settings of a dataclass in their order, those of nested ones after their group."""
    hints, docs = typing.get_type_hints(schema), attribute_docs(schema)
    for item in dataclasses.fields(schema):
        setting = Setting(
            dotted(prefix, item.name),
            _without_none(hints[item.name]),
            _default(item),
            item.metadata,
            docs.get(item.name, ""),
        )
        yield setting
        if setting.is_group:
            yield from settings(setting.hint, setting.key)


def key_problem(key: str, schema: type) -> Problem | None:
    """Returns what is wrong with a dotted key, with the nearest known one; None if it is known."""
    known = {setting.key: setting for setting in settings(schema)}
    if key in known or free_parent(key, known):
        return None
    near = close_match(key, known, cutoff=0.5)
    if near is None:
        tails = {setting.name: setting.key for setting in known.values()}
        tail = close_match(key.rpartition(".")[2], tails)
        near = tails[tail] if tail else None
    mend = f"did you mean {near}?" if near else "see `gptoss-ft COMMAND --help` for all settings"
    return Problem("unknown setting", key, mend=mend)


def free_parent(key: str, known: Mapping[str, Setting]) -> Setting | None:
    """Returns the dictionary of any keys that a dotted key belongs to, or None."""
    parents = (key.rsplit(".", count)[0] for count in range(1, key.count(".") + 1))
    found = (known[parent] for parent in parents if parent in known)
    return next((setting for setting in found if setting.is_free), None)


def attribute_docs(schema: type) -> dict[str, str]:
    """Returns the entries of `Attributes:` in a dataclass's docstring and in those of its bases."""
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        _, _, section = (base.__doc__ or "").partition("Attributes:\n")
        entries = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {9,}.*)*)", section, re.MULTILINE)
        for names, doc in entries:
            docs.update(dict.fromkeys(names.split(", "), re.sub(r"\s+", " ", doc)))
    return docs


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _type_name(hint: Any) -> str:
    names = {bool: "true|false", int: "INTEGER", float: "NUMBER", str: "TEXT"}
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        if dataclasses.is_dataclass(item):
            return f"[{{{', '.join(f'{field.name}: …' for field in dataclasses.fields(item))}}}]"
        return f"[{_type_name(item)}, …]"
    return names.get(hint, "VALUE")
