"""Types of files: the same rows out of every one of them, and good advice about the others."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.sources.read import decode, read_source
from gptoss_ft.errors import DataError, MissingDependencyError, Problem

ROWS = [{"prompt": "Olá", "completion": "é\nb"}, {"prompt": "c", "completion": "d, e"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def rows(path: Path, split: str = "") -> list[Any]:
    chunks = read_source(SourceOptions(path=str(path), split=split))
    return [decode(row, f"{chunk.path}:{number}") for chunk in chunks for number, row in chunk.rows]


def numbers(path: Path) -> list[int]:
    return [
        number for chunk in read_source(SourceOptions(path=str(path))) for number, _ in chunk.rows
    ]


def notes(path: Path, split: str = "") -> list[str]:
    return [
        note
        for chunk in read_source(SourceOptions(path=str(path), split=split))
        for note in chunk.notes
    ]


def refused(path: Path, split: str = "") -> Problem:
    with pytest.raises(DataError) as caught:
        rows(path, split)
    return caught.value.problems[0]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_packed_texts_are_unpacked_on_the_way(tmp_path: Path, name: str, suffix: str) -> None:
    contents = {
        "a.jsonl": LINES,
        "a.json": json.dumps(ROWS).encode(),
        "a.csv": 'prompt,completion\nOlá,"é\nb"\nc,"d, e"\n'.encode(),
        "a.txt": "Olá".encode(),
    }
    path = written(tmp_path / f"{name}.{suffix}", PACK[suffix](contents[name]))
    assert rows(path) == ([{"text": "Olá"}] if name == "a.txt" else ROWS)
    assert rows(tmp_path) == rows(path)


@pytest.mark.parametrize("suffix", PACK)
def test_several_packed_parts_make_a_file_and_half_a_part_none(tmp_path: Path, suffix: str) -> None:
    part = PACK[suffix](LINES)
    path = written(tmp_path / f"a.jsonl.{suffix}", part + part)
    assert rows(path) == ROWS * 2
    chunks = list(read_source(SourceOptions(path=str(path))))
    assert chunks[-1].done == path.stat().st_size
    for broken in (part[: len(part) // 2], b"not packed at all, but as long as that"):
        problem = refused(written(path, broken))
        assert problem.what == f"the file is not a whole .{suffix} file"


def test_arrow_files_of_both_kinds(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS * 200)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as whole:
        whole.write_table(table)
    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"))
    for name in ("stream.arrow", "file.arrow", "a.feather"):
        assert rows(tmp_path / name) == ROWS * 200, name
        assert numbers(tmp_path / name) == list(range(1, 401)), name
    assert refused(written(tmp_path / "bad.arrow", b"ARROW1 no")).what == "the file is not Arrow"


PRETTY = json.dumps(ROWS[0], indent=2)


@pytest.mark.parametrize(
    ("name", "content", "expected", "places"),
    [
        ("a.json", PRETTY, ROWS[:1], [1]),
        ("a.json", "\n" + PRETTY + "\n" + json.dumps(ROWS[1], indent=2), ROWS, [2, 6]),
        ("a.jsonl", PRETTY + "\n\n" + json.dumps(ROWS[1], indent=2), ROWS, [1, 6]),
        ("a.json", json.dumps(ROWS[0]), ROWS[:1], [1]),
        ("a.json", LINES, ROWS, [1, 2]),
        ("a.jsonl", json.dumps(ROWS), ROWS, [1, 2]),
        ("a.jsonl", json.dumps(ROWS, indent=1), ROWS, [1, 2]),
        ("a.json", json.dumps({"train": ROWS}, indent=1), ROWS, [1, 2]),
        ("a.json", json.dumps({"data": ROWS, "version": "1.0"}), ROWS, [1, 2]),
        ("a.json", json.dumps({"type": "text2text", "instances": ROWS}), ROWS, [1, 2]),
        ("a", LINES, ROWS, [1, 2]),
    ],
)
def test_json_in_every_layout(
    tmp_path: Path, name: str, content: str | bytes, expected: list[Any], places: list[int]
) -> None:
    path = written(tmp_path / name, content)
    assert rows(path) == expected
    assert numbers(path) == places


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TURNS = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"conversations": [{"from": "human", "value": "a"}], "source": "b"},
        {"conversations": TURNS, "source": "b"},
        {"conversation": TURNS},
        {"segments": [{"label": True, "text": "a"}]},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"data": MESSAGES},
        {"data": TURNS, "system": "Be kind."},
        {"items": [{"role": "user", "content": "a"}, {"type": "reasoning", "summary": []}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_with_lists_of_turns_is_a_row(
    tmp_path: Path, row: dict[str, Any], indent: int | None
) -> None:
    assert rows(written(tmp_path / "a.json", json.dumps(row, indent=indent))) == [row]


def test_an_object_in_a_file_of_lines_is_a_row(tmp_path: Path) -> None:
    row = {"data": ROWS}
    assert rows(written(tmp_path / "a.jsonl", json.dumps(row))) == [row]


def test_lists_of_messages_are_rows(tmp_path: Path) -> None:
    lines = written(tmp_path / "a.jsonl", f"{json.dumps(MESSAGES)}\n" * 2)
    array = written(tmp_path / "b.json", json.dumps([MESSAGES, MESSAGES]))
    assert rows(lines) == rows(array) == [{"messages": MESSAGES}] * 2


def test_splits_inside_a_json_file(tmp_path: Path) -> None:
    value = {"train": ROWS[:1], "test": ROWS[1:], "license": "mit"}
    path = written(tmp_path / "data.json", json.dumps(value))
    assert rows(path) == ROWS[:1] and rows(path, "test") == ROWS[1:]
    assert rows(tmp_path, "test") == ROWS[1:]
    assert notes(path) == [
        "splits not read, only train: test",
        "keys of data.json beside its rows not read: license",
    ]
    assert refused(path, "dev").mend.startswith("say data.split=train or data.split=test")
    two = written(tmp_path / "two.json", json.dumps({"data": ROWS, "examples": ROWS[:1]}))
    assert refused(two).mend.startswith("say data.split=data or data.split=examples")
    assert rows(two, "examples") == ROWS[:1]
    other = written(tmp_path / "other.json", json.dumps({"mine": ROWS, "system": "a"}))
    assert rows(other, "mine") == ROWS
    held_out = written(tmp_path / "held.json", json.dumps({"test": ROWS}))
    assert refused(held_out).what == "there is no train split"


@pytest.mark.parametrize("orient", ["columns", "split", "index"])
def test_json_as_pandas_writes_it(tmp_path: Path, orient: str) -> None:
    columns = {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}
    value = {
        "columns": columns,
        "split": {
            "columns": list(ROWS[0]),
            "index": [0, 1],
            "data": [list(r.values()) for r in ROWS],
        },
        "index": {str(i): row for i, row in enumerate(ROWS)},
    }[orient]
    assert rows(written(tmp_path / "a.json", json.dumps(value))) == ROWS


def test_columns_are_refused_with_a_command_that_turns_them(tmp_path: Path) -> None:
    path = tmp_path / "a b.json"
    written(path, json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))
    problem = refused(path)
    assert problem.what == "the file holds columns, not rows"
    command = problem.mend.replace("python -c", f"{shlex.quote(sys.executable)} -c")
    subprocess.run(command, shell=True, check=True)
    assert rows(tmp_path / "a b.rows.jsonl") == ROWS


@pytest.mark.parametrize(
    ("content", "what", "where"),
    [
        ('{"a": 1}\n{"a": ', "the line is not JSON", ":2"),
        ('{\n "a": 1\n}\n{\n "a" 1\n}', "the file is not JSON", ":5"),
        ('[{"a": 1},\n {"a" 2}]', "the file is not JSON", ":2"),
        ('[{"a": 1}', "the file is not JSON", ":1"),
        ('[{"a": 1}]\n2]', "the row is not a JSON object", ":1"),
        ('[{"a": 1}] 2', "the file is not JSON", ":1"),
        ('[{"a": 1}, 2]', "the row is not a JSON object", ":2"),
    ],
)
def test_broken_json_is_named_with_its_line(
    tmp_path: Path, content: str, what: str, where: str
) -> None:
    path = written(tmp_path / "a.json", content)
    problem = refused(path)
    assert (problem.what, problem.where) == (what, f"{path}{where}")
    assert problem.mend


def test_a_first_line_that_is_cut_off_leaves_the_others(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", b'{"prompt": \n' + LINES)
    assert numbers(path) == [1, 2, 3]
    assert refused(path).where == f"{path}:1"


@pytest.mark.parametrize("delimiter", [";", "\t", "|", ","])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_tables_with_other_delimiters(tmp_path: Path, name: str, delimiter: str) -> None:
    with (tmp_path / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    assert rows(tmp_path / name) == ROWS


def test_tables_with_long_cells_and_columns_without_a_name(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "a" * 300_000
    path = written(tmp_path / "a.csv", f'\ufeff,text,\n0,"{long}",x\n\n1,"b\nc",\n')
    expected = [
        {"__index_level_0__": "0", "text": long, "(column 3)": "x"},
        {"__index_level_0__": "1", "text": "b\nc", "(column 3)": None},
    ]
    assert rows(path) == expected
    assert numbers(path) == [2, 4]
    assert csv.field_size_limit() == limit
    problem = refused(written(path, "text,b,text\n1,2,3\n"))
    assert (problem.what, problem.found) == ("two columns have the same name", "text")


def book(path: Path, **sheets: list[list[Any]]) -> Path:
    made = openpyxl.Workbook()
    made.remove(made.active)
    for name, cells in sheets.items():
        sheet = made.create_sheet(name)
        for row in cells:
            sheet.append(row)
    made.save(path)
    return path


TABLE = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]


def test_excel_sheets(tmp_path: Path) -> None:
    path = book(tmp_path / "a.xlsx", Sheet1=[*TABLE, [None, None], ["e", None, "f"]], Empty=[])
    assert rows(path) == [*ROWS, {"prompt": "e", "(column 3)": "f"}]
    assert numbers(path) == [2, 3, 5]
    two = book(tmp_path / "two.xlsx", train=TABLE, test=TABLE[:2])
    assert rows(two) == ROWS and rows(two, "test") == ROWS[:1]
    assert notes(two) == ["sheets of two.xlsx not read, only train: test"]
    loose = book(tmp_path / "loose.xlsx", A=TABLE, B=TABLE)
    assert "data.split=A or data.split=B or data.split=A+B" in refused(loose).mend
    assert rows(loose, "A+B") == ROWS * 2


def test_excel_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = written(tmp_path / "a.xlsx", b"PK\3\4 and no more")
    assert refused(broken).what == "the file is not a whole Excel workbook"
    cut = book(tmp_path / "cut.xlsx", Sheet=[["text"], ["a"], ["b" * 32_767]])
    problem = refused(cut)
    assert "to which Excel cuts" in problem.what and problem.where == f"{cut}:Sheet:3"
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "gptoss-ft\[xlsx\]"'):
        rows(cut)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_other_encodings_are_named_with_the_command(
    tmp_path: Path, name: str, encoding: str
) -> None:
    texts = {"a.csv": "prompt,completion\nOlá,b\n", "a.txt": "Olá, mar."}
    text = texts.get(name, '{"prompt": "Olá"}')
    path = written(tmp_path / name, text.encode(encoding))
    problem = refused(path)
    command = problem.mend.partition(": ")[2]
    subprocess.run(command, shell=True, check=True)
    better = tmp_path / f"a.utf8{path.suffix}"
    assert better.read_text(encoding="utf-8-sig") == text
    assert next(iter(rows(better)[0].values())) in ("Olá", text)


def test_text_of_the_east_is_not_taken_for_western(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"prompt": "你好世界今天天气很好"}'.encode("gb18030"))
    assert "iconv -f GB18030" in refused(path).mend


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.pkl", "opening it could run code"),
        ("a.pt", "opening it could run code"),
        ("a.zip", "unpack it"),
        ("a.tar.gz", "unpack it"),
        ("a.parquet.gz", "only text files are read through .gz"),
        ("a.xls", "save it as .xlsx"),
        ("a.log", ".jsonl, .ndjson"),
        ("a", ".jsonl, .ndjson"),
    ],
)
def test_files_of_other_types_are_refused_with_advice(
    tmp_path: Path, name: str, advice: str
) -> None:
    path = written(tmp_path / name, b"\x80\x02 whatever")
    assert advice in refused(path).mend
    assert refused(tmp_path).what == "the folder holds no data file"
    assert advice in refused(tmp_path).mend


def test_nested_parquet_and_nulls_that_pandas_writes(tmp_path: Path) -> None:
    given = [{"messages": MESSAGES, "score": float("nan")}, {"messages": MESSAGES, "score": 1.0}]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "a.parquet")
    written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in given))
    for name in ("a.parquet", "a.jsonl"):
        first, second = rows(tmp_path / name)
        assert first == {"messages": MESSAGES} and second == given[1]


@pytest.mark.parametrize(
    ("name", "content", "better"),
    [
        ("a.jsonl", gzip.compress(LINES, mtime=0), "a.jsonl.gz"),
        ("a.csv", PACK["zst"](LINES), "a.csv.zst"),
        ("a.txt", LINES, "a.jsonl"),
    ],
    ids=["gzip", "zstd", "json"],
)
def test_the_advice_about_a_wrong_name_reads_the_file(
    tmp_path: Path, name: str, content: bytes, better: str
) -> None:
    mend = refused(written(tmp_path / name, content)).mend
    subprocess.run(["bash", "-c", mend.partition(": ")[2]], check=True)
    assert [path.name for path in tmp_path.iterdir()] == [better]
    if not better.startswith("a.csv"):
        assert rows(tmp_path) == ROWS
