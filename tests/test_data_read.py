"""Reading files of every kind: rows with their places, and everything that is broken."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.sources.read import decode, read_source
from gptoss_ft.errors import DataError, Problem


def rows(path: Path, problems: list[Problem] | None = None) -> list[tuple[str, Any]]:
    """`(file:number, row)` of the good rows; without `problems`, a bad row raises."""
    good = []
    for chunk in read_source(SourceOptions(path=str(path))):
        for number, row in chunk.rows:
            where = f"{chunk.path}:{number}"
            try:
                good.append((where, decode(row, where)))
            except DataError as error:
                if problems is None:
                    raise
                problems += error.problems
    return good


def refused(path: Path) -> list[tuple[str, str, str, str]]:
    with pytest.raises(DataError) as caught:
        rows(path)
    return [(p.what, p.where, p.found, p.mend) for p in caught.value.problems]


def test_rows_come_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "é"}\r\n\n  \n{"b": "line\u2028separator"}'.encode())
    assert rows(path) == [(f"{path}:1", {"a": "é"}), (f"{path}:4", {"b": "line\u2028separator"})]


def test_every_broken_line_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n"text"\n{"a": 2}\n')
    problems: list[Problem] = []
    assert [where for where, _ in rows(path, problems)] == [f"{path}:1", f"{path}:6"]
    assert [(p.where, p.what) for p in problems] == [
        (f"{path}:2", "the line is not JSON"),
        (f"{path}:3", "the row is not a JSON object"),
        (f"{path}:4", "the line is not UTF-8"),
        (f"{path}:5", "the row is not a JSON object"),
    ]
    assert problems[2].found == "byte 0xff at column 8"
    assert all(problem.mend for problem in problems)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert [problem[0] for problem in refused(path)] == ["the file is empty"]


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}")
    (tmp_path / "other.txt").write_text("")
    ((what, where, _, mend),) = refused(tmp_path / "chat.jsonl")
    assert (what, where) == ("no such file", str(tmp_path / "chat.jsonl"))
    assert mend == f"did you mean {tmp_path / 'chats.jsonl'}?"
    assert "chats.jsonl" in refused(tmp_path / "zzz")[0][3]


def test_a_missing_folder_and_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("{}")
    assert refused(tmp_path / "no" / "a.jsonl")[0][2] == f"no folder {tmp_path / 'no'}"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "picture.png").write_bytes(b"")
    what = ("the folder holds no data file", str(tmp_path / "empty"), "picture.png")
    assert refused(tmp_path / "empty")[0][:3] == what


ROWS = [{"prompt": 'Olá, "tu"', "completion": "a\nb"}, {"prompt": "c", "completion": "d, e"}]


def test_json_parquet_and_tables_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    for name in ("a.json", "lines.json", "a.parquet", "a.csv", "a.tsv"):
        assert [row for _, row in rows(tmp_path / name)] == ROWS, name
    assert [where.rpartition(":")[2] for where, _ in rows(tmp_path / "a.csv")] == ["2", "4"]
    assert [where.rpartition(":")[2] for where, _ in rows(tmp_path / "a.parquet")] == ["1", "2"]


def test_a_folder_is_read_in_order_with_texts_as_documents(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "note.md").write_text("# Olá\n")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "ignored.png").write_bytes(b"\x00")
    assert [row["text"] for _, row in rows(tmp_path)] == ["first", "# Olá\n"]
    (tmp_path / "z.jsonl").write_text('{"text": "rows"}\n')
    assert [row["text"] for _, row in rows(tmp_path)] == ["rows"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{}", "not JSON"),
        ("a.json", b"[1]", "not a JSON object"),
        ("a.parquet", b"PAR1", "not Parquet"),
        ("a.csv", b"a,b\n1,2,3\n", "more cells than the header"),
        ("a.csv", b"a,b\n\xff,2\n", "not CSV"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.txt", b"  ", "empty"),
    ],
)
def test_files_broken_as_a_whole(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)[0][0]


def test_hub_datasets_are_streamed_and_only_with_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*names: str | None, **settings: Any) -> dict[str, list[dict[str, Any]]]:
        asked.append((names, settings))
        return {"train": [], "test": ROWS}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = SourceOptions(path="someone/chats", split="test")
    with pytest.raises(DataError, match="hub=true"):
        list(read_source(source))
    assert asked == []
    (chunk,) = read_source(source, hub=True)
    assert chunk.rows == list(enumerate(ROWS, start=1))
    assert asked == [(("someone/chats", None), {"streaming": True})]
