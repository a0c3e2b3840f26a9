"""Files to rows, in chunks: JSONL, JSON, Parquet, CSV, plain text, folders of them, Hub datasets.

Lines of JSONL stay bytes until a worker decodes them, so that reading is never the bottleneck and
memory does not grow with the file. A row is named `file:number`: the line where it begins in text
files, else its row number, from 1.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gptoss_ft.data.formats.common import quote
from gptoss_ft.data.options import SourceOptions
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.validation import close_matches

CHUNK_ROWS = 256
# A chunk is closed early when its rows are long, so that workers stay evenly busy.
CHUNK_BYTES = 4 * 2**20
TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".csv", ".tsv")
LINE_SUFFIXES = (".jsonl", ".ndjson")
SUFFIXES = (*LINE_SUFFIXES, ".json", ".parquet", *TABLE_SUFFIXES, *TEXT_SUFFIXES)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowChunk:
    """Some consecutive rows of one file.

    Attributes:
        path: the file or Hub name, for messages.
        rows: `(number, row)`; a row is a line of JSON as bytes, or a mapping.
        done: bytes of the file that end with this chunk, for progress; 0 where unknown.
    """

    path: str
    rows: list[tuple[int, bytes | Mapping[str, Any]]]
    done: int = 0


def source_files(source: SourceOptions, hub: bool) -> list[Path]:
    """Returns the files of a source, in order; empty for a Hub dataset.

    Raises:
        DataError: nothing is there, a folder holds no file that can be read, or a Hub name without
            permission for the network.
    """
    path = Path(source.path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        files = [file for file in files if file.is_file()]
        if files:
            return files
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "an empty folder"
        mend = f"give a folder with files that end in {', '.join(SUFFIXES)}"
        raise DataError(Problem("the folder holds no data file", str(path), found, mend))
    if path.is_file():
        return [path]
    if hub and source.path.count("/") == 1 and not source.path.startswith((".", "/")):
        return []
    raise DataError(_missing(path))


def read_source(source: SourceOptions, hub: bool = False) -> Iterator[RowChunk]:
    """Reads all rows of a source.

    Raises:
        DataError: files that are missing, empty, or broken as a whole; broken rows come with their
            chunk and are found by `decode`.
    """
    files = source_files(source, hub)
    if not files:
        yield from _chunks(source.path, enumerate(_hub_rows(source), start=1))
    for file in files:
        rows = 0
        for chunk in _read_file(file):
            rows += len(chunk.rows)
            yield chunk
        if not rows:
            mend = "write one conversation per line as a JSON object"
            raise DataError(Problem("the file is empty", str(file), mend=mend))


def decode(row: bytes | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Decodes one row to a mapping.

    Raises:
        DataError: bytes that are not UTF-8, not JSON, or not a JSON object.
    """
    if isinstance(row, Mapping):
        return row
    try:
        text = row.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        found = f"byte 0x{row[error.start]:02x} at column {error.start + 1}"
        mend = "save the file as UTF-8"
        raise DataError(Problem("the line is not UTF-8", where, found, mend)) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}: {quote(text.strip())}"
        mend = "write each conversation as one JSON object on one line"
        raise DataError(Problem("the line is not JSON", where, found, mend)) from error
    if not isinstance(value, dict):
        mend = 'write {"messages": [...]}'
        raise DataError(Problem("the line is not a JSON object", where, quote(value), mend))
    return value


def _read_file(file: Path) -> Iterator[RowChunk]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(file)
    if suffix in TABLE_SUFFIXES:
        return _chunks(str(file), _table_rows(file, "\t" if suffix == ".tsv" else ","))
    if suffix in TEXT_SUFFIXES:
        return _chunks(str(file), _text_rows(file))
    if suffix == ".json" and _starts_with_bracket(file):
        return _chunks(str(file), _array_rows(file))
    return _read_lines(file)


def _read_lines(file: Path) -> Iterator[RowChunk]:
    rows: list[tuple[int, bytes | Mapping[str, Any]]] = []
    size = done = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            done += len(line)
            # A byte order mark is what some editors put before the first line.
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if not line.strip():
                continue
            rows.append((number, line))
            size += len(line)
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield RowChunk(str(file), rows, done)
                rows, size = [], 0
    if rows:
        yield RowChunk(str(file), rows, done)


def _chunks(path: str, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[RowChunk]:
    iterator = iter(rows)
    while part := list(islice(iterator, CHUNK_ROWS)):
        yield RowChunk(path, list(part))


def _starts_with_bracket(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(64).removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")


def _array_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads a JSON array of objects as a whole, which JSONL is not."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        mend = "repair it, or write JSONL, one object per line"
        raise DataError(Problem("the file is not JSON", str(file), str(error), mend)) from error
    bad = [
        Problem("the entry is not a JSON object", f"{file}:{number}", quote(value))
        for number, value in enumerate(values, start=1)
        if not isinstance(value, dict)
    ]
    if bad:
        raise DataError(bad)
    yield from enumerate(values, start=1)


def _table_rows(file: Path, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads the rows of a CSV file with a header; empty cells are absent."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        number = 2
        try:
            for row in reader:
                if None in row:
                    mend = "quote cells that hold the delimiter"
                    what = "the row has more cells than the header"
                    raise DataError(Problem(what, f"{file}:{number}", str(row[None]), mend))
                yield number, {name: cell or None for name, cell in row.items()}
                number = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            where = f"{file}:{number}"
            mend = "save the file as CSV in UTF-8"
            raise DataError(Problem("the file is not CSV", where, str(error), mend)) from error


def _text_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads a text file as one document."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = Problem("the file is not UTF-8", str(file), str(error), "save it as UTF-8")
        raise DataError(problem) from error
    if text.strip():
        yield 1, {"text": text}


def _read_parquet(file: Path) -> Iterator[RowChunk]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        mend = "write it again"
        raise DataError(Problem("the file is not Parquet", str(file), str(error), mend)) from error
    total, size, number = table.metadata.num_rows, file.stat().st_size, 1
    for batch in table.iter_batches(batch_size=CHUNK_ROWS):
        rows = list(enumerate(batch.to_pylist(), start=number))
        number += len(rows)
        yield RowChunk(str(file), rows, size * (number - 1) // max(total, 1))


def _hub_rows(source: SourceOptions) -> Iterator[Mapping[str, Any]]:
    """Streams the rows of a Hub dataset; loading scripts are never run."""
    import datasets

    try:
        stream = datasets.load_dataset(source.path, split=source.split, streaming=True)
    except (OSError, ValueError) as error:
        mend = "check the name, the split and your access, or download it and give the files"
        where = f"{source.path} (split {source.split})"
        raise DataError(
            Problem("the Hub dataset cannot be read", where, str(error), mend)
        ) from error
    yield from stream


def _missing(path: Path) -> Problem:
    folder = path.parent
    if not folder.is_dir():
        mend = "correct the path, or say hub=true for a dataset on the Hub"
        return Problem("no such file", str(path), f"no folder {folder}", mend)
    names = sorted(entry.name for entry in folder.iterdir())
    near = close_matches(path.name, names, cutoff=0.5)
    near = near or [name for name in names if name.endswith(SUFFIXES)][:3]
    mend = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
    return Problem("no such file", str(path), mend=mend or "correct the path")
