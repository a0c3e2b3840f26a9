"""Pairs and ratings as rows: shared prompts, weights and channels, what is dropped or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import openai_harmony as oh
import pytest
from harmony_oracle import harmony_encoding, oracle_messages, render_ids

from gptoss_ft.data import pack
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.pairs import CHANNELS
from gptoss_ft.data.preferences import (
    Groups,
    PreferenceData,
    partners,
    prepare_pairs,
    prepare_ratings,
    write_rows,
)
from gptoss_ft.data.reading import parse
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Preference
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.vocabulary import END, RETURN, packaged_vocabulary

__all__ = ["harmony_encoding"]

VOCABULARY = packaged_vocabulary()
WEIGHTS = {"analysis": 0.0, "tool_call": 2.0}


def said(content: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content, **keys}]


def pair(number: int, chosen: str = "yes", rejected: str = "no", **keys: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"question {number}"}]
    return {"prompt": asked, "chosen": said(chosen), "rejected": said(rejected), **keys}


CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "look"}}]
LOOP = [
    *said("", thinking="look first", tool_calls=[CALL]),
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    *said("It is 42.", thinking="found"),
]
RICH = {
    "prompt": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        *said("Wait.", thinking="not yet"),
        {"role": "user", "content": "And now?"},
    ],
    "chosen": LOOP,
    "rejected": said("No idea.", thinking="guess"),
    "tools": TOOLS,
}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepared(tmp_path: Path, rows: Sequence[Any], **keys: Any) -> PreferenceData:
    path = write(tmp_path / "rows.jsonl", rows)
    return prepare_pairs(DataOptions(path, **{"packing": False, **keys}), VOCABULARY)


def rated(
    tmp_path: Path, rows: Sequence[Any], groups: Groups | None = None, **keys: Any
) -> PreferenceData:
    path = write(tmp_path / "rows.jsonl", rows)
    return prepare_ratings(DataOptions(path, packing=False, **keys), VOCABULARY, groups)


def written(data: PreferenceData, tmp_path: Path) -> datasets.Dataset:
    return write_rows(data, data.train, {}, tmp_path / "out" / "train.arrow")


def test_both_sides_are_what_harmony_renders_behind_one_prompt(
    tmp_path: Path, harmony_encoding: oh.HarmonyEncoding
) -> None:
    (row,) = written(prepared(tmp_path, [RICH]), tmp_path)
    example = parse(RICH, "")
    assert isinstance(example, Preference)
    for side, completion in (("chosen", example.chosen), ("rejected", example.rejected)):
        whole = replace(example.prompt, messages=(*example.prompt.messages, *completion))
        messages = oracle_messages(whole, RenderOptions())
        earlier = next(i for i, message in enumerate(messages) if message.channel == "analysis")
        del messages[earlier]  # of a turn that a final has closed
        ids = [*render_ids(harmony_encoding, messages)[:-1], RETURN]
        assert row["prompt_ids"] + row[f"{side}_ids"] == ids
    assert VOCABULARY.decode(row["prompt_ids"]).endswith("And now?<|end|><|start|>assistant")
    assert row["prompt_length"] == len(row["prompt_ids"])
    assert row["length"] == sum(len(row[n]) for n in ("prompt_ids", "chosen_ids", "rejected_ids"))


def test_weights_and_channels_of_every_token(tmp_path: Path) -> None:
    render = RenderOptions(weights=WEIGHTS)
    (row,) = written(prepared(tmp_path, [RICH], render=render), tmp_path)
    pieces = [
        ("<|channel|>analysis<|message|>look first<|end|>", "analysis", 0.0),
        (
            "<|start|>assistant to=functions.look<|channel|>commentary <|constrain|>json"
            "<|message|>{}<|call|>",
            "tool_call",
            2.0,
        ),
        (
            "<|start|>functions.look to=assistant<|channel|>commentary<|message|>42<|end|>"
            "<|start|>assistant",
            "none",
            0.0,
        ),
        ("<|channel|>analysis<|message|>found<|end|>", "analysis", 0.0),
        ("<|start|>assistant<|channel|>final<|message|>It is 42.<|return|>", "final", 1.0),
    ]
    channels = [CHANNELS[code] for code in row["chosen_channels"]]
    found, start = [], 0
    for text, channel, weight in pieces:
        stop = start
        while VOCABULARY.decode(row["chosen_ids"][start:stop]) != text:
            stop += 1
        opening = 2 if channel == "none" else 0  # `<|start|>assistant` has its message's channel
        assert set(channels[start : stop - opening]) == {channel}
        assert set(row["chosen_weights"][start:stop]) == {weight}
        found.append(channel)
        start = stop
    assert start == len(row["chosen_ids"]) and len(found) == len(pieces)
    rejected = [CHANNELS[code] for code in row["rejected_channels"]]
    assert sorted(set(rejected)) == ["analysis", "final"]


def test_a_final_within_a_completion_does_not_count_where_it_ends(tmp_path: Path) -> None:
    """It is read as `<|end|>`, and a model that answers samples `<|return|>`."""
    row = pair(1) | {"chosen": [*said("one"), *said("two")]}
    (kept,) = written(prepared(tmp_path, [row]), tmp_path)
    weights = dict(zip(kept["chosen_ids"], kept["chosen_weights"], strict=True))
    assert weights[END] == 0.0 and weights[RETURN] == 1.0
    assert kept["chosen_weights"].count(0.0) == 3, "the end, and the opening after it"


def test_what_says_nothing_is_dropped_and_counted(tmp_path: Path) -> None:
    thoughts = [said("same", thinking=thought) for thought in ("one", "two")]
    rows = [
        *(pair(i) for i in range(4)),
        pair(4, "same", "same"),
        pair(5, score_chosen=7.0, score_rejected=7.0),
        pair(6) | {"chosen": thoughts[0], "rejected": thoughts[1]},
        pair(7, "a", "b"),
        pair(7, "b", "a"),
        pair(8, "word " * 500),
        pair(9) | {"chosen": LOOP[:1], "rejected": said("no"), "tools": TOOLS},
        pair(0),
    ]
    weights = {"analysis": 0.0, "tool_call": 0.0}
    data = prepared(tmp_path, rows, max_length=300, render=RenderOptions(weights=weights))
    assert data.summary.dropped == {
        "pairs whose completions are the same": 1,
        "ties: both completions have the same score": 1,
        "ties: the two completions differ only where the weight is 0": 1,
        "ties: another row prefers the other completion": 2,
        "rows longer than max_length=300": 1,
        "rows with a completion in which every token has weight 0": 1,
    }
    assert data.summary.train_rows == 5 and data.summary.duplicates == 1
    text = "\n".join(data.summary.lines())
    assert "12 examples" in text and "dropped 2: ties: another row" in text
    assert prepared(tmp_path, rows, duplicates="drop").summary.duplicates == 1


def test_pairs_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    rows = [pair(i, "same", "same") for i in range(3)]
    with pytest.raises(DataError, match="chosen equals rejected in every pair") as caught:
        prepared(tmp_path, rows)
    assert "rows.jsonl" in str(caught.value) and "3 pairs" in str(caught.value)
    with pytest.raises(DataError, match="chosen equals rejected in every pair"):
        rated(tmp_path, rows)


def _only_prompts_differ() -> dict[str, Any]:
    asked, other = ({"role": "user", "content": text} for text in ("one?", "another?"))
    return {"chosen": [asked, *said("a")], "rejected": [other, *said("b")]}


CHAT = {"messages": [{"role": "user", "content": "a"}, *said("b")]}
RATING = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (CHAT, ["a conversation, not a preference pair", "sft=NAME"]),
        ({"text": "plain"}, ["plain text"]),
        (RATING, ["a rated completion, not a pair", "dpo=kto_20b"]),
        (_only_prompts_differ(), ["do not begin with the same prompt", "add `prompt`"]),
    ],
)
def test_rows_that_are_no_pairs_are_refused_by_line(
    row: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, [pair(1), row, pair(2)])
    text = str(caught.value)
    assert f"{tmp_path / 'rows.jsonl'}:2" in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b"}, ["has no `label`", '"label": true']),
        ({"prompt": "a", "completion": "b", "label": None}, ["has no `label`"]),
        (CHAT, ["a conversation, not a rated completion", "sft=NAME"]),
    ],
)
def test_rows_that_are_not_rated_are_refused_by_line(
    row: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        rated(tmp_path, [RATING, row])
    text = str(caught.value)
    assert f"{tmp_path / 'rows.jsonl'}:2" in text
    assert all(word in text for word in words), text


def test_too_long_prompts_lose_their_oldest_turns_if_asked(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "old " * 200}, *said("older")]
    row = pair(1) | {"prompt": [*turns, {"role": "user", "content": "now?"}]}
    assert not prepared(tmp_path, [row, pair(2)], max_length=200).summary.changed
    data = prepared(tmp_path, [row, pair(2)], max_length=200, on_too_long="truncate")
    assert data.summary.changed == {"prompts shortened to max_length=200": 1}
    first = written(data, tmp_path)[0]
    text = VOCABULARY.decode(first["prompt_ids"])
    assert "now?" in text and "old" not in text
    with pytest.raises(DataError, match="the row is too long"):
        prepared(tmp_path, [row], max_length=200, on_too_long="error")


def test_packed_rows_hold_every_pair_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TOKENS_AT_ONCE", 700)  # several record batches
    rows = [pair(i, "yes " * (1 + 7 * (i % 9)), score=float(i)) for i in range(30)]
    alone = written(prepared(tmp_path, rows), tmp_path / "alone")
    data = prepared(tmp_path, rows, packing=True, max_length=400)
    packed = written(data, tmp_path / "packed")
    members = [member for row in packed for member in row["pairs"]]
    assert sorted(map(str, members)) == sorted(map(str, alone))
    for row in packed:
        assert row["length"] == sum(member["length"] for member in row["pairs"]) <= 400
    assert data.summary.packed_rows == len(packed) < 15
    tokens = sum(row["length"] for row in packed)
    assert data.summary.packed_share == pytest.approx(tokens / (400 * len(packed)))


def test_a_pair_becomes_two_ratings_on_the_same_side_of_the_split(tmp_path: Path) -> None:
    rows = [pair(i) for i in range(10)]
    data = rated(tmp_path, rows, validation_split=0.3)
    assert data.summary.changed == {"pairs read as two rated completions each": 10}
    assert (data.summary.train_rows, data.summary.validation_rows) == (14, 6)
    assert data.summary.good == 7
    assert "7 good completions, 7 bad ones" in "\n".join(data.summary.lines())
    for row in written(data, tmp_path):
        answer = VOCABULARY.decode(row["completion_ids"])
        assert answer == f"<|channel|>final<|message|>{'yes' if row['label'] else 'no'}<|return|>"


def test_mismatched_completions_come_from_the_same_batch(tmp_path: Path) -> None:
    rows = [{**RATING, "completion": f"answer {i}"} for i in range(7)]
    data = rated(tmp_path, rows, Groups(3, 2), seed=1)
    found = written(data, tmp_path)
    order = [row["completion_ids"] for row in found]
    assert order != sorted(order), "shuffled"
    # TRL shifts within each batch; the last row, alone in its batch, takes the one before it.
    expected = [order[i] for i in (2, 0, 1, 5, 3, 4, 5)]
    assert [row["kl_ids"] for row in found] == expected
    assert all(len(row["kl_ids"]) == len(row["kl_weights"]) for row in found)
    again = written(rated(tmp_path, rows, Groups(3, 2), seed=1), tmp_path / "again")
    assert [row["completion_ids"] for row in again] == order
    assert rated(tmp_path, rows, seed=1).train.partners is None
    assert partners(np.array([7]), 4).tolist() == [7]
