"""The formats: bundled files of each, how rows are told apart, and the prompts that TRL finds."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from format_rows import detected, problems
from trl.data_utils import maybe_extract_prompt

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.data.reading import parse
from gptoss_ft.harmony.messages import Conversation, Message, Preference

WHERE = "rows.jsonl:7"
SAMPLES = Path(__file__).parents[2] / "data" / "formats"
FILES = sorted(SAMPLES.glob("*.jsonl"))
USER = {"role": "user", "content": "How warm?"}
ANSWER = {"role": "assistant", "content": "Warm."}
CONVERSATION = Conversation((Message("user", "How warm?"), Message("assistant", "Warm.")))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- the bundled files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_of_a_bundled_file_is_detected_and_read(path: Path) -> None:
    rows = rows_of(path)
    assert 4 <= len(rows) <= 6
    for row in rows:
        assert detected(row) == ("text" if path.stem == "harmony" else path.stem)
        assert parse(row, WHERE, path.stem)


def test_there_is_a_bundled_file_of_every_format() -> None:
    assert {path.stem for path in FILES} == set(FORMATS)


def test_the_csv_file_says_what_the_jsonl_file_says() -> None:
    with (SAMPLES / "alpaca.csv").open(encoding="utf-8", newline="") as file:
        read = [parse(row, WHERE) for row in csv.DictReader(file)]
    rows = rows_of(SAMPLES / "alpaca.jsonl")[: len(read)]
    assert read == [parse(row, WHERE) for row in rows] and read


def in_arrow(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows in groups that Arrow can hold in one table, read back from there."""
    groups: list[list[dict[str, Any]]] = []
    for row in rows:
        for group in groups:
            try:
                pa.array([*group, row])
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                continue
            group.append(row)
            break
        else:
            groups.append([row])
    return [pa.array(group).to_pylist() for group in groups]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_read_the_same_through_arrow_which_fills_in_nulls(path: Path) -> None:
    rows = rows_of(path)
    read = [row for group in in_arrow(rows) for row in group]
    assert len(read) == len(rows)
    if path.stem in ("chat", "responses"):
        assert '": null' in json.dumps(read)
    examples = [parse(row, WHERE, path.stem) for row in read]
    for row in rows:
        assert parse(row, WHERE, path.stem) in examples
        examples.remove(parse(row, WHERE, path.stem))


def test_the_rows_shown_in_the_readme_are_those_of_the_files() -> None:
    section = (SAMPLES.parent / "README.md").read_text(encoding="utf-8").split("## The formats")[1]
    compared = set()
    for part in section.split("\n### ")[1:]:
        title = part.split("\n")[0]
        name, lines = title.split("`")[1], [int(n) for n in re.findall(r"\d+", title)]
        rows = rows_of(SAMPLES / f"{name}.jsonl")
        shown = re.findall(r"```json\n(.*?)```", part, re.DOTALL)
        for text, number in zip(shown, lines, strict=True):
            if "…" not in text:
                assert json.loads(text) == rows[number - 1], title
                compared.add(name)
    assert set(FORMATS) - compared == {"sharegpt", "responses", "harmony"}


def test_the_implicit_prompt_is_trls() -> None:
    """Where only the last answers differ, TRL finds the same prompt."""
    row: dict[str, Any]
    for row in rows_of(SAMPLES / "trl_preference.jsonl"):
        if "prompt" in row:
            continue
        read = parse(row, WHERE)
        assert isinstance(read, Preference)
        theirs = maybe_extract_prompt(row)
        assert [m.content for m in read.prompt.messages] == [m["content"] for m in theirs["prompt"]]
        assert [m.content for m in read.chosen] == [m["content"] for m in theirs["chosen"]]
        assert [m.content for m in read.rejected] == [m["content"] for m in theirs["rejected"]]


# --- detection


def test_the_table_of_detection_holds_for_bare_columns() -> None:
    found = {
        columns: detected({column: "x" for column in columns.split()})
        for columns in (
            "messages",
            "input preferred_output non_preferred_output",
            "prompt completion",
            "prompt completion label",
            "chosen rejected",
            "prompt chosen rejected",
            "instruction output",
            "instruction input output",
            "conversations",
            "items",
            "text",
            "messages text",
            "instruction output text",
            "messages prompt",
            "messages chosen rejected",
            "messages conversations",
            "input",
            "input output",
            "prompt",
            "chosen",
            "",
        )
    }
    assert found == {
        "messages": "chat",
        "input preferred_output non_preferred_output": "openai_preference",
        "prompt completion": "prompt_completion",
        "prompt completion label": "kto",
        "chosen rejected": "trl_preference",
        "prompt chosen rejected": "trl_preference",
        "instruction output": "alpaca",
        "instruction input output": "alpaca",
        "conversations": "sharegpt",
        "items": "responses",
        "text": "text",
        "messages text": "chat",
        "instruction output text": "alpaca",
        "messages prompt": "chat",
        "messages chosen rejected": "trl_preference",
        "messages conversations": "chat",
        "input": None,
        "input output": "prompt_completion",
        "prompt": None,
        "chosen": None,
        "": None,
    }
    assert detected({"input": [], "output": "x"}) == detected({"output": []}) == "responses"
    assert detected({"instruction": "a", "input": "[1]", "output": "b"}) == "alpaca"


def test_columns_that_are_null_do_not_count() -> None:
    row = dict.fromkeys(("messages", "chosen", "rejected", "label", "text")) | {
        "prompt": "a",
        "completion": "b",
    }
    assert detected(row) == "prompt_completion"


def test_a_row_that_fits_no_format_is_told_how_to_be_read() -> None:
    advice = {
        ("prompt", "chosn", "rejected"): "'data.columns={chosen: chosn}'",
        ("mesages",): "'data.columns={messages: mesages}'",
        ("said", "answered"): "'data.columns={prompt: said, completion: answered}'",
        ("zzz",): "'data.columns={text: zzz}'",
    }
    for columns, argument in advice.items():
        ((what, _, mend),) = problems({name: f"{name} is text" for name in columns})
        assert what == "the row fits no format" and argument in mend
    assert problems({})[0][0] == "the row fits no format"


def test_of_two_formats_one_is_chosen_by_what_it_would_lose() -> None:
    """Messages beside a pair are read as its prompt; a second prompt is one too many."""
    row = {"messages": [USER], "chosen": "a", "rejected": "b", "prompt": "c"}
    ((what, where, _),) = problems(row)
    assert (what, where) == ("this column carries meaning that is not read: `prompt`", "prompt")
    whole = {"messages": [USER, ANSWER], "note": "a"}
    assert parse(whole, WHERE, "chat") == CONVERSATION
