"""JSON files to rows: a row per line, an array, pretty-printed objects, or one object of lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptoss_ft.data.formats.common import quote
from gptoss_ft.data.formats.json_text import load_json, load_json_at
from gptoss_ft.data.sources.chunks import CHUNK_BYTES, CHUNK_ROWS, RowChunk, chunked
from gptoss_ft.data.sources.file_types import stem_of
from gptoss_ft.data.sources.json_objects import are_messages, object_rows
from gptoss_ft.data.sources.splits import check_split
from gptoss_ft.data.sources.streams import not_utf8, opened, read_all
from gptoss_ft.errors import DataError, Problem

Numbered = Iterator[tuple[int, bytes | Mapping[str, Any]]]

_SPACE = re.compile(r"[ \t\r\n]*")
LIMIT_MEND = "shorten the row, or leave it out"
# In files of these names an object is a row, whatever it holds.
_LINE_SUFFIXES = frozenset((".jsonl", ".ndjson", ".jsonlines"))
# A first line longer than this is no row: the file is an array on one line.
_LONG_LINE = 64 * 2**20


def read_json(file: Path, split: str = "") -> Iterator[RowChunk]:
    """Reads a JSON file, whichever way its rows are laid out.

    Args:
        file: compressed or not.
        split: which list of an object of lists to read.

    Raises:
        DataError: the file is broken as a whole.
    """
    if not _holds_lines(file):
        return _read_whole(file, split)
    check_split(split, stem_of(file), str(file))
    return _read_lines(file)


def _holds_lines(file: Path) -> bool:
    """Tells whether every line is a row; if so, memory does not grow with the file."""
    with opened(file) as source:
        first = b"\n"
        while first and not first.strip():
            first = source.stream.readline(_LONG_LINE)
        more = len(first) < _LONG_LINE and any(line.strip() for line in source.stream)
    try:
        value = load_json(first.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        # What ends before the value does goes on in the next line.
        return error.pos < len(error.doc.rstrip()) and not first.lstrip().startswith(b"[")
    except ValueError:
        return True
    return more or not isinstance(value, dict | list)


def _read_lines(file: Path) -> Iterator[RowChunk]:
    """Reads a row per line; they stay bytes."""
    rows: list[tuple[int, bytes | Mapping[str, Any]]] = []
    size = 0
    with opened(file) as source:
        for number, line in enumerate(source.stream, start=1):
            if not line.strip():
                continue
            rows.append((number, line))
            size += len(line)
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield RowChunk(str(file), rows, source.position())
                rows, size = [], 0
        if rows:
            yield RowChunk(str(file), rows, source.position())


def _read_whole(file: Path, split: str) -> Iterator[RowChunk]:
    text = read_all(file)
    if text.startswith("[", _skipped(text, 0)):
        check_split(split, stem_of(file), str(file))
        yield from chunked(str(file), _entries(text, file))
        return
    of_lines = not _LINE_SUFFIXES.isdisjoint(file.suffixes)
    try:
        values = list(_values(text, file))
    except DataError:
        if not of_lines:
            raise
        # The first line is cut off; let every line be judged by itself.
        yield from _read_lines(file)
        return
    if of_lines or len(values) != 1 or not isinstance(values[0][1], dict):
        check_split(split, stem_of(file), str(file))
        yield from chunked(str(file), ((number, _row(value)) for number, value in values))
        return
    rows, notes = object_rows(values[0][1], file, split)
    for chunk in chunked(str(file), ((number, _row(row)) for number, row in rows)):
        yield RowChunk(chunk.path, chunk.rows, notes=tuple(notes))
        notes = []


def _entries(text: str, file: Path) -> Numbered:
    """Yields the entries of an array, numbered from 1."""
    number, at = 1, _skipped(text, _skipped(text, 0) + 1)
    if text[at : at + 1] == "]":
        at += 1
    else:
        while True:
            value, at = _value(text, at, file, f"{file}:{number}")
            yield number, _row(value)
            number, end = number + 1, text[at : at + 1]
            at = _skipped(text, at + 1)
            if end == "]":
                break
            if end != ",":
                raise DataError(_not_json(file, "the array is not closed", text, at - 1))
    if at < len(text):
        raise DataError(_not_json(file, "there is more behind the array", text, at))


def _values(text: str, file: Path) -> Iterator[tuple[int, Any]]:
    """Yields values that stand one after the other, each with the line in which it begins."""
    at, line, counted = _skipped(text, 0), 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        value, at = _value(text, at, file, f"{file}:{line}")
        yield line, value


def _value(text: str, at: int, file: Path, where: str) -> tuple[Any, int]:
    """Decodes the value that begins at `at`; returns it, and the place of what comes next."""
    try:
        value, end = load_json_at(text, at)
    except json.JSONDecodeError as error:
        raise DataError(_not_json(file, error.msg, text, error.pos)) from error
    except ValueError as error:
        raise DataError(Problem(str(error), where, mend=LIMIT_MEND)) from error
    return value, _skipped(text, end)


def _skipped(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _not_json(file: Path, what: str, text: str, at: int) -> Problem:
    line = text.count("\n", 0, at) + 1
    found = f"{what} at line {line} column {at - text.rfind(chr(10), 0, at)}: {_around(text, at)}"
    mend = "repair it, or write JSONL, one object per line"
    return Problem("the file is not JSON", f"{file}:{line}", found, mend)


def _around(text: str, at: int) -> str:
    return quote(text[max(0, at - 20) : at + 40].strip())


def _row(value: Any) -> bytes | Mapping[str, Any]:
    """Leaves objects as they are; whatever is none is refused where lines are decoded."""
    return value if isinstance(value, dict) else json.dumps(value).encode()


def decode(row: bytes | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Decodes one row to a mapping; a list of messages is a row without its one column.

    Raises:
        DataError: bytes that are not UTF-8, not JSON, or not a JSON object.
    """
    if isinstance(row, Mapping):
        return _present(row)
    try:
        text = row.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        file = Path(where.rpartition(":")[0])
        raise DataError(not_utf8(file, error, where, "the line is not UTF-8")) from error
    try:
        value = load_json(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}: {quote(text.strip())}"
        mend = "write each conversation as one JSON object on one line"
        raise DataError(Problem("the line is not JSON", where, found, mend)) from error
    except ValueError as error:
        raise DataError(Problem(str(error), where, mend=LIMIT_MEND)) from error
    if isinstance(value, dict):
        return _present(value)
    if isinstance(value, list) and are_messages(value):
        return {"messages": value}
    mend = 'write {"messages": [...]}'
    raise DataError(Problem("the row is not a JSON object", where, quote(value), mend))


def _present(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Takes not-a-number for null: pandas has no other null in a column of numbers or texts."""
    if any(type(value) is float and value != value for value in row.values()):
        return {name: value for name, value in row.items() if value == value}
    return row
