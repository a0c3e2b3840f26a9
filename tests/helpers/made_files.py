"""Files that are written rather than kept: packed, binary, or in another encoding."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

ROW = {"prompt": "Sea?", "completion": "Wet."}
OTHER = {"prompt": "Sky?", "completion": "Blue."}
TABLE = pa.Table.from_pylist([ROW])
LINE = f"{json.dumps(ROW)}\n".encode()


def _packed(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(LINE))
    (folder / "b.jsonl.zst").write_bytes(pa.compress(LINE, codec="zstd", asbytes=True))
    (folder / "c.jsonl.bz2").write_bytes(bz2.compress(LINE))
    (folder / "d.jsonl.xz").write_bytes(lzma.compress(LINE))


def _parquet(folder: Path) -> None:
    pq.write_table(TABLE, folder / "train-00000-of-00001.parquet")


def _arrow(folder: Path) -> None:
    with pa.ipc.new_stream(str(folder / "a.arrow"), TABLE.schema) as stream:
        stream.write_table(TABLE)
    feather.write_feather(TABLE, str(folder / "b.feather"))


def _saved(folder: Path) -> None:
    splits = {
        split: datasets.Dataset(pa.Table.from_pylist([row]))
        for split, row in (("train", ROW), ("test", OTHER))
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder))


def _excel(folder: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(list(ROW))
    book.active.append(list(ROW.values()))
    book.save(folder / "rows.xlsx")


def _latin(folder: Path) -> None:
    text = json.dumps({"prompt": "Maré?", "completion": "Alta."}, ensure_ascii=False)
    (folder / "rows.jsonl").write_bytes(text.encode("latin-1"))


def _deep(folder: Path) -> None:
    nested = LINE[:-2] + b', "metadata": ' + b"[" * 700 + b"]" * 700 + b"}\n"
    number = LINE[:-2] + b', "metadata": ' + b"9" * 5000 + b"}\n"
    (folder / "deep.jsonl").write_bytes(LINE + nested + number)


MADE: dict[str, Callable[[Path], None]] = {
    "packed": _packed,
    "parquet": _parquet,
    "arrow": _arrow,
    "saved": _saved,
    "excel": _excel,
    "latin": _latin,
    "deep": _deep,
}
