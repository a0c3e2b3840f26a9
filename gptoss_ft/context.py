"""Types of every command: what it is told beside its settings, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str], None]
"""Shows people one line."""


@dataclass(frozen=True)
class Context:
    """Facts that only the command line knows; the defaults are those of a call from Python.

    Attributes:
        recipe: name of the chosen recipe, or empty.
        job: number of this run within a sweep, from 0; None outside a sweep.
        config_yaml: the composed configuration with interpolations resolved.
        say: where lines for people go.
        given: dotted keys that were typed, without `+` and `~`.
    """

    recipe: str = ""
    job: int | None = None
    config_yaml: str = ""
    say: Say = print
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """The end of a command.

    Attributes:
        exit_code: 0 done; 1 ran and the answer is no.
        objective: the number that a sweeper optimises, where a run has one.
    """

    exit_code: int = 0
    objective: float | None = None
