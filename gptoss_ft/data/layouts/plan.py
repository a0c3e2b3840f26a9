"""Plans of how columns are read, made from their names and remembered by them.

A plan is made once for each set of columns. It says the format, where the format's columns come
from, which columns carry nothing to train, and which are left over; what is left over and holds
something is refused by `row`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gptoss_ft.data.formats.harmless import fold, is_harmless
from gptoss_ft.data.layouts import names
from gptoss_ft.data.layouts.columns import columns_of

# Marks `input` or `output` in a signature where it holds a list.
LIST_MARK = "[]"
# What settings beside the conversation may stand in columns of any format but text.
SETTINGS = ("builtin_tools", "reasoning_effort", "chat_template_kwargs")
# The columns of each format, those it must have first.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "sharegpt": ("messages",),
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "trl_preference": ("chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "responses": ("items",),
    "segments": ("segments",),
    "text": ("text",),
    "harmony": ("text",),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "trl_preference": ("prompt", "score_chosen", "score_rejected"),
    "alpaca": ("input", "history"),
    "responses": ("input", "output"),
}
PLAIN = ("text", "harmony", "segments")
# Formats that hold whole conversations, and those with one answer that thinking may stand beside.
CONVERSATIONAL = ("chat", "sharegpt")
ANSWERING = (*CONVERSATIONAL, "prompt_completion", "alpaca", "kto", "responses")
# Formats, and columns of theirs, that are read as they stand.
SIMPLE = ("chat", "sharegpt", "prompt_completion", "text")
PLAIN_SLOTS = (
    "messages", "prompt", "completion", "text", "tools", "builtin_tools", "reasoning_effort",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """A user's word on the rows of a source.

    Attributes:
        format: name of their format; empty to detect it.
        columns: what the formats read and where a row keeps it: a column, a path or a template.
        ignore: columns, and keys of messages, that carry nothing to train.
    """

    format: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    ignore: frozenset[str] = frozenset()


class Plan(NamedTuple):
    """The way in which rows with certain columns are read.

    Attributes:
        format: empty where the names fit none, or leave a doubt.
        moves: what is read, and the column, path or template it comes from.
        rest: columns that are neither read nor harmless nor ignored.
        lines: for the user, how each column is read.
        quiet: columns that carry nothing to train, by their names.
        doubts: the columns between which the names leave a doubt, by what they would be read as.
        simple: whether all that is to do is to read the columns under the format's names.
        renamed: the columns that have other names, by the format's.
    """

    format: str
    moves: tuple[tuple[str, str], ...]
    rest: tuple[str, ...]
    lines: tuple[str, ...]
    doubts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    simple: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    quiet: tuple[str, ...] = ()


@lru_cache(maxsize=4096)
def plan_of(signature: tuple[str, ...], reading: Reading) -> Plan:
    """Plans how rows are read whose columns with a value are `signature`."""
    given = tuple(name for name in signature if not name.endswith(LIST_MARK))
    used = {column for _, source in reading.columns for column in columns_of(source)}
    columns = _Columns(
        {fold(name): name for name in given if name not in used and name not in reading.ignore},
        dict(reading.columns),
        frozenset(name for name in signature if name.endswith(LIST_MARK)),
    )
    found = _said(reading.format, columns) if reading.format else _detected(columns)
    moves = list(reading.columns)
    moves += [(slot, columns.free.pop(fold(name))) for slot, name in found.moves]
    if found.format not in PLAIN:
        moves += _sides(columns, found.format)
    rest = [name for name in columns.free.values() if not _says_nothing(name, found.format)]
    lines = [_line(slot, source) for slot, source in moves]
    lines += [f"{name}: ignored, as data.ignore says" for name in given if name in reading.ignore]
    quiet = tuple(name for name in columns.free.values() if name not in rest)
    lines += [f"{name}: not read" for name in quiet]
    return Plan(
        found.format,
        tuple(moves),
        tuple(rest),
        tuple(lines),
        found.doubts,
        found.format in SIMPLE and all(s in PLAIN_SLOTS and name in given for s, name in moves),
        tuple((slot, name) for slot, name in moves if slot != name),
        quiet,
    )


def _line(slot: str, source: str) -> str:
    return slot if slot == source else f"{source} → {slot}"


def _says_nothing(name: str, format_name: str) -> bool:
    folded = fold(name)
    if format_name == "text" and folded in names.SPEAKERS:
        return False  # One message of a chat, with who said it.
    if format_name in ANSWERING and folded in names.CHECKED_AGAINST:
        return True
    if format_name in CONVERSATIONAL and folded in names.BESIDE_CONVERSATION:
        return True
    # `text` is the whole row once more, in some other model's markup.
    return (folded == "text" and format_name not in PLAIN) or is_harmless(name)


class _Found(NamedTuple):
    """A format, its columns as (what they are read as, their name), and doubts about them."""

    format: str
    moves: tuple[tuple[str, str], ...] = ()
    doubts: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass
class _Columns:
    """The columns of a row.

    Attributes:
        free: those not read yet, by their name in lower case.
        said: what `data.columns` says.
        lists: `input[]` and `output[]` where they hold lists.
    """

    free: dict[str, str]
    said: Mapping[str, str]
    lists: frozenset[str]

    def has(self, *slots: str) -> bool:
        """Returns whether each of them is said, or stands under its own name."""
        return all(slot in self.said or slot in self.free for slot in slots)

    def own(self, *slots: str) -> tuple[tuple[str, str], ...]:
        """Returns those of the slots that stand under their own name and are not said."""
        return tuple(
            (slot, self.free[slot]) for slot in slots if slot not in self.said and slot in self.free
        )

    def among(self, slot: str, aliases: Sequence[str]) -> list[str]:
        """Returns the columns that may be read as `slot`; one that is said stands alone."""
        if slot in self.said:
            return [self.said[slot]]
        return [self.free[alias] for alias in aliases if alias in self.free]

    def move(self, slot: str, name: str) -> tuple[tuple[str, str], ...]:
        """Returns the move of a column, none where the slot is said."""
        return () if slot in self.said else ((slot, name),)


def _said(format_name: str, columns: _Columns) -> _Found:
    """Finds the columns of the format that the user names, aliases among them."""
    if format_name in ("chat", "sharegpt"):
        conversation = columns.among("messages", names.CONVERSATIONS)
        moves = columns.move("messages", conversation[0]) if conversation else ()
        return _Found(format_name, moves)
    if format_name == "trl_preference" or not columns.has(*NEEDED[format_name]):
        found = _detected(columns)
        if found.format == format_name:
            return found
    slots = (*NEEDED[format_name], *OPTIONAL.get(format_name, ()))
    return _Found(format_name, columns.own(*slots))


def _detected(columns: _Columns) -> _Found:
    """Finds the format by the names of the columns."""
    if columns.has(*NEEDED["openai_preference"]):
        return _Found("openai_preference", columns.own(*NEEDED["openai_preference"]))
    if columns.has("chosen", "rejected"):
        return _preference(columns)
    if columns.has("segments"):
        return _Found("segments", columns.own("segments"))
    if conversation := columns.among("messages", names.CONVERSATIONS):
        name = "sharegpt" if fold(conversation[0]) == "conversations" else "chat"
        return _Found(name, columns.move("messages", conversation[0]))
    exact = [name for name in ("prompt_completion", "alpaca") if columns.has(*NEEDED[name])]
    if len(exact) == 1 and not columns.lists:
        slots = (*NEEDED[exact[0]], *OPTIONAL.get(exact[0], ()))
        rated = exact == ["prompt_completion"] and columns.has("label")
        return (
            _Found("kto", columns.own(*NEEDED["kto"]))
            if rated
            else _Found(exact[0], columns.own(*slots))
        )
    if columns.has("items") or (columns.lists and not columns.has("instruction")):
        return _Found("responses", columns.own("items", "input", "output"))
    found = _question_and_answer(columns)
    if not found.format and not found.doubts and columns.has("text"):
        return _Found("text", columns.own("text"))
    return found


def _preference(columns: _Columns) -> _Found:
    prompts = columns.among("prompt", ("prompt",)) or columns.among("prompt", names.PROMPTS)
    own = columns.own("chosen", "rejected")
    for slot, aliases in names.SCORES.items():
        scores = columns.among(slot, aliases)
        own += columns.move(slot, scores[0]) if scores else ()
    if len(prompts) > 1:
        return _Found("", own, (("prompt", tuple(prompts)),))
    return _Found("trl_preference", own + (columns.move("prompt", prompts[0]) if prompts else ()))


def _question_and_answer(columns: _Columns) -> _Found:
    """Finds the one column that can be the prompt and the one that can be the completion."""
    prompts = columns.among("prompt", names.PROMPTS)
    completions = columns.among("completion", names.COMPLETIONS)
    contexts = columns.among("input", names.CONTEXTS)
    if len(prompts) > 1 and fold(prompts[-1]) == "input" and not contexts:
        contexts = [prompts.pop()]
    if not (prompts and completions):
        return _Found("")
    if max(map(len, (prompts, completions, contexts))) > 1:
        choices = (("prompt", tuple(prompts)), ("completion", tuple(completions)))
        return _Found("", (), choices)
    moves = columns.move("prompt", prompts[0]) + columns.move("completion", completions[0])
    if contexts or columns.has("history"):
        moves += columns.move("input", contexts[0]) if contexts else ()
        return _Found("alpaca", moves + columns.own("history"))
    if columns.has("label"):
        return _Found("kto", moves + columns.own("label"))
    return _Found("prompt_completion", moves)


def _sides(columns: _Columns, format_name: str) -> list[tuple[str, str]]:
    """Takes the columns of the system message, of thinking, of tools and of settings."""
    moves = []
    for slot, aliases in names.ALIASES.items():
        if slot == "thinking" and format_name not in ANSWERING:
            continue
        for name in columns.among(slot, aliases) if slot not in columns.said else ():
            moves.append((slot, columns.free.pop(fold(name))))
    return moves + [(slot, columns.free.pop(slot)) for slot, _ in columns.own(*SETTINGS)]
