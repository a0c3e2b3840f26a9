"""Rated answers: their labels, and what supervised training does with rated rows."""

from __future__ import annotations

from typing import Any

import pytest
from spoken import refusal, sides, spoken, turn

from gptoss_ft.data.formats.harmless import is_harmless
from gptoss_ft.data.formats.ratings import RATING_NAMES
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.rated import BAD, CHOSEN, GOOD, TIED, good_side
from gptoss_ft.data.reading import read_row
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Feedback, Message, Preference

ASKED, ANSWER = turn("user", "q"), turn("assistant", "a")
PROMPTED = {"prompt": "q", "completion": "a"}
CHAT = {"messages": [ASKED, ANSWER]}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
ALPACA = {"instruction": "q", "input": "", "output": "a"}
RATED = ("user: q", "assistant: a")
EARLIER = [turn("user", "1?"), turn("assistant", "one"), ASKED, ANSWER]

READ: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({**PROMPTED, "label": True}, (*RATED, True)),
    ({**PROMPTED, "kto_tag": False}, (*RATED, False)),
    ({"prompt": "q", "response": "a", "is_good": 0}, (*RATED, False)),
    ({"question": "q", "answer": "a", "label": "1"}, (*RATED, True)),
    ({"prompt": "q", "response": "a", "feedback": "thumbs_down"}, (*RATED, False)),
    ({"prompt": "q", "response": "a", "thumbs_up": True, "thumbs_down": False}, (*RATED, True)),
    ({"input": "q", "output": "a", "rating": "thumbsUp"}, (*RATED, True)),
    ({**CHAT, "label": False}, (*RATED, False)),
    ({**CHAT, "label": 1}, (*RATED, True)),
    ({**SHAREGPT, "kto_tag": True}, (*RATED, True)),
    ({**ALPACA, "kto_tag": "desirable"}, (*RATED, True)),
    ({**ALPACA, "input": "i", "label": "false"}, ("user: q\n\ni", RATED[1], False)),
    ({**CHAT, "system": "s", "label": 1}, ("system: s / user: q", RATED[1], True)),
    (
        {"messages": EARLIER, "label": True},
        ("user: 1? / assistant: one / user: q", RATED[1], True),
    ),
    ({"messages": [ASKED], "completion": "a", "label": False}, (*RATED, False)),
]


@pytest.mark.parametrize(("row", "expected"), READ)
def test_rated_answers(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert sides(row) == expected


@pytest.mark.parametrize(("row", "expected"), READ)
def test_an_unknown_column_is_refused(row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    problem = refusal({**row, "zeal": "much"})
    assert "not read: `zeal`" in problem and "data.ignore=[zeal]" in problem
    assert sides({**row, "zeal": "much"}, ignore=["zeal"]) == expected


@pytest.mark.parametrize("row", [PROMPTED, CHAT, SHAREGPT, ALPACA])
@pytest.mark.parametrize(("word", "label"), [("Good", True), (0.0, False), ("👎", False)])
def test_a_column_is_said_to_be_the_label(row: dict[str, Any], word: Any, label: bool) -> None:
    assert sides({**row, "verdict": word}, columns={"label": "verdict"}) == (*RATED, label)


@pytest.mark.parametrize("row", [PROMPTED, CHAT, ALPACA])
@pytest.mark.parametrize("label", ["positive", "spam", 2, -1, 0.5])
def test_other_labels_are_refused(row: dict[str, Any], label: Any) -> None:
    """A class of texts is no rating."""
    problem = refusal({**row, "label": label})
    assert "neither true nor false" in problem and "data.ignore=[label]" in problem
    assert len(sides({**row, "label": label}, ignore=["label"])) == 1


@pytest.mark.parametrize("name", sorted(RATING_NAMES))
def test_ratings_are_not_harmless(name: str) -> None:
    assert not is_harmless(name)


@pytest.mark.parametrize("name", ["helpfulness", "rating", "reward", "stars", "overall_rating"])
@pytest.mark.parametrize("row", [PROMPTED, CHAT])
def test_scales_are_refused_with_both_choices(row: dict[str, Any], name: str) -> None:
    problem = refusal({**row, name: 3, "coherence": 4})
    for argument in (
        f"'data.ignore=[{name},coherence]' trains all",
        f"dpo=kto_20b 'data.columns={{label: {name}}}' 'data.ignore=[coherence]'",
    ):
        assert argument in problem
    assert sides({**row, name: 3, "coherence": 4}, ignore=[name, "coherence"]) == (
        "user: q / assistant: a",
    )


def test_safety_is_no_rating() -> None:
    row = {"prompt": "q", "response": "a", "category": {"x": False}, "is_safe": False}
    problem = refusal(row)
    assert "'data.columns={prompt: prompt, completion: response, label: is_safe}'" in problem
    said = {"prompt": "prompt", "completion": "response", "label": "is_safe"}
    assert sides(row, columns=said) == (*RATED, False)


PROMPT = Conversation((Message("user", "q"),))
SAID, OTHER = (Message("assistant", "a"),), (Message("assistant", "b"),)
PAIR = Preference(PROMPT, SAID, OTHER)


@pytest.mark.parametrize(
    ("example", "recipe"),
    [(PAIR, "dpo=lora_20b"), (Feedback(PROMPT, SAID, False), "dpo=kto_20b")],
)
def test_sft_refuses_rated_rows(example: Preference | Feedback, recipe: str) -> None:
    with pytest.raises(DataError) as caught:
        good_side(example, "rows.jsonl:1", DataOptions("x"), Counts())
    assert recipe in str(caught.value) and "data.on_rated=good" in str(caught.value)


@pytest.mark.parametrize(
    ("example", "said", "counted"),
    [
        (PAIR, "user: q / assistant: a", CHOSEN),
        (Feedback(PROMPT, SAID, True), "user: q / assistant: a", GOOD),
        (Feedback(PROMPT, SAID, False), "", BAD),
        (Preference(PROMPT, SAID, OTHER, tied=True), "", TIED),
    ],
)
def test_sft_trains_the_good_side(example: Preference | Feedback, said: str, counted: str) -> None:
    counts = Counts()
    found = good_side(example, "rows.jsonl:1", DataOptions("x", on_rated="good"), counts)
    assert (spoken(found.messages) if found else "") == said
    assert (counts.changed + counts.dropped)[counted] == 1


def test_a_failed_attempt_is_refused_and_a_good_one_named() -> None:
    row = {"messages": [turn("user", "q"), turn("assistant", "a")]}
    assert "data.ignore=[resolved]" in str(refusal(row | {"resolved": False}))
    read = read_row(row | {"resolved": 1}, "rows.jsonl:1")
    assert "resolved: not read, it says that all went well" in read.columns


def test_a_column_that_the_row_does_not_have_is_noted() -> None:
    reading = Reading(columns=(("prompt", "q"), ("completion", "a"), ("system", "Be brief.")))
    read = read_row({"q": "Tide?", "a": "High."}, "rows.jsonl:1", reading)
    assert read.notes == {"rows without the column `Be brief.`, which data.columns names": 1}
