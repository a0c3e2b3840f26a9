"""The part of a row that stands before its answers, in the many columns where it is kept.

What several layouts share: a question by one of its names, an input beside an instruction, earlier
turns, a system prompt; and what is handed on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState, decoded, is_empty, shell_list
from gptoss_ft.data.formats.dialects.authors import TEXT_KEYS, author_of
from gptoss_ft.data.formats.harmless import fold

Row = Mapping[str, Any]

# In the order of preference; what a row has besides the first is not read, and so is refused.
TURNS = ("messages", "conversations", "conversation", "context")
QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "user_prompt", "input")
SYSTEMS = ("system", "system_prompt", "system_message", "instructions")
# Read by every format under these names.
HANDED_ON = ("tools", "builtin_tools", "reasoning_effort", "chat_template_kwargs")


@lru_cache(maxsize=4096)
def folded(names: tuple[str, ...]) -> frozenset[str]:
    """Returns the folded names of columns: enough to see that most rows are laid out otherwise."""
    return frozenset(fold(str(name)) for name in names)


def named(row: Row) -> dict[str, str]:
    """Returns the columns that hold something, each under its folded name."""
    return {fold(str(name)): name for name, value in row.items() if not is_empty(value)}


def first(names: Mapping[str, str], wanted: tuple[str, ...]) -> str | None:
    """Returns the column with the first of the wanted names, or None."""
    return next((names[name] for name in wanted if name in names), None)


class Asked(NamedTuple):
    """The columns before the answers; None for those that a row lacks.

    `repeats` say once more what is asked, and are as good as read.
    """

    turns: str | None
    question: str | None
    given: str | None
    system: str | None
    history: str | None
    repeats: tuple[str, ...]
    handed_on: tuple[str, ...]

    @property
    def columns(self) -> frozenset[str]:
        """Their names."""
        found = (*self[:5], *self.repeats, *self.handed_on)
        return frozenset(name for name in found if name is not None)


def asked(
    row: Row, names: Mapping[str, str], used: frozenset[str], whole: Sequence[str] = ()
) -> Asked:
    """Finds the columns before the answers.

    Args:
        row: the row.
        names: its columns that hold something, by their folded names.
        used: the columns of the answers.
        whole: the texts of the answers where they are whole conversations: no messages are looked
            for then.
    """
    names = {fold(name): name for name in names.values() if name not in used}
    found = [names[name] for name in TURNS if name in names and is_turns(row[names[name]])]
    turns = found[0] if found and not whole else None
    questions = [names[n] for n in QUESTIONS if n in names and _can_ask(row[names[n]])]
    question = questions[0] if questions and not turns else None
    joined = question and fold(question) == "instruction" and not whole
    given = names.get("input") if joined else None
    history = None if turns or whole else names.get("history")
    if history and question is None and isinstance(decoded(row[history]), str):
        question, history = history, None
    texts = [*whole, *(texts_of(row[turns]) if turns else [row[question]] if question else [])]
    repeats = tuple(
        name for name in questions if name not in (question, given) and row[name] in texts
    )
    handed_on = tuple(names[name] for name in HANDED_ON if name in names)
    return Asked(turns, question, given, first(names, SYSTEMS), history, repeats, handed_on)


def _can_ask(raw: Any) -> bool:
    stored = decoded(raw)
    if isinstance(stored, Mapping) and not isinstance(raw, str):
        return "full_text" in stored
    return isinstance(raw, str | list)


def texts_of(turns: Any) -> list[str]:
    """Returns the texts of messages, also of turns that hold a question and its answer."""
    turns = decoded(turns)
    texts: list[str] = []
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, Mapping) and "input" in turn:
            texts += [str(turn[key]) for key in ("input", "output") if turn.get(key)]
        elif isinstance(turn, Mapping):
            texts += [turn[key] for key in TEXT_KEYS if isinstance(turn.get(key), str)][:1]
    return texts


def is_turns(raw: Any) -> bool:
    """Returns whether a value is a list of messages, in any dialect that names their authors."""
    raw = decoded(raw)
    return (
        isinstance(raw, list)
        and bool(raw)
        and all(isinstance(item, Mapping) for item in raw)
        and author_of(raw[0]) is not None
    )


def is_whole(raw: Any) -> bool:
    """Returns whether a value is a list of messages that begins before the answer."""
    raw = decoded(raw)
    return is_turns(raw) and author_of(raw[0]) in ("system", "developer", "user")


def prompt_of(row: Row, found: Asked, state: RowState) -> Any:
    """Writes what stands before the answers: a text where it is but a question, else messages."""
    question = question_text(row[found.question]) if found.question else None
    if found.given and isinstance(row[found.given], str) and isinstance(question, str):
        question = f"{question}\n\n{row[found.given]}"
    turns = decoded(row[found.turns]) if found.turns else None
    if turns is None and is_turns(question):
        turns = decoded(question)
    if turns is None and not (found.system or found.history):
        return question
    if turns is None:
        turns = [{"role": "user", "content": question}]
    return with_system(row, found, [*_history(row, found, state), *turns], state)


def question_text(raw: Any) -> Any:
    """Returns the text of a question that is kept as an object; all else as it is."""
    raw = decoded(raw) if isinstance(raw, str) and raw[:1] == "{" else raw
    return raw["full_text"] if isinstance(raw, Mapping) and "full_text" in raw else raw


def with_system(row: Row, found: Asked, turns: list[Any], state: RowState) -> list[Any]:
    """Puts the system prompt of a column before messages that do not have it."""
    if found.system is None:
        return turns
    system = row[found.system]
    opening = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    if author_of(opening) not in ("system", "developer"):
        return [{"role": "system", "content": system}, *turns]
    if system not in (opening.get("content"), opening.get("value")):
        mend = f"keep one of them; {shell_list('data.ignore', [found.system])} keeps the messages'"
        state.refuse("there are two system prompts", found.system, system, mend)
    return turns


def _history(row: Row, found: Asked, state: RowState) -> list[Any]:
    """Writes earlier turns as messages: a list of messages, or of questions and their answers."""
    raw = decoded(row[found.history]) if found.history else None
    if raw is None or is_turns(raw):
        return raw or []
    messages: list[Any] = []
    for turn in raw if isinstance(raw, list) else [raw]:
        if not (isinstance(turn, list) and len(turn) == 2):
            mend = "write a list of [question, answer], or of messages"
            state.refuse("not a question and its answer", str(found.history), turn, mend)
            continue
        roles = zip(("user", "assistant"), turn, strict=True)
        messages += [{"role": role, "content": text} for role, text in roles if text]
    return messages


def handed_on(row: Row, found: Asked) -> dict[str, Any]:
    """Returns the columns that every format reads, under their own names."""
    return {fold(name): row[name] for name in found.handed_on}


def split_answer(turns: list[Any]) -> tuple[list[Any], list[Any]]:
    """Splits messages before the assistant messages that they end in."""
    count = len(turns)
    while count and isinstance(turns[count - 1], Mapping):
        if author_of(turns[count - 1]) != "assistant":
            break
        count -= 1
    return turns[:count], turns[count:]
