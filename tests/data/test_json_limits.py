"""JSON that Python cannot hold: an error of its row, wherever the JSON stands."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_ft.data.formats.json_text import MAX_DEPTH, load_json
from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.reading import parse
from gptoss_ft.data.rows import read_rows
from gptoss_ft.errors import DataError, Problem

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
DIGITS = "9" * 5000
BAD = {
    "digits": f'{{"messages": {DIGITS}}}',
    "digits inside": f'{{"messages": [], "score": -{DIGITS}}}',
    "nested": f'{{"messages": {"[" * 300}{"]" * 300}}}',
    "nested objects": '{"messages": ' + '{"a": ' * 150 + "1" + "}" * 150 + "}",
    "nested for ever": f'{{"messages": {"[" * 100_000}{"]" * 100_000}}}',
}
WHAT = {name: "digits" if name.startswith("digits") else "nested" for name in BAD}


def problems(path: Path) -> list[Problem]:
    found: list[Problem] = []
    try:
        list(read_rows(SourceOptions(path=str(path)), lambda bad: found.extend(bad.problems)))
    except DataError as error:
        found += error.problems
    return found


@pytest.mark.parametrize("name", BAD)
def test_a_line_beyond_the_limits_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    for before in (f"{GOOD}\n{GOOD}\n", ""):
        path.write_text(f"{before}{BAD[name]}\n{GOOD}\n")
        (problem,) = problems(path)
        assert problem.where == f"{path}:{before.count(chr(10)) + 1}"
        assert WHAT[name] in problem.what and problem.mend


@pytest.mark.parametrize("name", BAD)
def test_an_entry_of_an_array_beyond_the_limits_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"[\n{GOOD},\n{BAD[name]}]")
    (problem,) = problems(path)
    assert problem.where == f"{path}:2" and WHAT[name] in problem.what
    path.write_text(json.dumps(json.loads(GOOD), indent=1) + "\n" + BAD[name])
    (problem,) = problems(path)
    assert problem.where == f"{path}:13" and WHAT[name] in problem.what


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_json_in_a_cell_beyond_the_limits_is_refused(
    tmp_path: Path, name: str, suffix: str
) -> None:
    cell = BAD[name].partition(": ")[2].removesuffix("}")
    if name == "digits inside":
        cell = f"[{cell.rpartition(' ')[2]}]"
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        quoted = cell.replace('"', '""')
        path.write_text(f'messages\n"{quoted}"\n')
    else:
        pq.write_table(pa.table({"messages": [cell]}), path)
    found = problems(path)
    assert found and all(
        p.where.startswith(f"{path}:{2 if suffix == '.csv' else 1}") for p in found
    )


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(load_json(text)) == text
    flat = "[" + ",".join(["[]"] * 1000) + "]"
    assert load_json(flat) == [[]] * 1000
    with pytest.raises(ValueError, match="nested more than"):
        load_json(f"[{text}]")


@pytest.mark.parametrize("weight", ["1e400", "9" * 400, "-Infinity", "NaN"])
def test_numbers_beyond_those_of_python_are_refused(weight: str) -> None:
    row = json.loads(GOOD.replace('"content": "b"', f'"content": "b", "weight": {weight}'))
    with pytest.raises(DataError, match="the weight is out of range"):
        parse(row, "a:1")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_of_a_surrogate_pair_is_refused_and_can_be_printed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [GOOD.replace('"b"', r'"b\ud83d"'), GOOD.replace('"role": "user"', r'"role": "\udcff"')]
    path.write_text("\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]")
    found = problems(path)
    assert {problem.where.partition(" ")[0] for problem in found} == {f"{path}:1", f"{path}:2"}
    for problem in found:
        assert str(problem).encode()
