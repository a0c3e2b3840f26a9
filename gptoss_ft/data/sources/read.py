"""Sources to rows, in chunks: files of every type, folders of them, Hub datasets.

Lines of JSONL stay bytes until a worker decodes them, so that reading is never the bottleneck and
memory does not grow with the file. A row is named `file:number`: the line where it begins in text
files, else its row number, from 1.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from gptoss_ft.data.formats.common import quote
from gptoss_ft.data.formats.json_text import load_json
from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.sources import file_types
from gptoss_ft.data.sources.chunks import RowChunk, chunked
from gptoss_ft.data.sources.file_types import stem_of, type_of
from gptoss_ft.data.sources.files import Found, find_files
from gptoss_ft.data.sources.hub import hub_rows
from gptoss_ft.data.sources.json_files import decode, read_json
from gptoss_ft.data.sources.streams import read_all
from gptoss_ft.data.sources.tables import read_arrow, read_csv, read_excel, read_parquet
from gptoss_ft.errors import DataError, Problem

__all__ = ["Found", "RowChunk", "decode", "find_files", "read_source"]


def read_source(
    source: SourceOptions, hub: bool = False, found: Found | None = None
) -> Iterator[RowChunk]:
    """Reads all rows of a source.

    Args:
        source: what to read.
        hub: whether a dataset may be read from the Hub.
        found: its files, where they have been found before.

    Raises:
        DataError: files that are missing, empty, or broken as a whole; broken rows come with their
            chunk and are found by `decode`.
    """
    found = found or find_files(source, hub)
    notes = tuple(found.notes)
    for chunk in _read(source, found):
        yield replace(chunk, notes=notes + chunk.notes) if notes else chunk
        notes = ()


def _read(source: SourceOptions, found: Found) -> Iterator[RowChunk]:
    if not found.files:
        rows, notes = hub_rows(source)
        for chunk in chunked(source.path, enumerate(rows, start=1)):
            yield replace(chunk, notes=tuple(notes))
            notes = []
    for file in found.files:
        empty = True
        for chunk in _READERS[type_of(file)](file, found.split):
            empty = False
            yield chunk
        if empty:
            mend = "write one conversation per line as a JSON object"
            raise DataError(Problem("the file is empty", str(file), mend=mend))


def _read_text(file: Path, split: str = "") -> Iterator[RowChunk]:
    """Reads a text file as one document."""
    text = read_all(file)
    _refuse_rows(file, text)
    if text.strip():
        yield RowChunk(str(file), [(1, {"text": text})])


def _refuse_rows(file: Path, text: str) -> None:
    """Refuses rows of JSON in a file that is named as a text."""
    first = text.lstrip().partition("\n")[0].strip()
    try:
        is_rows = first.startswith('{"') and isinstance(load_json(first), dict)
    except ValueError:
        return
    if is_rows:
        better = shlex.quote(str(file.with_name(f"{stem_of(file)}.jsonl")))
        mend = f"read them as rows: mv {shlex.quote(str(file))} {better}"
        found = quote(first)
        raise DataError(Problem("the text is rows of JSON, not a document", str(file), found, mend))


_READERS: Mapping[str, Callable[[Path, str], Iterator[RowChunk]]] = MappingProxyType(
    {
        "": read_json,
        file_types.JSON: read_json,
        file_types.CSV: read_csv,
        file_types.TEXT: _read_text,
        file_types.PARQUET: read_parquet,
        file_types.ARROW: read_arrow,
        file_types.EXCEL: read_excel,
    }
)
