"""The rows that belong together, and the one that they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gptoss_ft.errors import Problem


class Part(NamedTuple):
    """A row that belongs to others."""

    path: str
    number: int
    row: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


class AssembledRow(dict[str, Any]):
    """A row put together from others.

    Attributes:
        notes: what the user is told of it; see `RowState.notes`.
        problems: why it could not be put together; empty if it could.
    """

    def __init__(self, columns: Mapping[str, Any], problems: Iterable[Problem] = ()) -> None:
        super().__init__(columns)
        self.notes = Counter[str]()
        self.problems = [*problems]

    def __reduce__(self) -> tuple[Any, ...]:
        return AssembledRow, (dict(self), self.problems), {"notes": self.notes}


class Joined(NamedTuple):
    """The result of some rows.

    Attributes:
        first: the first of them, whose place is that of the result.
        row: None where they are left out.
        notes: what the user is told, counted.
    """

    first: Part
    row: AssembledRow | None
    notes: Counter[str]


def joined(first: Part, columns: Mapping[str, Any], notes: Mapping[str, int]) -> Joined:
    """Returns rows that were put together."""
    return Joined(first, AssembledRow(columns), Counter(notes))


def broken(parts: list[Part], problems: Iterable[Problem]) -> Joined:
    """Returns rows that could not be put together, with every reason."""
    rows = [dict(part.row) for part in parts]
    return Joined(parts[0], AssembledRow({"rows": rows}, problems), Counter())


def number_of(value: Any) -> float | None:
    """Reads a number that may be stored as text; None for anything else, such as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number else None


def moment_of(value: Any) -> float | None:
    """Reads a time: seconds, or ISO 8601, in UTC where it says no zone."""
    number = number_of(value)
    if number is not None:
        return number
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
