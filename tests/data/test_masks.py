"""Marks of turns that are not trained, and axolotl's segments."""

from __future__ import annotations

from typing import Any

import pytest
from format_rows import USER, WHERE, problems

from gptoss_ft.data.formats.dialects.masks import FLAGS, NOT_TRAINED
from gptoss_ft.data.formats.segments import ENDS
from gptoss_ft.data.reading import parse, read_row
from gptoss_ft.harmony.messages import Document
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import ENDOFTEXT, packaged_vocabulary


def row(*marks: dict[str, Any], asked: dict[str, Any] | None = None) -> dict[str, Any]:
    answers = [{"role": "assistant", "content": "Warm.", **mark} for mark in marks]
    question = {**USER, **(asked or {})}
    return {"messages": [message for answer in answers for message in (question, answer)]}


def weights(read: Any) -> list[float]:
    return [m.weight for m in read.messages if m.role == "assistant"]


@pytest.mark.parametrize(("name", "meaning"), FLAGS.items())
def test_every_flag_in_every_form(name: str, meaning: bool) -> None:
    true = (True, 1, 1.0, "true", "True", "1")
    false = (False, 0, 0.0, "false", "FALSE", "0")
    for yes, no in zip(true, false, strict=True):
        marked = row({name: yes}, {name: no}, {name: None}, {}, {name.title(): yes})
        given = float(meaning), float(not meaning)
        assert weights(parse(marked, WHERE)) == [*given, 1.0, 1.0, given[0]]


def test_a_turn_in_from_and_value() -> None:
    answers = ({"value": "a", "train": False}, {"value": "b", "train": True}, {"value": "c"})
    turns = [
        turn
        for answer in answers
        for turn in ({"from": "human", "value": "q", "train": False}, {"from": "gpt", **answer})
    ]
    assert weights(parse({"messages": turns}, WHERE, "chat")) == [0.0, 1.0, 1.0]


def spans(*parts: tuple[int, int, bool]) -> list[dict[str, Any]]:
    return [{"begin_offset": a, "end_offset": b, "train": train} for a, b, train in parts]


@pytest.mark.parametrize(
    ("marks", "weight"),
    [
        ({"weight": 0.5, "train": True}, 0.5),
        ({"weight": 0, "train": False}, 0.0),
        ({"weight": None, "mask": True}, 0.0),
        ({"loss_scale": 2.0}, 2.0),
        ({"loss_weight": 0, "loss": 0}, 0.0),
        ({"train_detail": spans((0, 4, True))}, 1.0),
        ({"train_detail": spans((0, 1, True), (2, 4, True))}, 1.0),
        ({"training_detail": spans((0, 4, False))}, 0.0),
        ({"train_detail": spans((0, 1, False))}, 0.0),
        ({"train": True, "train_detail": spans((0, 4, True))}, 1.0),
        ({"train": False, "train_detail": None}, 0.0),
    ],
)
def test_marks_and_weights(marks: dict[str, Any], weight: float) -> None:
    assert weights(parse(row(marks), WHERE)) == [weight]


@pytest.mark.parametrize(
    ("marks", "key", "what", "mend"),
    [
        ({"weight": 1, "train": False}, "", "contradict", "data.ignore=[train]"),
        ({"weight": 0, "loss": True}, "", "contradict", "data.ignore=[loss]"),
        ({"train": True, "mask": True}, "", "contradict", "data.ignore=[mask]"),
        ({"weight": 1, "loss_scale": 2}, "", "contradict", "data.ignore=[loss_scale]"),
        (
            {"train": False, "train_detail": spans((0, 4, True))},
            "",
            "contradict",
            "data.ignore=[train_detail]",
        ),
        ({"loss": 0.73}, ".loss", "neither true nor false", "data.ignore=[loss]"),
        ({"mask": "User"}, ".mask", "neither true nor false", "data.ignore=[mask]"),
        (
            {"train_detail": spans((0, 1, True))},
            ".train_detail",
            "a part of a message",
            "data.ignore=[train_detail]",
        ),
        ({"train_detail": [{"train": True}]}, ".train_detail", "not a span", "begin_offset"),
    ],
)
def test_marks_that_are_refused(marks: dict[str, Any], key: str, what: str, mend: str) -> None:
    ((found, where, advice),) = problems(row(marks))
    assert (what in found, where, mend in advice) == (True, f"messages[1]{key}", True)


def test_only_the_assistant_is_trained() -> None:
    assert weights(parse(row({}, asked={"train": False, "mask": True}), WHERE)) == [1.0]
    ((what, key, mend),) = problems(row({}, asked={"train": True}))
    assert (what, key) == ("a user message cannot be trained", "messages[0].train")
    assert "write false" in mend
    assert read_row(row({}, asked={"mask": False}), WHERE).notes == {NOT_TRAINED: 1}


def segments(*parts: tuple[Any, Any]) -> dict[str, Any]:
    return {"segments": [{"label": label, "text": text} for label, text in parts]}


@pytest.mark.parametrize(
    ("parts", "text", "untrained"),
    [
        (((True, "a"),), "a", ()),
        (((False, "ab"), (True, "c")), "abc", ((0, 2),)),
        (((1, "ab"), (0, "c"), ("false", "d"), ("True", "e")), "abcde", ((2, 4),)),
        (((True, "<s>ab"), (False, "c"), (True, "d</s>")), "abcd", ((2, 3),)),
    ],
)
def test_segments_become_a_document(parts: Any, text: str, untrained: Any) -> None:
    assert read_row(segments(*parts), WHERE).format == "segments"
    read = read_row(segments(*parts), WHERE)
    assert read.example == Document(text, untrained)
    assert read.notes == ({ENDS: 1} if "<s>" in parts[0][1] else {})


@pytest.mark.parametrize(
    ("given", "key", "what"),
    [
        (segments((False, "a")), "segments", "no segment is trained"),
        (segments((None, "a")), "segments[0]", "not a segment"),
        (segments((True, None)), "segments[0]", "not a segment"),
        ({"segments": [{"text": "a"}]}, "segments[0]", "not a segment"),
        ({"segments": []}, "segments", "not a list of segments"),
        (
            segments((False, "<|im_start|>user\na<|im_end|>"), (True, "b")),
            "segments[0].text",
            "markup of a chat",
        ),
        (segments((False, "[INST] a [/INST]"), (True, "b</s>")), "segments[0].text", "markup"),
        (segments((True, "a</s>b")), "segments[0].text", "markup"),
    ],
)
def test_segments_that_are_refused(given: dict[str, Any], key: str, what: str) -> None:
    ((found, where, _),) = problems(given, "segments")
    assert (what in found, where) == (True, key)


def test_a_document_trains_what_is_not_taken_out() -> None:
    """Each span is encoded on its own; the end weighs what comes before it."""
    vocabulary = packaged_vocabulary()
    renderer = Renderer(vocabulary, RenderOptions())
    first, second, third = ((*vocabulary.encode(t),) for t in ("Wind: ", "north, 18", " knots"))
    document = Document("Wind: north, 18 knots", ((0, 6), (15, 21)))
    (whole,) = renderer.render_document(document)
    assert whole.input_ids == [*first, *second, *third, ENDOFTEXT]
    masked = [-100] * len(first) + [*second] + [-100] * (len(third) + 1)
    assert whole.labels == masked
    assert whole.loss_weights == [float(label >= 0) for label in masked]
    assert sum(segment.stop - segment.start for segment in whole.segments) == len(whole)
    pieces = renderer.render_document(document, 3)
    assert [len(piece) for piece in pieces] == [3] * len(pieces)
    trained = [i for piece in pieces for i in piece.labels if i >= 0]
    assert trained == [*second]


def test_a_document_without_spans_is_as_before() -> None:
    vocabulary = packaged_vocabulary()
    renderer = Renderer(vocabulary, RenderOptions())
    (whole,) = renderer.render_document(Document("Wind: north"))
    assert whole.labels == whole.input_ids == [*vocabulary.encode("Wind: north"), ENDOFTEXT]
