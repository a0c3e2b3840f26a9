"""The arguments of a command, checked and quoted before Hydra parses them.

Hydra's grammar rejects ordinary text and paths, and keeps the last of two values in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_ft.commands import Command
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.resources import group_options
from gptoss_ft.schema import Setting, free_parent, key_problem, settings
from gptoss_ft.validation import did_you_mean

_ASSIGNMENT = re.compile(r"(?P<key>[+~]{0,2}[\w./@-]+)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Arguments:
    """Checked arguments.

    Attributes:
        overrides: for Hydra.
        given: dotted keys that were typed.
    """

    overrides: list[str]
    given: frozenset[str]


def check_arguments(command: Command, arguments: Sequence[str], schema: type) -> Arguments:
    """Finds everything wrong with the arguments' keys and choices, and quotes literal values.

    Args:
        command: what they are for.
        arguments: as typed, without the command.
        schema: the command's dataclass.

    Raises:
        ConfigError: unknown settings and choices with the nearest known one, settings given twice,
            two recipes at once.
    """
    given = [found for argument in arguments if (found := _assignment(argument))]
    counts = Counter(key for key, _ in given)
    problems = [
        *_key_problems(command, given, schema, _config_dir(arguments)),
        *_count_problems(command, counts),
    ]
    if problems:
        raise ConfigError(problems)
    known = {setting.key: setting for setting in settings(schema)}
    return Arguments([_override(argument, known) for argument in arguments], frozenset(counts))


def quoted(argument: str, schema: type) -> str:
    """Returns an argument whose value is text or a path, quoted for Hydra; `~` expands in paths.

    Lists stay as they are.
    """
    return _quoted(argument, {setting.key: setting for setting in settings(schema)})


def _assignment(argument: str) -> tuple[str, str] | None:
    """Returns the dotted key and the value; None for options such as `-m` and single words."""
    found = None if argument.startswith("-") else _ASSIGNMENT.fullmatch(argument)
    return (found["key"].lstrip("+~"), found["value"]) if found else None


def _key_problems(
    command: Command, given: Iterable[tuple[str, str]], schema: type, extra: Path | None
) -> Iterator[Problem]:
    for key, value in given:
        if key in command.recipes or key in command.groups:
            home = "recipes" if key in command.recipes else "configs"
            yield from _choice_problems(key, value, group_options(home, key, extra))
        elif not key.startswith("hydra") and (problem := key_problem(key, schema)):
            yield problem


def _choice_problems(group: str, value: str, options: Mapping[str, str]) -> Iterator[Problem]:
    for choice in value.split(","):
        if choice not in options and choice not in ("null", ""):
            mend = did_you_mean(choice, options, lambda near: f"{group}={near}")
            mend += f"choose from: {', '.join(options) or 'nothing in this version'}"
            yield Problem("no such choice", group, choice, mend)


def _count_problems(command: Command, counts: Counter[str]) -> Iterator[Problem]:
    for key, count in counts.items():
        if count > 1:
            yield Problem("given more than once", key, f"{count} times", "keep one of them")
    recipes = [key for key in command.recipes if counts[key]]
    if len(recipes) > 1:
        mend = "a run has one recipe: keep one of them"
        yield Problem("two recipes at once", " and ".join(recipes), mend=mend)


def _config_dir(arguments: Sequence[str]) -> Path | None:
    for position, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd"):
            return Path(arguments[position + 1]) if position + 1 < len(arguments) else None
        if argument.startswith("--config-dir="):
            return Path(argument.partition("=")[2])
    return None


def _override(argument: str, known: Mapping[str, Setting]) -> str:
    """Returns an argument for Hydra, whose `++` sets a key whether it is there already or not.

    A free dictionary takes keys that its defaults do not name; `+` before a known key is harmless.
    """
    found = _assignment(argument)
    argument = _quoted(argument, known)
    if found and argument.startswith("+") and not argument.startswith("++") and found[0] in known:
        return f"+{argument}"
    if found and not argument.startswith(("+", "~")) and free_parent(found[0], known):
        return f"++{argument}"
    return argument


def _quoted(argument: str, known: Mapping[str, Setting]) -> str:
    assignment = None if argument.startswith("-") else _ASSIGNMENT.fullmatch(argument)
    if assignment is None:
        return argument
    key, value = assignment["key"], assignment["value"]
    literal = _literal(key.lstrip("+~"), known)
    if not literal or re.fullmatch(r"\[.*\]", value, re.DOTALL):
        return argument
    if literal == "path":
        value = str(Path(value).expanduser()) if value else value
    value = value.replace("${", r"\${")
    # In Hydra's grammar a backslash only escapes a quote, or a backslash that stands before one.
    value = re.sub(r"(\\*)(?='|$)", lambda match: match[1] * 2, value).replace("'", r"\'")
    return f"{key}='{value}'"


def _literal(key: str, known: Mapping[str, Setting]) -> str:
    """Returns `text`, `path` or nothing; in a free dictionary a name that ends in path is one."""
    if key in known:
        return known[key].literal
    return "path" if key.endswith("path") and free_parent(key, known) else ""
