"""Errors that a user can fix.

Every expected failure is a `GptOssFtError` made of one or more `Problem`s. The command line prints
them without a traceback and exits with 2; anything else that escapes is a bug and keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_PROBLEMS_IN_FULL = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the four parts a reader needs.

    Attributes:
        what: what is wrong, one sentence without a full stop.
        where: `file:line`, a config key, or a tensor name.
        found: what was found there, quoted as the user would see it; empty when `what` says it.
        mend: what to write or do instead.
        otherwise: a setting with which such problems are passed over, said once after all of them.
    """

    what: str
    where: str = ""
    found: str = ""
    mend: str = ""
    otherwise: str = ""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.found:
            lines.append(f"    found: {self.found}")
        if self.mend:
            lines.append(f"    fix:   {self.mend}")
        # Rows may hold halves of surrogate pairs, which no terminal can be sent.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


class GptOssFtError(Exception):
    """Base of all expected errors; carries every problem that was found, not only the first.

    The text shows the first `MAX_PROBLEMS_IN_FULL` problems in full, counts the rest, and ends with
    what can be said instead of mending them.
    """

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        found = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not found:
            raise ValueError("an error needs at least one problem")
        self.problems: tuple[Problem, ...] = found
        super().__init__(self._text())

    def _text(self) -> str:
        shown = [str(problem) for problem in self.problems[:MAX_PROBLEMS_IN_FULL]]
        hidden = len(self.problems) - len(shown)
        if hidden:
            shown.append(f"... and {hidden} more problems of {len(self.problems)} in all")
        shown += dict.fromkeys(one.otherwise for one in self.problems if one.otherwise)
        return "\n".join(shown)


class ConfigError(GptOssFtError):
    """A setting is misspelt, out of range or contradicts another one."""


class DataError(GptOssFtError):
    """A data file cannot be read or a row cannot be rendered."""


class CheckpointError(GptOssFtError):
    """A model folder is not a whole gpt-oss checkpoint."""


class AdapterError(GptOssFtError):
    """An adapter folder is broken or does not belong to the base it is used with."""


class MergeError(GptOssFtError):
    """A merge was refused; nothing was written."""


class ExportError(GptOssFtError):
    """An export was refused or stopped; nothing is under the output's name."""


class RunError(GptOssFtError):
    """A run folder cannot be used as asked."""


class MissingDependencyError(GptOssFtError):
    """An optional dependency is not installed; the message names the extra."""


def gather(*steps: Callable[[], Any]) -> list[Any]:
    """Runs independent steps and returns their results in order; if any fail, raises the problems
    of all.

    Raises:
        GptOssFtError: of the class of the first step that failed.
    """
    results: list[Any] = []
    failed: list[GptOssFtError] = []
    for step in steps:
        try:
            results.append(step())
        except GptOssFtError as error:
            failed.append(error)
    if failed:
        raise type(failed[0])([problem for error in failed for problem in error.problems])
    return results
