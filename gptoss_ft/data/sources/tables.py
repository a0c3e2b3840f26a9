"""Tables to rows: CSV, Excel, Parquet, Arrow."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptoss_ft.data.sources.chunks import CHUNK_ROWS, RowChunk, chunked
from gptoss_ft.data.sources.splits import choose_splits, others_note
from gptoss_ft.data.sources.streams import not_utf8, opened
from gptoss_ft.errors import DataError, MissingDependencyError, Problem

_DELIMITERS = ",\t;|"
# A conversation in a cell may be long; the reader's own limit is 128 KiB.
_LONGEST_CELL = 2**31 - 1
# What Excel cuts a cell's text to, without a word.
_EXCEL_CELL = 32_767


def read_csv(file: Path, split: str = "") -> Iterator[RowChunk]:
    """Reads a table of separated values with a header, compressed or not."""
    return chunked(str(file), _csv_rows(file, "\t" if ".tsv" in file.suffixes else ","))


def _csv_rows(file: Path, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads the rows of a CSV file; empty cells are absent."""
    with opened(file) as source, _long_cells():
        lines = io.TextIOWrapper(source.stream, encoding="utf-8", newline="")
        number = 1
        try:
            header = lines.readline()
            reader = csv.reader(_joined(header, lines), delimiter=_delimiter(header, delimiter))
            names = _column_names(next(reader, []), f"{file}:1")
            number = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield number, _csv_row(names, cells, f"{file}:{number}")
                number = reader.line_num + 1
        except csv.Error as error:
            what, mend = "the file is not CSV", "save the file as CSV in UTF-8"
            raise DataError(Problem(what, f"{file}:{number}", str(error), mend)) from error
        except UnicodeDecodeError as error:
            where, what = f"{file}:{number}", "the file is not CSV in UTF-8"
            raise DataError(not_utf8(file, error, where, what)) from error


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str, usual: str) -> str:
    """Returns what separates the columns: the usual character, unless the header has none of it."""
    if usual in header:
        return usual
    return max(_DELIMITERS, key=header.count) if any(c in header for c in _DELIMITERS) else usual


def _column_names(names: Sequence[str], where: str) -> list[str]:
    """Checks a header and names the columns that have no name: of pandas' index, the first one."""
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        what, mend = "two columns have the same name", "rename one of them in the header"
        raise DataError(Problem(what, where, ", ".join(twice), mend))
    named = [name or f"(column {place})" for place, name in enumerate(names, start=1)]
    if named and (not names[0] or names[0] == "Unnamed: 0"):
        named[0] = "__index_level_0__"
    return named


def _csv_row(names: Sequence[str], cells: Sequence[str], where: str) -> Mapping[str, Any]:
    if len(cells) > len(names):
        mend = "quote cells that hold the delimiter"
        what = "the row has more cells than the header"
        raise DataError(Problem(what, where, str(cells[len(names) :]), mend))
    return {name: cell or None for name, cell in zip(names, cells, strict=False)}


def read_excel(file: Path, split: str = "") -> Iterator[RowChunk]:
    """Reads one sheet of an Excel workbook, its first row as the header."""
    try:
        import openpyxl
    except ImportError as error:
        mend = 'pip install "gptoss-ft[xlsx]", or save the sheet as CSV in UTF-8'
        what = "reading .xlsx files takes an extra package"
        raise MissingDependencyError(Problem(what, str(file), "no openpyxl", mend)) from error
    from zipfile import BadZipFile

    try:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (BadZipFile, KeyError, ValueError, OSError) as error:
        what = "the file is not a whole Excel workbook"
        mend = "save it again as .xlsx, or as CSV in UTF-8"
        raise DataError(Problem(what, str(file), str(error), mend)) from error
    sheets = {sheet.title: sheet for sheet in book.worksheets if _has_rows(sheet)}
    notes: list[str] = []
    if sheets:
        chosen = list(sheets) if len(sheets) == 1 and not split else None
        chosen = chosen or choose_splits(list(sheets), split, f"{file}, by its sheets")
        notes = others_note(sheets, chosen, f"sheets of {file.name}")
        rows = (row for name in chosen for row in _sheet_rows(sheets[name], f"{file}:{name}"))
        for chunk in chunked(str(file), rows):
            yield RowChunk(chunk.path, chunk.rows, notes=tuple(notes))
            notes = []
    book.close()


def _has_rows(sheet: Any) -> bool:
    return any(any(cell is not None for cell in row) for row in sheet.values)


def _sheet_rows(sheet: Any, where: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    names: list[str] | None = None
    for number, cells in enumerate(sheet.values, start=1):
        if all(cell is None for cell in cells):
            continue
        if names is None:
            names = ["" if cell is None else str(cell) for cell in cells]
            names = _column_names(names, f"{where}:{number}")
            continue
        cut = [name for name, cell in zip(names, cells, strict=False) if _is_cut(cell)]
        if cut:
            what = f"a cell holds {_EXCEL_CELL:,} characters, to which Excel cuts longer texts"
            mend = "export the table as JSONL or CSV from where it came from"
            raise DataError(Problem(what, f"{where}:{number}", ", ".join(cut), mend))
        yield (
            number,
            {name: cell for name, cell in zip(names, cells, strict=False) if cell is not None},
        )


def _is_cut(cell: Any) -> bool:
    return isinstance(cell, str) and len(cell) == _EXCEL_CELL


def read_parquet(file: Path, split: str = "") -> Iterator[RowChunk]:
    """Reads a Parquet file, a batch at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        total, size, number = table.metadata.num_rows, file.stat().st_size, 1
        for batch in table.iter_batches(batch_size=CHUNK_ROWS):
            rows = list(enumerate(batch.to_pylist(), start=number))
            number += len(rows)
            yield RowChunk(str(file), rows, size * (number - 1) // max(total, 1))
    except (pyarrow.ArrowException, OSError) as error:
        mend = "download or write it again"
        raise DataError(Problem("the file is not Parquet", str(file), str(error), mend)) from error


def read_arrow(file: Path, split: str = "") -> Iterator[RowChunk]:
    """Reads an Arrow file of either kind: a stream, as `datasets` writes it, or a file."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source:
            number = 1
            for batch in _arrow_batches(source):
                for start in range(0, batch.num_rows, CHUNK_ROWS):
                    part = batch.slice(start, CHUNK_ROWS).to_pylist()
                    yield RowChunk(str(file), list(enumerate(part, start=number)))
                    number += len(part)
    except (pyarrow.ArrowException, OSError) as error:
        mend = "write it again"
        what = "the file is not Arrow"
        raise DataError(Problem(what, str(file), str(error), mend)) from error


def _arrow_batches(source: Any) -> Iterator[Any]:
    import pyarrow

    if source.read(6) == b"ARROW1":
        table = pyarrow.ipc.open_file(source)
        yield from map(table.get_batch, range(table.num_record_batches))
        return
    source.seek(0)
    yield from pyarrow.ipc.open_stream(source)
