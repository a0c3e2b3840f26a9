"""Checks shared by the settings of all commands: literals, choices, ranges, misspellings, keys.

A field says what it takes where it is declared: `text_field` and `path_field` are taken as they are
typed, `choice_field` names the values there are, `number_field` the range. `field_problems` checks
all fields of a dataclass, and the help of a command shows the same facts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gptoss_ft.errors import Problem

LITERAL, CHOICES, UNKNOWN, RANGE = "literal", "choices", "unknown", "range"
# Of difflib: the share of two names that must agree for one to be a misspelling of the other.
MISSPELT = 0.6


@dataclass(frozen=True)
class Range:
    """Numbers that a setting takes.

    Attributes:
        least: the smallest, if there is one.
        most: the largest, if there is one.
        above: a bound that is not itself allowed.
        below: a bound that is not itself allowed.
        finite: whether infinity is refused; not-a-number always is.
        mend: what to write instead, where the range does not say it all.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    finite: bool = True
    mend: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            not math.isnan(value)
            and not (self.finite and math.isinf(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        bounds = {
            "at least": self.least,
            "at most": self.most,
            "above": self.above,
            "below": self.below,
        }
        given = {word: bound for word, bound in bounds.items() if bound is not None}
        return " and ".join(f"{word} {bound:g}" for word, bound in given.items())


def text_field(default: str = "") -> Any:
    """Declares a setting whose value is text: the command line takes it as it is typed."""
    return field(default=default, metadata={LITERAL: "text"})


def path_field(default: Any = "") -> Any:
    """Declares a setting whose value is a path: taken as it is typed, with `~` expanded."""
    return field(default=default, metadata={LITERAL: "path"})


def choice_field(default: str, choices: Iterable[str], unknown: str = "unknown choice") -> Any:
    """Declares a setting that takes one of `choices`, of which one may be empty.

    Args:
        default: its value when nothing is said.
        choices: the values there are.
        unknown: what is wrong with any other one, for the problem.
    """
    return field(default=default, metadata={CHOICES: tuple(choices), UNKNOWN: unknown})


def number_field(default: float, **bounds: Any) -> Any:
    """Declares a number within a range; `bounds` are the fields of `Range`."""
    return field(default=default, metadata={RANGE: Range(**bounds)})


def dotted(prefix: str, name: str) -> str:
    """Returns the key of a setting under a prefix such as `data.render`; none adds nothing."""
    return f"{prefix}.{name}" if prefix else name


def field_problems(options: Any, key: str = "") -> list[Problem]:
    """Checks a dataclass's fields against the choices and ranges that they declare.

    Args:
        options: an instance of a dataclass.
        key: the prefix of its settings, without a dot at the end.
    """
    found: list[Problem | None] = []
    for item in fields(options):
        value, where = getattr(options, item.name), dotted(key, item.name)
        if CHOICES in item.metadata:
            choices = item.metadata[CHOICES]
            if value not in choices:
                found.append(unknown_choice(item.metadata[UNKNOWN], where, value, choices))
        elif RANGE in item.metadata:
            found.append(number_problem(where, value, item.metadata[RANGE]))
    return [problem for problem in found if problem]


def number_problem(where: str, value: Any, allowed: Range) -> Problem | None:
    """Returns what is wrong with a number, or None."""
    if not is_number(value):
        return Problem("must be a number", where, repr(value), allowed.mend)
    if value in allowed:
        return None
    if not str(allowed) or (allowed.finite and not math.isfinite(value)):
        what = "must be a finite number"
    else:
        what = "must not be negative" if allowed == Range(least=0, mend=allowed.mend) else ""
        what = what or f"must be {allowed}"
    return Problem(what, where, repr(value), allowed.mend)


def is_number(value: Any) -> bool:
    """Checks whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def unknown_choice(what: str, where: str, found: Any, choices: Iterable[str]) -> Problem:
    """Returns the problem of a value that is none of the choices, with the nearest one."""
    names = [name for name in choices if name]
    mend = f"{did_you_mean(str(found), names)}write {listed(names)}"
    return Problem(what, where, repr(found), mend)


def did_you_mean(
    name: str, names: Iterable[str], shown: Callable[[str], str] = str, cutoff: float = MISSPELT
) -> str:
    """Returns `did you mean X? ` for the name that is nearest, or nothing.

    Args:
        name: as it was written.
        names: those that there are.
        shown: how the nearest one is to be written.
        cutoff: how near it must be, from 0 to 1.
    """
    near = close_match(name, names, cutoff)
    return "" if near is None else f"did you mean {shown(near)}? "


def close_match(name: str, names: Iterable[str], cutoff: float = MISSPELT) -> str | None:
    """Returns the one of `names` that `name` is a misspelling of, or None."""
    return next(iter(close_matches(name, names, 1, cutoff)), None)


def close_matches(
    name: str, names: Iterable[str], count: int = 3, cutoff: float = MISSPELT
) -> list[str]:
    """Returns up to `count` names that resemble `name`, the nearest first."""
    return difflib.get_close_matches(name, list(names), count, cutoff)


def listed(names: Sequence[str]) -> str:
    """Returns names for a sentence: `a`, `a or b`, `one of a, b, c`."""
    if len(names) > 2:
        return f"one of {', '.join(names)}"
    return " or ".join(names) or "nothing: there is none"
