"""Validation rows: a source of its own, split by content, rows that are also trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_ft.commands import COMMANDS
from gptoss_ft.config import compose_options
from gptoss_ft.data.dataset import PreparedData, prepare
from gptoss_ft.data.options import DataOptions, SourceOptions
from gptoss_ft.data.preferences import PreferenceData, prepare_pairs, prepare_ratings
from gptoss_ft.data.split import held_out_examples
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

VOCABULARY = packaged_vocabulary()


def chat(number: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"question {number}."}
    return {"messages": [asked, {"role": "assistant", "content": f"answer {number}"}]}


def pair(number: int, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    return {"prompt": f"question {number}.", "chosen": chosen, "rejected": rejected}


def write(file: Path, rows: Sequence[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def prepared(path: str, **keys: Any) -> PreparedData:
    return prepare(DataOptions(path=path, packing=False, **keys), VOCABULARY)


def numbers(rows: Any) -> list[str]:
    texts = [VOCABULARY.decode(ids) for ids in rows]
    return [text.split("question ")[1].split(".")[0] for text in texts]


def sides(data: PreparedData) -> tuple[list[str], list[str]]:
    assert data.validation is not None
    return numbers(data.train["input_ids"]), numbers(data.validation["input_ids"])


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    rows = [chat(i % 20) for i in range(60)]
    data = prepared(write(tmp_path / "a.jsonl", rows), validation_split=0.2, seed=seed)
    trained, held_out = sides(data)
    assert (len(trained), len(held_out)) == (48, 12)
    assert not set(trained) & set(held_out)
    assert data.summary.validation_overlap == 0


def test_rows_that_are_added_leave_the_others_where_they_are(tmp_path: Path) -> None:
    before, after = (
        prepared(write(tmp_path / f"{n}.jsonl", [chat(i) for i in range(n)]), validation_split=0.2)
        for n in (200, 210)
    )
    old, new = set(sides(before)[1]), {n for n in sides(after)[1] if int(n) < 200}
    assert len(old) == 40 and len(old ^ new) <= 10
    shuffled = [chat(i) for i in reversed(range(200))]
    again = prepared(write(tmp_path / "r.jsonl", shuffled), validation_split=0.2)
    assert set(sides(again)[1]) == old, "whatever their order"


GROUPS: list[tuple[list[int], dict[str, Any], int]] = [
    ([1, 1, 1, 1, 2], {"validation_count": 1}, 1),  # the large group does not fit
    ([1, 1, 2, 2, 2], {"validation_count": 1}, 2),  # none fits: the smaller one
    ([1, 1, 1, 2, 2, 2, 3, 4], {"validation_count": 4}, 4),
    ([1, 1, 2, 2, 3, 3], {"validation_count": 3}, 2),
    ([1, 2], {"validation_split": 0.9}, 1),
    (list(range(100)), {"validation_split": 0.25}, 25),
]


@pytest.mark.parametrize(("groups", "keys", "count"), GROUPS)
@pytest.mark.parametrize("seed", range(4))
def test_as_many_are_held_out_as_whole_groups_allow(
    groups: list[int], keys: dict[str, Any], count: int, seed: int
) -> None:
    numbers = np.array(groups, dtype=np.uint64)
    drawn = held_out_examples(numbers, DataOptions(path="x", seed=seed, **keys))
    assert drawn.sum() == count
    assert not set(numbers[drawn]) & set(numbers[~drawn])


def test_examples_that_are_all_the_same_cannot_be_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1)] * 5)
    with pytest.raises(DataError, match="5 conversations, 1 different") as caught:
        prepared(path, validation_split=0.4)
    assert caught.value.problems[0].where == "data.validation_split"


def test_a_million_are_drawn_at_random() -> None:
    digests = np.random.default_rng(0).integers(0, 2**63, 1_000_000).astype(np.uint64)
    options = DataOptions(path="x", validation_split=0.05)
    drawn = held_out_examples(digests, options)
    assert drawn.sum() == 50_000
    for part in (digests[drawn] >> np.uint64(60), np.flatnonzero(drawn) // 125_000):
        assert np.bincount(part.astype(int), minlength=8).min() > 5_800


def test_rows_that_are_also_trained_on_are_counted(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [chat(i) for i in range(6)])
    held_out = write(tmp_path / "b.jsonl", [chat(i) for i in range(4, 9)])
    data = prepared(train, validation_path=held_out)
    assert data.summary.validation_overlap == 2 and len(data.train) == 6
    assert any("2 of 5 validation rows are also trained on" in x for x in data.summary.lines())
    without = prepared(train, validation_path=held_out, duplicates="drop")
    assert sides(without) == (list("0123"), list("45678"))
    assert without.summary.validation_overlap == 0
    (reason,) = without.summary.dropped
    assert "also held out" in reason and without.summary.dropped[reason] == 2


def test_validation_rows_that_are_all_trained_on_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [chat(i) for i in range(6)])
    some = write(tmp_path / "b.jsonl", [chat(i) for i in range(2)])
    for path, drop in ((train, False), (some, True)):
        with pytest.raises(DataError, match="every validation row is also trained on") as caught:
            prepared(train, validation_path=path)
        (problem,) = caught.value.problems
        assert problem.where == "data.validation_path" and path in problem.found
        assert "data.validation_split=0.05" in problem.mend
        assert ("data.duplicates=drop" in problem.mend) == drop
    with pytest.raises(DataError, match="every validation row"):
        prepared(train, validation_path=train, duplicates="drop")
    data = prepared(train, validation=SourceOptions(path=some), duplicates="drop")
    assert sides(data) == (list("2345"), list("01"))


def _pairs(path: str, **keys: Any) -> PreferenceData:
    return prepare_pairs(DataOptions(path=path, packing=False, **keys), VOCABULARY)


def _ratings(path: str, **keys: Any) -> PreferenceData:
    return prepare_ratings(DataOptions(path=path, packing=False, **keys), VOCABULARY, None)


@pytest.mark.parametrize("read", [_pairs, _ratings])
def test_pairs_and_ratings_of_one_prompt_stay_on_one_side(tmp_path: Path, read: Any) -> None:
    rows = [pair(i % 10, f"yes {i}", f"no {i}") for i in range(40)]
    data = read(write(tmp_path / "a.jsonl", rows), validation_split=0.2)
    found = [numbers(data.rows[side.rows]["prompt_ids"]) for side in (data.train, data.validation)]
    assert len(set(found[1])) == 2 and not set(found[0]) & set(found[1])


@pytest.mark.parametrize("read", [_pairs, _ratings])
def test_pairs_and_ratings_that_overlap(tmp_path: Path, read: Any) -> None:
    train = write(tmp_path / "a.jsonl", [pair(i) for i in range(6)])
    held_out = write(tmp_path / "b.jsonl", [pair(i) for i in range(5, 8)])
    data = read(train, validation_path=held_out)
    per_pair = len(data.validation) // 3
    assert data.summary.validation_overlap == per_pair
    assert len(data.train) - len(
        read(train, validation_path=held_out, duplicates="drop").train
    ) == (per_pair)
    with pytest.raises(DataError, match="every validation row is also trained on"):
        read(train, validation_path=train)


def composed(*arguments: str) -> DataOptions:
    (command,) = (command for command in COMMANDS if command.name == "preview")
    options: DataOptions = compose_options(command, arguments).data
    return options


SOURCES: list[tuple[list[str], SourceOptions | None]] = [
    (["data.path=a"], None),
    (["data.path=a", "data.validation_path=b"], SourceOptions(path="b")),
    (
        ["data.path=a", "data.format=chat", "data.validation_path=b"],
        SourceOptions(format="chat", path="b"),
    ),
    (["data.path=a", "data.validation.path=b"], SourceOptions(path="b")),
    (
        ["data.path=a", "data.validation={path: b, format: chat, split: dev}"],
        SourceOptions(format="chat", path="b", split="dev"),
    ),
    (
        ["data.path=a", "data.ignore=[x]", "data.validation.split=test"],
        SourceOptions(ignore=["x"], path="a", split="test"),
    ),
    (
        ["data.path=a", "data.columns={prompt: q}", "data.validation.path=b"],
        SourceOptions(columns={"prompt": "q"}, path="b"),
    ),
    (
        ["data.path=a", "data.columns={prompt: q}", "data.validation={path: b, format: chat}"],
        SourceOptions(format="chat", path="b"),
    ),
    (["data.sources=[{path: a}]", "data.validation.path=b"], SourceOptions(path="b")),
]


@pytest.mark.parametrize(("arguments", "source"), SOURCES)
def test_validation_is_a_source_of_its_own(
    arguments: list[str], source: SourceOptions | None
) -> None:
    options = composed(*arguments)
    assert options.validation_source == source
    assert options.has_validation == (source is not None)
    assert options.problems("data") == []


REFUSED: list[tuple[list[str], str, str]] = [
    (
        ["data.validation_path=b", "data.validation.path=c"],
        "data.validation, data.validation_path",
        "one of",
    ),
    (
        ["data.validation.split=test", "data.validation_split=0.1"],
        "data.validation, data.validation_split",
        "one of",
    ),
    (
        ["data.validation={path: b, weight: 2}"],
        "data.validation.weight",
        "leave data.validation.weight out",
    ),
    (["data.validation.format=chat"], "data.validation.path", "data.validation.split=NAME"),
    (["data.validation={path: b, format: chta}"], "data.validation.format", "chat"),
    (
        ["data.path=", "data.sources=[{path: a}]", "data.validation.split=test"],
        "data.validation.path",
        "data.validation.path=FILE",
    ),
]


@pytest.mark.parametrize(("arguments", "where", "mend"), REFUSED)
def test_contradictions_are_refused(arguments: list[str], where: str, mend: str) -> None:
    own = [] if arguments[0] == "data.path=" else ["data.path=a"]
    (problem,) = composed(*own, *arguments).problems("data")
    assert problem.where == where and mend in problem.mend
