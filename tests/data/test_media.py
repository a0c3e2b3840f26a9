"""Images, sound and video beside text: refused, or trained without."""

from __future__ import annotations

from typing import Any

import pytest
from format_rows import ANSWER, USER, WHERE, problems

from gptoss_ft.data.formats.common import PlacedItem, RowState
from gptoss_ft.data.formats.dialects import translated
from gptoss_ft.data.formats.media import WITHOUT, check_media
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import read_row
from gptoss_ft.harmony.messages import Message


def checked(row: dict[str, Any], *ignore: str) -> tuple[Any, RowState]:
    state = RowState(WHERE, ignore=frozenset(ignore))
    return check_media(row, state), state


def asked(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, ANSWER]}


@pytest.mark.parametrize(
    "row",
    [
        asked("What does <image> mean in SVG?"),
        asked("<image>?") | {"images": [], "audio": None},
        asked("An <img> tag") | {"url": "a"},
        # Articles have pictures too; nothing in the text stands for them.
        {"text": "a", "image_url": "https://example.org/a.png"},
    ],
)
def test_a_row_without_media_is_read_as_it_stands(row: dict[str, Any]) -> None:
    read, state = checked(row)
    assert read is row
    assert not state.problems
    assert not state.notes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("images", "<image>a"),
        ("image", "a"),
        ("Images", "a"),
        ("audios", "<audio>a"),
        ("audio", "a"),
        ("videos", "<video>a"),
        ("image_url", "<image>a"),
        ("image_path", "<|image|>a"),
    ],
)
def test_media_are_refused_with_the_choice(name: str, text: str) -> None:
    row = {**asked(text), name: ["a.jpg"]}
    _, state = checked(row)
    (problem,) = state.problems
    assert f"`{name}` is not text" in problem.what
    assert problem.mend == f"say 'data.ignore=[{name}]' to train the text without"
    read, state = checked(row, name)
    assert not state.problems
    assert state.notes == {WITHOUT: 1}
    assert read == {**asked("a"), name: ["a.jpg"]}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<image>What is it?", "What is it?"),
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("What is it? <image>", "What is it?"),
        ("<image><image>\n\nCompare.", "Compare."),
        ("In <image> a, in <image> b.", "In  a, in  b."),
        ("<|image_1|>\nWhat?", "What?"),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", "What?"),
        ("[IMG]What?", "What?"),
        ("  a [0] <b>c</b> ", "  a [0] <b>c</b> "),
    ],
)
def test_places_go_with_the_media(text: str, left: str) -> None:
    read, _ = checked({**asked(text), "images": ["a.jpg"]}, "images")
    assert read["messages"] == asked(left)["messages"]


def test_a_row_is_read_without_its_images() -> None:
    row = {**asked("<image>What is it?"), "images": ["a.jpg"]}
    ((what, key, mend),) = problems(row)
    assert ("`images` is not text" in what, key) == (True, "images")
    assert "'data.ignore=[images]'" in mend
    read = read_row(row, WHERE, Reading(ignore=frozenset(("images",))))
    assert read.example.messages[0] == Message("user", "What is it?")
    assert read.notes == {WITHOUT: 1}
    assert "images: ignored, as data.ignore says" in read.columns


def dialect(message: dict[str, Any], *ignore: str) -> tuple[Any, RowState]:
    state = RowState(WHERE, ignore=frozenset(ignore))
    ((_, read),) = translated([PlacedItem("messages[0]", message)], state)
    return read, state


@pytest.mark.parametrize(
    ("message", "place", "name"),
    [
        ({**USER, "images": ["a.jpg"]}, "images", "images"),
        (
            {"role": "user", "content": [{"type": "text", "text": "How warm?"}, {"type": "image"}]},
            "content[1]",
            "images",
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "a"}},
                    {"type": "text", "text": "How warm?"},
                ],
            },
            "content[0]",
            "images",
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": {"data": "a"}},
                    {"type": "text", "text": "How warm?"},
                ],
            },
            "content[0]",
            "audios",
        ),
    ],
)
def test_media_in_a_message(message: dict[str, Any], place: str, name: str) -> None:
    _, state = dialect(message)
    (problem,) = state.problems
    assert problem.where == f"{WHERE} messages[0].{place}"
    assert f"'data.ignore=[{name}]'" in problem.mend
    read, state = dialect(message, name)
    assert not state.problems
    assert state.notes == {WITHOUT: 1}
    assert read == {"role": "user", "content": USER["content"]}


def test_a_message_of_nothing_but_an_image_is_refused() -> None:
    _, state = dialect({"role": "user", "content": [{"type": "image"}]}, "images")
    (problem,) = state.problems
    assert "nothing is left" in problem.what
    assert "data.on_bad=drop" in problem.mend
