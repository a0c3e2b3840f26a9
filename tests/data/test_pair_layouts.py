"""Preference pairs in the columns of public datasets and other toolkits: which side is which."""

from __future__ import annotations

from typing import Any

import pytest
from spoken import refusal, sides, taken, turn

ASKED, GOOD, BAD = turn("user", "q"), turn("assistant", "good"), turn("assistant", "bad")
HUMAN, GPT, WORSE = (
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "good"},
    {"from": "gpt", "value": "bad"},
)
PAIR = ("user: q", "assistant: good", "assistant: bad")
SYSTEM = ("system: s / user: q", *PAIR[1:])
EARLIER = ("user: 1? / assistant: one / user: q", *PAIR[1:])
SWITCHED = (PAIR[0], PAIR[2], PAIR[1])
TIED = (*PAIR, "tied")
TEXTS = {"chosen": "good", "rejected": "bad"}
WHOLE = {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}
OLDER = [turn("user", "1?"), turn("assistant", "one")]
AB = {"prompt": "q", "response_a": "good", "response_b": "bad"}
ZERO = {"prompt": "q", "response_0": "good", "response_1": "bad"}
ONE = {"prompt": "q", "response_1": "good", "response_2": "bad"}
ARENA = {"conversation_a": [ASKED, GOOD], "conversation_b": [ASKED, BAD], "model_a": "m"}
SHP = {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "score_A": 9, "score_B": 3}
KAGGLE = {"prompt": '["1?", "q"]', "response_a": '["one", "good"]', "response_b": '["one", "bad"]'}
POST = {"subreddit": "r", "title": "t", "post": "p"}
SUMMARIES = {"info": POST, "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1}
SUMMARY = ("user: SUBREDDIT: r/r\n\nTITLE: t\n\nPOST: p\n\nTL;DR:", *PAIR[1:])
JUDGED = {"generations": ["bad", "good"], "rating": [1, 9], "rationale": "r", "order": ["a", "b"]}
RANKED = [
    {"answer": "fair", "rank": 2, "model": "m"},
    {"answer": "bad", "rank": 3, "model": "m"},
    {"answer": "good", "rank": 1, "model": "m"},
]
RAW = [
    {"response": "bad", "fine-grained_score": 1.5, "overall_score": 10, "critique": "c"},
    {"response": "good", "fine-grained_score": 4.5, "overall_score": 7, "critique": "c"},
]

READ: list[tuple[str, dict[str, Any], tuple[Any, ...]]] = [
    ("chosen, rejected", {"prompt": "q", **TEXTS}, PAIR),
    ("any case", {"Prompt": "q", "Chosen": "good", "Rejected": "bad"}, PAIR),
    ("question", {"question": "q", **TEXTS}, PAIR),
    ("alpaca", {"instruction": "q", "input": "", **TEXTS}, PAIR),
    ("alpaca, input", {"instruction": "q", "input": "i", **TEXTS}, ("user: q\n\ni", *PAIR[1:])),
    ("system", {"system": "s", "input": "q", **TEXTS}, SYSTEM),
    ("history", {"query": "q", "history": [["1?", "one"]], **TEXTS}, EARLIER),
    ("history of messages", {"query": "q", "history": OLDER, **TEXTS}, EARLIER),
    ("system beside whole sides", {"system": "s", **WHOLE}, SYSTEM),
    ("whole sides", WHOLE, PAIR),
    ("whole sides, prompt list", {"prompt": [ASKED], **WHOLE, "question": "q"}, PAIR),
    ("whole sides and their prompt", {"prompt": [ASKED], **WHOLE}, PAIR),
    ("whole sides, messages", {"prompt": "q", **WHOLE, "messages": [ASKED, GOOD]}, PAIR),
    ("sharegpt sides", {"chosen": [HUMAN, GPT], "rejected": [HUMAN, WORSE]}, PAIR),
    ("llama-factory", {"conversations": [HUMAN], "chosen": GPT, "rejected": WORSE}, PAIR),
    ("axolotl", {"messages": [ASKED], "chosen": GOOD, "rejected": BAD}, PAIR),
    ("runs", {"messages": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
    ("swift", {"messages": [ASKED, GOOD], "rejected_response": "bad"}, PAIR),
    ("swift, lists", {"messages": [ASKED, GOOD], "rejected_messages": [ASKED, BAD]}, PAIR),
    ("swift, old", {"query": "q", "response": "good", "rejected_response": "bad"}, PAIR),
    ("shibing", {"question": "q", "response_chosen": "good", "response_rejected": "bad"}, PAIR),
    ("argilla", {"instruction": "q", "chosen_response": "good", "rejected_response": "bad"}, PAIR),
    ("stack exchange", {"question": "q", "response_j": "good", "response_k": "bad"}, PAIR),
    ("accepted", {"prompt": "q", "accepted": "good", "rejected": "bad"}, PAIR),
    ("distilabel", {"input": "q", **TEXTS, **JUDGED, "status": "unchanged"}, PAIR),
    ("distilabel, equal", {"input": "q", **TEXTS, **JUDGED, "rating": [4, 4]}, TIED),
    ("better id", {**ZERO, "better_response_id": 0}, PAIR),
    ("better id, 1", {**ZERO, "better_response_id": 1, "is_response_0_safe": True}, SWITCHED),
    ("winner", {**AB, "winner": "B"}, SWITCHED),
    ("named winner", {**AB, "preferred": "response_a"}, PAIR),
    ("winner's model", {**AB, "model_a": "x", "model_b": "y", "winner": "y"}, SWITCHED),
    ("counted from 1", {**ONE, "preference": 2}, SWITCHED),
    ("chosen and rejected names", {**AB, "chosen": "b", "rejected": "a"}, SWITCHED),
    ("tie", {**AB, "winner": "tie (bothbad)"}, TIED),
    ("helpsteer3", {"context": [ASKED], **ONE, "prompt": None, "overall_preference": -2}, PAIR),
    ("helpsteer2", {**ONE, "preference_strength": 3, "preference_statement": "x"}, SWITCHED),
    ("strength 0", {**ONE, "preference_strength": 0}, TIED),
    ("arena", {**ARENA, "winner": "model_b"}, SWITCHED),
    ("arena, messages kept", {**ARENA, "winner": "model_a", "turn": 1}, PAIR),
    ("one column an outcome", {**AB, "winner_model_a": 0, "winner_model_b": 1}, SWITCHED),
    ("kaggle", {**KAGGLE, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, EARLIER),
    ("shp", {**SHP, "labels": 1, "created_at_utc_A": 5}, PAIR),
    (
        "scores",
        {
            "question": {"full_text": "q"},
            **{"answer_0": "bad", "answer_1": "good"},
            "score_0": -1,
            "score_1": "1",
        },
        PAIR,
    ),
    ("equal scores", {**AB, "score_a": 2, "score_b": 2}, TIED),
    ("summaries", SUMMARIES, SUMMARY),
    ("ranks", {"prompt": "\n\nHuman: q\n\nAssistant:", "answers": RANKED, "turns": 1}, PAIR),
    ("ultrafeedback", {"instruction": "q", "completions": RAW, "models": ["a", "b"]}, PAIR),
    ("lists", {"prompt": "q", "responses": ["bad", "good"], "scores": [0.1, 0.7]}, PAIR),
    ("all equal", {"prompt": "q", "responses": ["good", "bad"], "scores": [2, 2]}, TIED),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in READ], ids=[c[0] for c in READ])
def test_sides(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert sides(row) == expected


UNREAD = [case for case in READ if case[0] != "any case"]


@pytest.mark.parametrize(("row", "expected"), [c[1:] for c in UNREAD], ids=[c[0] for c in UNREAD])
def test_an_unknown_column_is_refused(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """The advice, followed, reads the row."""
    problem = refusal({**row, "zeal": "much"})
    assert "not read: `zeal`" in problem and "data.ignore=[zeal]" in problem
    assert sides({**row, "zeal": "much"}, ignore=["zeal"]) == expected


SAFER = {**ZERO, "better_response_id": 0, "safer_response_id": 1}
REFUSED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    (
        "better or safer",
        SAFER,
        ("data.ignore=[safer_response_id]", "data.ignore=[better_response_id]"),
    ),
    ("a number for letters", {**AB, "winner": 1}, ("write a or b",)),
    ("a label of 0 and 1", {**ZERO, "label": 1}, ("does not say which answer",)),
    ("no such place", {**ZERO, "choice": 2}, ("write 0 or 1",)),
    ("messages of others", {**WHOLE, "messages": [ASKED, OLDER[1]]}, ("data.ignore=[messages]",)),
    (
        "two systems",
        {"system": "s", "messages": [turn("system", "t"), ASKED], **TEXTS},
        ("two system prompts", "data.ignore=[system]"),
    ),
    ("another prompt", {"prompt": [turn("user", "else")], **WHOLE, "margin": 1}, ("begin both",)),
    ("no winner", {**AB, "winner_model_a": 1, "winner_model_b": 1}, ("write 1 in one",)),
    ("scores in words", {**AB, "score_a": "x", "score_b": "y"}, ("write numbers",)),
    ("odd history", {"query": "q", "history": ["1?"], **TEXTS}, ("[question, answer]",)),
    (
        "steps",
        {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
        ("rates the steps",),
    ),
    (
        "one ranked answer",
        {"prompt": "q", "responses": ["a", ""], "scores": [1, 2]},
        ("fewer than two",),
    ),
]


@pytest.mark.parametrize(("row", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(row: dict[str, Any], words: tuple[str, ...]) -> None:
    problem = refusal(row)
    for word in words:
        assert word in problem


def test_advice_for_several_choices_reads_the_row() -> None:
    assert sides(SAFER, ignore=["safer_response_id"]) == PAIR
    assert sides(SAFER, ignore=["better_response_id"]) == SWITCHED


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"prompt": "else", **WHOLE, "question": None, "messages": [ASKED]}, "none of the user's"),
        ({"prompt": "q", **TEXTS, "score_chosen": 1, "score_rejected": 2}, "lower score"),
        ({"prompt": "q", **TEXTS, "score_chosen": "x", "score_rejected": 2}, "no numbers"),
        ({"prompt": "else", **WHOLE}, "none of the user's"),
        ({"prompt": "q", "answers": RANKED}, "best against the worst"),
        ({"prompt": "q", **TEXTS, "margin": 0.5}, "`margin` not read"),
    ],
)
def test_noted(row: dict[str, Any], note: str) -> None:
    assert any(note in text for text in taken(row).notes)


SPELLINGS = (
    "score_{}",
    "{}_score",
    "rating_{}",
    "{}-rating",
    "{}_reward",
    "reward_{}",
    "{} rating",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("scores", "end"), [((4, "4.0"), TIED), ((4, 3), PAIR), (("2", 3), PAIR)])
def test_scores_in_any_spelling(
    spelling: str, scores: tuple[Any, Any], end: tuple[Any, ...]
) -> None:
    beside = dict(zip(map(spelling.format, ("chosen", "rejected")), scores, strict=True))
    assert sides({"prompt": "q", **TEXTS, **beside}) == end
    assert (
        sides({"instruction": "q", "chosen_text": "good", "rejected_text": "bad", **beside}) == end
    )


def test_tools_are_handed_on() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    read = taken({"question": "q", "response_j": "good", "response_k": "bad", "tools": [tool]})
    assert [spec.name for spec in read.example.prompt.tools] == ["f"]  # type: ignore[union-attr]
