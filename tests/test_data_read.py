"""Reading JSONL: every broken line is reported with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_ft.data.read import read_jsonl
from gptoss_ft.errors import DataError


def refused(path: Path) -> list[tuple[str, str, str, str]]:
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    return [(p.what, p.where, p.found, p.mend) for p in caught.value.problems]


def test_rows_come_with_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "é"}\r\n\n  \n{"b": "line\u2028separator"}'.encode())
    assert list(read_jsonl(path)) == [(1, {"a": "é"}), (4, {"b": "line\u2028separator"})]


def test_all_broken_lines_are_reported_after_the_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n"text"\n{"a": 2}\n')
    read = []
    with pytest.raises(DataError) as caught:
        for number, _ in read_jsonl(path):
            read.append(number)
    assert read == [1, 6]
    found = [(p.where, p.what) for p in caught.value.problems]
    assert found == [
        (f"{path}:2", "the line is not JSON"),
        (f"{path}:3", "the line is not a JSON object"),
        (f"{path}:4", "the line is not UTF-8"),
        (f"{path}:5", "the line is not a JSON object"),
    ]
    assert caught.value.problems[2].found == "byte 0xff at column 8"
    assert all(problem.mend for problem in caught.value.problems)


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
    assert refused(tmp_path)[0][:3] == ("not a file", str(tmp_path), "a folder with chats.jsonl")
