"""Bad rows: refused with the setting that leaves them out, or left out, counted and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from gptoss_ft.cli import run
from gptoss_ft.data.bad import keep_dropped
from gptoss_ft.data.dataset import PreparedData, check_data, prepare
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.preferences import prepare_pairs
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

VOCABULARY = packaged_vocabulary()
ARGUMENT = "data.on_bad=drop"
BLANK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
NO_FORMAT = {"weather": "rain"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def chat(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"question {number}"}
    return {"messages": [asked, {"role": "assistant", "content": f"answer {number}"}]}


def write(file: Path, rows: Sequence[Any]) -> str:
    """Writes rows as JSON lines; a text is a line as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(file)


def prepared(path: str, on_bad: str = "drop", **keys: Any) -> PreparedData:
    return prepare(DataOptions(path=path, on_bad=on_bad, packing=False, **keys), VOCABULARY)


def kept(data: PreparedData, file: Path) -> list[dict[str, Any]]:
    """Writes the rows that were left out as a run does, and reads them back."""
    keep_dropped(data.dropped, file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


MIXED = [chat(1), BLANK, "{not json", chat(2), NO_FORMAT, BLANK, PAIR, '"a text"', chat(3)]


def test_every_kind_of_bad_row_is_left_out_counted_and_written_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", MIXED)
    data = prepared(path)
    assert len(data.train) == 3 and data.summary.formats == {"chat": 3}
    rows = kept(data, tmp_path / "dropped.jsonl")
    assert [row["where"] for row in rows] == [f"{path}:{line}" for line in (2, 3, 5, 6, 7, 8)]
    assert [row["row"] for row in rows] == [
        *(BLANK, "{not json\n", NO_FORMAT, BLANK, PAIR, '"a text"\n')
    ]
    for row in rows:
        assert row["problems"][0].keys() <= {"what", "where", "found", "fix"}
        assert row["problems"][0]["what"] and row["problems"][0]["fix"]
    assert sorted(data.summary.bad.values()) == [1, 1, 1, 1, 2]
    assert data.summary.first_bad["the line is not JSON"] == f"{path}:3"
    lines = data.summary.lines()
    assert f"dropped 1 bad row: the line is not JSON (first: {path}:3)" in lines
    assert any(line.startswith("dropped 2 bad rows: ") and f"{path}:2)" in line for line in lines)


def test_the_refusal_names_the_setting_once_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1), *[NO_FORMAT] * 30])
    for refuse in (
        lambda: check_data(DataOptions(path=path)),
        lambda: prepared(path, "refuse"),
    ):
        with pytest.raises(DataError) as caught:
            refuse()
        text = str(caught.value)
        assert len(caught.value.problems) == 30
        assert text.count(ARGUMENT) == 1 and ARGUMENT in text.splitlines()[-1]
    check_data(DataOptions(path=path, on_bad="drop"))


def test_it_does_not_where_no_row_would_be_left(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [NO_FORMAT, "{"])
    with pytest.raises(DataError) as refused:
        prepared(path, "refuse")
    assert ARGUMENT not in str(refused.value)
    with pytest.raises(DataError, match="every row is bad") as dropped:
        prepared(path)
    first, *causes = dropped.value.problems
    assert first.where == path and "the line is not JSON" in first.found
    assert {problem.where for problem in causes} == {f"{path}:1", f"{path}:2"}


def test_files_that_cannot_be_read_are_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not all it takes")
    for name, what in (("a.parquet", "not Parquet"), ("b.jsonl", "no such file")):
        with pytest.raises(DataError, match=what):
            prepared(str(tmp_path / name))


def test_the_rows_come_from_the_cache_with_the_places_of_today(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", MIXED)
    first = prepared(path, cache=str(tmp_path / "cache"))
    assert not first.summary.cached
    other = shutil.move(path, tmp_path / "b.jsonl")
    again = prepared(str(other), cache=str(tmp_path / "cache"))
    assert again.summary.cached and again.fingerprint == first.fingerprint
    assert again.summary.bad == first.summary.bad
    rows = kept(again, tmp_path / "dropped.jsonl")
    assert [row["where"] for row in rows] == [f"{other}:{line}" for line in (2, 3, 5, 6, 7, 8)]
    assert all(row["problems"][0]["where"].startswith(str(other)) for row in rows)
    assert again.summary.first_bad["the line is not JSON"] == f"{other}:3"


def test_good_files_leave_nothing_behind(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "a.jsonl", [chat(1)]))
    keep_dropped(data.dropped, tmp_path / "dropped.jsonl")
    assert data.summary.bad == {} and not (tmp_path / "dropped.jsonl").exists()


def test_numbers_in_a_cause_do_not_make_it_another(tmp_path: Path) -> None:
    long = [chat(int("1" * length)) for length in (200, 300)]
    path = write(tmp_path / "a.jsonl", [chat(1), *long])
    data = prepared(path, max_length=120, on_too_long="error")
    assert data.summary.bad == {"the row is too long": 2}
    assert len(kept(data, tmp_path / "dropped.jsonl")) == 2


def test_rows_of_tables_and_odd_texts_are_written_too(tmp_path: Path) -> None:
    half = {"messages": "\ud83d"}  # half of a surrogate pair
    table = pa.table({"weather": ["rain", None], "prompt": [None, "a"], "completion": [None, "b"]})
    parquet.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"text": "\xff"}\n' + json.dumps(chat(1)).encode())
    write(tmp_path / "a.jsonl", [half, chat(1)])
    rows = kept(prepared(str(tmp_path)), tmp_path / "dropped")
    assert [Path(row["where"]).name for row in rows] == [
        *("a.jsonl:1", "b.parquet:1", "bytes.jsonl:1")
    ]
    assert rows[0]["row"] == half and rows[1]["row"]["weather"] == "rain"
    assert rows[2]["row"] == '{"text": "\ufffd"}\n'


def test_processes_find_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", MIXED * 100)
    one, two = (
        prepared(path, workers=workers, cache=str(tmp_path / str(workers))) for workers in (1, 2)
    )
    assert one.summary == two.summary and one.summary.bad["the line is not JSON"] == 100
    assert kept(one, tmp_path / "x") == kept(two, tmp_path / "y")


def test_pairs_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [PAIR, chat(1), {"prompt": "a", "chosen": "b"}])
    data = prepare_pairs(DataOptions(path=path, on_bad="drop"), VOCABULARY)
    assert len(data.train) == 1 and sum(data.summary.bad.values()) == 2
    assert "(first: " in "\n".join(data.summary.lines())
    keep_dropped(data.dropped, tmp_path / "dropped.jsonl")
    assert len((tmp_path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_the_preview_shows_the_good_rows_and_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", MIXED)
    assert run("preview", [f"data.path={path}"]) == 2
    assert capsys.readouterr().err.count(ARGUMENT) == 1
    page = tmp_path / "page.html"
    assert run("preview", [f"data.path={path}", ARGUMENT, f"html={page}"]) == 0
    for text in (capsys.readouterr().out, page.read_text(encoding="utf-8")):
        assert f"dropped 1 bad row: the line is not JSON (first: {path}:3)" in text
        assert "dropped 2 bad rows" in text and "answer 3" in text
    assert run("preview", [f"data.path={write(tmp_path / 'b.jsonl', [NO_FORMAT])}", ARGUMENT]) == 2
    assert f"{tmp_path / 'b.jsonl'}:1" in capsys.readouterr().err
