"""JSONL files to objects, with every broken line reported."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.conversation import quote


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and the JSON objects on them; blank lines are passed over.

    The good rows are yielded as they are read and the bad ones raised together at the end of the
    file, so that a caller can collect its own problems of the good rows first.

    Raises:
        DataError: no such file, not a file, empty, or lines that are not UTF-8 or not JSON objects.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(_missing(path))
    problems: list[Problem] = []
    rows = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # A byte order mark is what some editors put before the first line.
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            rows += 1
            row = _row(line, f"{path}:{number}", problems)
            if row is not None:
                yield number, row
    if not rows:
        mend = "write one conversation per line as a JSON object"
        problems.append(Problem("the file is empty", str(path), mend=mend))
    if problems:
        raise DataError(problems)


def _row(line: bytes, where: str, problems: list[Problem]) -> dict[str, Any] | None:
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        problems.append(Problem("the line is not UTF-8", where, found, "save the file as UTF-8"))
        return None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}: {quote(text.strip())}"
        mend = "write each conversation as one JSON object on one line"
        problems.append(Problem("the line is not JSON", where, found, mend))
        return None
    if not isinstance(row, dict):
        mend = 'write {"messages": [...]}'
        problems.append(Problem("the line is not a JSON object", where, quote(row), mend))
        return None
    return row


def _missing(path: Path) -> Problem:
    if path.is_dir():
        files = sorted(entry.name for entry in path.glob("*.jsonl"))
        found = f"a folder with {', '.join(files)}" if files else "a folder"
        return Problem("not a file", str(path), found, "give the path of one JSONL file")
    folder = path.parent
    if not folder.is_dir():
        return Problem("no such file", str(path), f"no folder {folder}", "correct the path")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = difflib.get_close_matches(path.name, names, 3, 0.5)
    near = near or [name for name in names if name.endswith(".jsonl")][:3]
    mend = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
    return Problem("no such file", str(path), mend=mend or "correct the path")
