"""Bad rows: refused with advice, or left out, counted by cause and kept in a file of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from gptoss_ft.data.summary import Counts, bad_lines
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.files import atomic_file

DROPPED = "dropped.jsonl"
OTHERWISE = (
    "or say data.on_bad=drop, which leaves bad rows out of the data, counts them by cause, and "
    f"writes them to {DROPPED} in the folder of the run"
)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        where: its place, `file:number`.
        problems: what is wrong with it; at least one.
        row: itself, or the bytes of a line that is no JSON object.
    """

    where: str
    problems: tuple[Problem, ...]
    row: bytes | Mapping[str, Any]

    @property
    def cause(self) -> str:
        """The first thing that is wrong with it, the same text for every such row."""
        return re.sub(r"\d+", "N", self.problems[0].what)


Report = Callable[[BadRow], object]


@dataclass(frozen=True)
class DroppedRows:
    """Rows that were left out of a source.

    Attributes:
        file: one JSON object for each, as they were found when the source was rendered.
        before: the source's files at that time.
        now: the same files where they are now.
    """

    file: Path
    before: Sequence[str]
    now: Sequence[str]


def count_bad(counts: Counts, row: BadRow) -> None:
    """Counts a row that is left out."""
    counts.bad[row.cause] += 1
    counts.first_bad.setdefault(row.cause, row.where)


def refused(problems: Iterable[Problem], *, some_are_good: bool) -> list[Problem]:
    """Returns the problems of refused rows, with the setting that passes over them where rows would
    be left.
    """
    return [replace(one, otherwise=OTHERWISE if some_are_good else "") for one in problems]


def every_row_is_bad(source: str, counts: Counts, firsts: Iterable[Problem]) -> DataError:
    """Makes the error of a source of which nothing would be left.

    Args:
        source: its path.
        counts: of its bad rows.
        firsts: a problem of each cause.
    """
    what, mend = "every row is bad; there is none to keep", "correct the rows, or give another file"
    found = "; ".join(bad_lines(counts.bad, counts.first_bad))
    return DataError([Problem(what, source, found, mend), *firsts])


def write_bad(rows: Iterable[BadRow], stream: IO[str]) -> None:
    """Writes rows that are left out, a JSON object for each."""
    for row in rows:
        whole = row.row.decode("utf-8", "replace") if isinstance(row.row, bytes) else row.row
        problems = [_spoken(one) for one in row.problems]
        stream.write(_line({"where": row.where, "problems": problems, "row": whole}))


def _spoken(problem: Problem) -> dict[str, str]:
    """Returns a problem's parts under the names that errors print."""
    parts = {
        "what": problem.what,
        "where": problem.where,
        "found": problem.found,
        "fix": problem.mend,
    }
    return {name: text for name, text in parts.items() if text}


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"


def keep_dropped(sources: Sequence[DroppedRows], file: Path) -> None:
    """Writes the rows that were left out of all sources to a file, whole or not at all; none if
    there are no such rows.
    """
    if not sources:
        return
    with atomic_file(file) as temporary, open_lines(temporary, "w") as stream:
        for source in sources:
            stream.writelines(_lines(source))


def _lines(source: DroppedRows) -> Iterator[str]:
    """Yields the lines of a file, with the places of today."""
    with open_lines(source.file, "r") as stream:
        if list(source.before) == list(source.now):
            yield from stream
            return
        for line in stream:
            row = json.loads(line)
            for part in (row, *row["problems"]):
                part["where"] = moved(part.get("where", ""), source.before, source.now)
            yield _line(row)


def open_lines(file: Path, mode: str) -> IO[str]:
    """Opens a file of JSON lines; half a surrogate pair is written as the JSON escape that it was
    read from.
    """
    return file.open(mode, encoding="utf-8", errors="backslashreplace")


def moved(where: str, before: Sequence[str], now: Sequence[str]) -> str:
    """Returns a place in a source whose files may have been moved since."""
    for old, new in zip(before, now, strict=True):
        if where == old or where.startswith(f"{old}:"):
            return new + where[len(old) :]
    return where
