"""Rows that make sense only together: trees, batches, conversations with a message per row."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gptoss_ft.data.assemble import assembled
from gptoss_ft.data.assemble.parts import AssembledRow
from gptoss_ft.data.dataset import check_data, prepare
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.options import DataOptions, SourceOptions
from gptoss_ft.data.rows import read_examples
from gptoss_ft.data.sources.read import RowChunk
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import Conversation
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

Row = dict[str, Any]
Read = list[tuple[str, list[tuple[str, str]]]]


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(path: Path) -> tuple[Read, Counter[str], list[Problem]]:
    """The place and the turns of each row, all notes, and all problems."""
    problems: list[Problem] = []
    rows, notes = [], Counter[str]()
    for row in read_examples(SourceOptions(path=str(path)), problems):
        assert isinstance(row.example, Conversation)
        turns = [(message.role, message.content) for message in row.example.messages]
        rows.append((Path(row.where).name, turns))
        notes.update(row.notes)
    return rows, notes, problems


def refused(path: Path) -> list[tuple[str, str]]:
    """Every problem, as its place and what it is."""
    return [(Path(problem.where).name, problem.what) for problem in read(path)[2]]


def said(name: str, parent: str | None, role: str, **keys: Any) -> Row:
    """A message of oasst's `messages` files; the text is its id."""
    return {
        "message_id": name,
        "parent_id": parent,
        "user_id": "u",
        "created_date": "2023-02-05",
        "text": name,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": None,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.1},
        "message_tree_id": "t",
        "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [1]},
        "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    } | keys


TREE = [
    said("t", None, "prompter"),
    said("worse", "t", "assistant", rank=1),
    said("best", "t", "assistant", rank=0),
    said("unranked", "t", "assistant"),
    said("spam", "t", "assistant", rank=0, deleted=True),
    said("reply to spam", "spam", "prompter"),
    said("unanswered", "best", "prompter"),
    said("more", "best", "prompter"),
    said("end", "more", "assistant", rank=0),
    said("thanks", "end", "prompter"),
]
BEST = [("user", "t"), ("assistant", "best"), ("user", "more"), ("assistant", "end")]
BESIDE = "messages of trees that are not on the path of the best-ranked replies, not trained"
REJECTED = "messages of trees that were deleted or failed their review, left out with all replies"


def test_of_a_tree_the_best_ranked_path_is_read_and_the_rest_counted(tmp_path: Path) -> None:
    rows, notes, problems = read(write(tmp_path / "a.jsonl", TREE))
    assert not problems and rows == [("a.jsonl:1", BEST)]
    assert notes == {BESIDE: 4, REJECTED: 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda row: {k: v for k, v in row.items() if v is not None},
        lambda row: {k: v for k, v in row.items() if k != "message_tree_id"},
        lambda row: {k: str(v) if isinstance(v, bool | int) else v for k, v in row.items()},
        lambda row: row | {"rank": float("nan") if row["rank"] is None else float(row["rank"])},
        lambda row: {{"message_id": "id", "text": "content"}.get(k, k): v for k, v in row.items()},
    ],
)
def test_a_tree_may_lack_nulls_its_id_or_types(tmp_path: Path, change: Any) -> None:
    rows = [change(row) for row in reversed(TREE)]
    assert read(write(tmp_path / "a.jsonl", rows))[0] == [("a.jsonl:1", BEST)]


def test_a_tree_may_lie_in_several_files_among_others(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", [*TREE[:3], said("u", None, "prompter", message_tree_id="u")])
    chat = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    write(tmp_path / "d" / "b.jsonl", [chat])
    last = said("w", "u", "assistant", message_tree_id="u")
    write(tmp_path / "d" / "c.jsonl", [*TREE[3:], last])
    assert read(tmp_path / "d")[0] == [
        ("b.jsonl:1", [("user", "x"), ("assistant", "y")]),
        ("a.jsonl:1", BEST),
        ("a.jsonl:4", [("user", "u"), ("assistant", "w")]),
    ]


def nested(rows: list[Row]) -> Row:
    """A tree as in oasst's `trees` files."""

    def node(row: Row) -> Row:
        replies = [node(other) for other in rows if other["parent_id"] == row["message_id"]]
        return {k: v for k, v in row.items() if k != "message_tree_id"} | {"replies": replies}

    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": node(rows[0])}


def test_a_nested_tree_is_a_row_by_itself(tmp_path: Path) -> None:
    tree = nested(TREE)
    given_up = tree | {"tree_state": "aborted_low_grade"}
    rows, notes, problems = read(write(tmp_path / "a.trees.jsonl", [given_up, tree, tree]))
    assert not problems and rows == [("a.trees.jsonl:2", BEST), ("a.trees.jsonl:3", BEST)]
    abandoned = "trees that their moderators gave up, left out"
    assert notes == {BESIDE: 8, REJECTED: 2, abandoned: 1}


def test_all_that_keeps_rows_from_being_trees_is_named(tmp_path: Path) -> None:
    def other(name: str, parent: str | None, tree: str, role: str = "assistant") -> Row:
        return said(name, parent, role, message_tree_id=tree)

    rows = [
        other("orphan", "gone", "o"),
        other("m", None, "m", "prompter"),
        other("n", None, "m", "prompter"),
        other("c", "d", "c"),
        other("d", "c", "c"),
        *TREE,
        other("e", None, "e", "prompter"),
        other("e", "e", "e"),
        other("q", None, "q", "prompter"),
        other("r", None, "r", "prompter"),
        other("s", "s", "r"),
        said("strange", "t", "narrator", rank=-1),
    ]
    assert refused(write(tmp_path / "a.jsonl", rows[:-1])) == [
        ("a.jsonl:1", "the parent 'gone' is not in the source"),
        ("a.jsonl:3", f"the tree begins twice, first at {tmp_path}/a.jsonl:2"),
        ("a.jsonl:4", "the messages of this tree are replies to each other in a circle"),
        ("a.jsonl:17", f"the tree holds this message twice, first at {tmp_path}/a.jsonl:16"),
        ("a.jsonl:18 messages", "the row is all prompt: no assistant message"),
        ("a.jsonl:20", "the message is a reply to its own reply"),
    ]
    unknown = "unknown role of a message in a tree"
    assert refused(write(tmp_path / "a.jsonl", [*TREE, rows[-1]])) == [("a.jsonl:11 role", unknown)]
    assert refused(write(tmp_path / "b.jsonl", [nested([*TREE, rows[-1]])])) == [
        ("b.jsonl:1 role", unknown)
    ]


def test_trees_without_an_answer_that_stands_are_left_out(tmp_path: Path) -> None:
    alone = [
        said("a", None, "prompter", message_tree_id="a"),
        said("b", "a", "assistant", message_tree_id="a", review_result=False),
    ]
    rows, notes, problems = read(write(tmp_path / "a.jsonl", [*alone, *TREE]))
    assert rows == [("a.jsonl:3", BEST)] and not problems
    assert notes["trees left out: every answer was deleted or failed its review"] == 1
    with pytest.raises(DataError, match="no conversation is left"):
        read(write(tmp_path / "a.jsonl", alone))


def test_an_unknown_key_of_a_tree_is_refused(tmp_path: Path) -> None:
    rows = [*TREE[:2], TREE[2] | {"verdict": "good"}]
    assert "messages[1].verdict" in str(refused(write(tmp_path / "a.jsonl", rows)))


def request(name: str, **body: Any) -> Row:
    body = {"model": "m", "messages": [{"role": "user", "content": name}], **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def result(name: str, body: Row, status: int = 200) -> Row:
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": name, "response": response, "error": None}


def choice(text: str, reason: str = "stop") -> Row:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}


def completion(text: str, reason: str = "stop", count: int = 1) -> Row:
    return {"object": "chat.completion", "choices": [choice(text, reason)] * count, "usage": {}}


def batch(folder: Path, requests: list[Row], results: list[Row]) -> Path:
    write(folder / "in.jsonl", requests)
    return write(folder / "out.jsonl", results).parent


def test_a_batch_is_joined_by_its_ids(tmp_path: Path) -> None:
    requests = [request(name) for name in "abcd"]
    results = [
        result("d", completion("D", "length", 2)),
        result("c", {"error": {"message": "no"}}, 500),
        result("c", completion("C")),
        result("a", completion("A")),
        {"custom_id": "b", "response": None, "error": {"code": "batch_expired"}},
    ]
    rows, notes, problems = read(batch(tmp_path / "d", requests, results))
    assert not problems
    assert rows == [
        (f"in.jsonl:{line}", [("user", name), ("assistant", name.upper())])
        for line, name in ((1, "a"), (3, "c"), (4, "d"))
    ]
    assert notes == {
        "requests of a batch without an answer, left out": 1,
        "answers of a batch that hold several choices, of which the first is trained": 1,
        "answers of a batch that were cut off at a limit of tokens": 1,
    }


def test_other_batches_are_joined_as_well(tmp_path: Path) -> None:
    answer = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "B"}],
    }
    requests = [
        {
            "custom_id": "a",
            "params": {"messages": [{"role": "user", "content": "a"}], "system": "S"},
        },
        {"custom_id": "b", "url": "/v1/responses", "body": {"input": "b", "instructions": "S"}},
        {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "c"}},
    ]
    message = {"role": "assistant", "content": "A", "id": "i", "stop_reason": "end_turn"}
    results = [
        {"custom_id": "a", "result": {"type": "succeeded", "message": message}},
        result("b", {"object": "response", "status": "completed", "output": [answer]}),
        result("c", {"choices": [{"text": "C", "finish_reason": "stop"}]}),
    ]
    rows = dict(read(batch(tmp_path / "d", requests, results))[0])
    assert rows["in.jsonl:1"] == [("system", "S"), ("user", "a"), ("assistant", "A")]
    assert rows["in.jsonl:2"][-2:] == [("user", "b"), ("assistant", "B")]
    assert rows["in.jsonl:3"] == [("user", "c"), ("assistant", "C")]


def test_a_batch_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    requests = [request("a"), request("a"), request("c"), request("d"), request("e")]
    results = [result(name, completion(name)) for name in ("a", "b", "c", "c")]
    results += [result("d", {"object": "list", "data": []}), result("e", completion("E"))]
    found = refused(batch(tmp_path / "d", requests, results))
    first = f"{tmp_path}/d"
    assert found == [
        ("in.jsonl:2", f"a request with this `custom_id` stands at {first}/in.jsonl:1 already"),
        ("out.jsonl:4", f"a result with this `custom_id` stands at {first}/out.jsonl:3 already"),
        ("out.jsonl:5", "a result of this kind is no conversation"),
        ("out.jsonl:2", "no request of the source has the `custom_id` of this result"),
    ]


@pytest.mark.parametrize("have", ["requests", "results"])
def test_one_side_of_a_batch_asks_for_the_folder_of_both(tmp_path: Path, have: str) -> None:
    rows = [request("a")] if have == "requests" else [result("a", completion("A"))]
    file = write(tmp_path / "my batch" / "x.jsonl", rows)
    with pytest.raises(DataError, match=f"these are the {have} of a batch, without") as caught:
        read(file)
    assert f"'data.path={file.parent}'" in str(caught.value)
    other = [result("a", completion("A"))] if have == "requests" else [request("a")]
    write(file.parent / "y.jsonl", other)
    assert len(read(file.parent)[0]) == 1


def turn(conversation: str, number: Any, role: str, text: str, **keys: Any) -> Row:
    return {"conversation_id": conversation, "turn": number, "role": role, "content": text} | keys


def test_messages_with_a_row_each_become_conversations(tmp_path: Path) -> None:
    rows = [
        turn("a", 1, "user", "x", system="S"),
        turn("b", 2, "assistant", "v"),
        turn("b", 1, "user", "u"),
        turn("a", 2, "assistant", "y", system="S"),
    ]
    assert read(write(tmp_path / "a.jsonl", rows))[0] == [
        ("a.jsonl:1", [("system", "S"), ("user", "x"), ("assistant", "y")]),
        ("a.jsonl:2", [("user", "u"), ("assistant", "v")]),
    ]
    table = "Dialogue ID,utterance_idx,speaker,text\n7,0,human,x\n7,1,bot,y\n"
    (tmp_path / "a.csv").write_text(table)
    assert read(tmp_path / "a.csv")[0] == [("a.csv:2", [("user", "x"), ("assistant", "y")])]


def test_turns_that_are_there_twice_or_not_at_all_are_refused(tmp_path: Path) -> None:
    rows = [
        turn("a", 1, "user", "x"),
        turn("a", 1, "user", "y"),
        turn("a", 3, "assistant", "z"),
        turn("b", "first", "user", "x"),
        turn("c", 1, "user", "x", system="S"),
        turn("c", 2, "assistant", "y", system="T"),
    ]
    where = f"{tmp_path}/a.jsonl"
    assert refused(write(tmp_path / "a.jsonl", rows)) == [
        ("a.jsonl:2 turn", f"the same turn of the same role stands at {where}:1 already"),
        ("a.jsonl:3 turn", f"the turn before this one is missing: {where}:2 is the last before it"),
        ("a.jsonl:4 turn", "`turn` is not a number"),
        ("a.jsonl:5", "`system` differs between the rows of one conversation"),
    ]


def test_a_question_and_an_answer_may_share_the_number_of_their_turn(tmp_path: Path) -> None:
    rows = [turn("a", 0, "user", "x"), turn("a", 0, "assistant", "y")]
    assert read(write(tmp_path / "a.jsonl", rows))[0][0][1] == [("user", "x"), ("assistant", "y")]


PLAIN: list[Row] = [
    {"messages": []},
    {"text": "a", "id": 1},
    {"conversation_id": "a", "turn": 2, "conversation": []},
    {"prompt": "a", "completion": "b", "custom_id": "1"},
    {"id": "1", "parent_id": "2", "text": "a"},
    {"session_id": "s", "index": 1, "role": "Head of sales", "text": "a"},
]


@pytest.mark.parametrize("row", PLAIN)
def test_other_rows_pass_through_untouched(row: Row) -> None:
    lines = [(1, json.dumps(row).encode()), (2, b"{broken"), (3, b"[]")]
    chunks = [RowChunk("a", lines), RowChunk("b", [(1, b"{broken")])]
    out = [*assembled(chunks, Reading())]
    assert all(given is passed for given, passed in zip(chunks, out, strict=True))


@pytest.mark.parametrize(
    "reading", [Reading("text"), Reading(columns=(("prompt", "text"), ("completion", "role")))]
)
def test_rows_that_the_user_reads_one_by_one_stay_so(reading: Reading) -> None:
    chunks = [RowChunk("a", [(i, row) for i, row in enumerate(TREE, 1)])]
    assert [*assembled(chunks, reading)] == chunks


def test_broken_lines_among_parts_are_refused_where_they_stand(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", TREE)
    with file.open("a") as stream:
        stream.write("{broken\n")
        stream.write('{"text": 3}\n')
    assert [where.split()[0] for where, _ in refused(file)] == ["a.jsonl:11", "a.jsonl:12"]


def test_only_the_first_row_of_a_file_is_decoded() -> None:
    chunks = (RowChunk("a", [(n, b'{"text": "a"}')]) for n in range(3))
    stream = assembled(chunks, Reading())
    assert next(stream).rows[0][1] == b'{"text": "a"}'
    assert next(chunks).rows[0][0] == 1  # nothing was read ahead


def test_what_was_put_together_travels_between_processes() -> None:
    row = AssembledRow({"a": 1}, [Problem("what", "where")])
    row.notes["n"] = 2
    again = pickle.loads(pickle.dumps(row))
    assert again == row and again.notes == row.notes and again.problems == row.problems
    assert isinstance(again, AssembledRow)


@pytest.mark.parametrize("workers", [1, 2])
def test_trees_are_trained(tmp_path: Path, workers: int) -> None:
    path = str(write(tmp_path / "a.jsonl", TREE))
    options = DataOptions(path=path, cache=str(tmp_path / "cache"), workers=workers)
    check_data(options)
    data = prepare(options, packaged_vocabulary())
    assert len(data.train) == 1 and data.summary.notes == {BESIDE: 4, REJECTED: 1}
