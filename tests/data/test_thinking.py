"""Thinking in tags and keys of other models and programs, as messages and as refusals."""

from __future__ import annotations

from typing import Any

import pytest
from format_rows import USER, WHERE, problems
from hypothesis import given
from hypothesis import strategies as st

from gptoss_ft.data.formats.common import PlacedItem, RowState
from gptoss_ft.data.formats.dialects import translated
from gptoss_ft.data.formats.thinking import (
    LEFT,
    LEFT_ANSWER,
    OPAQUE,
    UNWRAPPED,
    may_think,
    split_thinking,
    thinking_text,
)
from gptoss_ft.data.formats.thinking_names import (
    ANSWERS,
    DOUBTFUL,
    MESSAGE_KEYS,
    SURE,
    THINKING_KEYS,
)
from gptoss_ft.data.reading import parse, read_row
from gptoss_ft.harmony.messages import Message


def said(content: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": content, **keys}]}


def answer(row: dict[str, Any]) -> Message:
    return parse(row, WHERE).messages[-1]


@pytest.mark.parametrize(("opening", "closing"), SURE.items())
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_every_pair_of_tags_is_read_in_any_case(opening: str, closing: str, case: Any) -> None:
    if opening.startswith("<details"):
        opening = '<details type="reasoning" done="true">'
    else:
        opening, closing = case(opening), case(closing)
    for text in (f"{opening}why{closing}warm", f"\n{opening}\nwhy\n{closing}\n\nwarm"):
        assert answer(said(text)) == Message("assistant", "warm", "why")
    if not opening.startswith("<details"):
        inside = f"So {opening}why{closing} it is."
        assert read_row(said(inside), WHERE).notes == {LEFT: 1}


@pytest.mark.parametrize(("opening", "closing"), ANSWERS.items())
def test_every_wrapper_of_answers_is_taken_off_after_thinking(opening: str, closing: str) -> None:
    text = f"<think>why</think>\n{opening}\nwarm\n{closing}\n"
    read = read_row(said(text), WHERE)
    assert read.example.messages[-1] == Message("assistant", "warm", "why")
    assert read.notes == {UNWRAPPED: 1}
    alone = f"{opening}warm{closing}"
    assert answer(said(alone)) == Message("assistant", alone)


@pytest.mark.parametrize(("opening", "closing"), DOUBTFUL.items())
def test_doubtful_tags_are_thinking_only_before_a_wrapped_answer(
    opening: str, closing: str
) -> None:
    wrapped = f"{opening}why{closing}<answer>warm</answer>"
    assert answer(said(wrapped)) == Message("assistant", "warm", "why")
    text = f" {opening}why{closing} warm"
    read = read_row(said(text), WHERE)
    assert read.example.messages[-1] == Message("assistant", text)
    assert read.notes == {LEFT: 1}


@pytest.mark.parametrize(
    ("text", "thinking", "content", "notes"),
    [
        ("<think></think>warm", "", "warm", ()),
        ("<think>\n\n</think>\n\nwarm", "", "warm", ()),
        ("</think>\n\nwarm", "", "warm", ()),
        ("why\n</think>\n\nwarm", "why", "warm", ()),
        ("why</think>warm", "why", "warm", ()),
        ("why. </think>\nwarm", "why.", "warm", ()),
        ("why\n◁/think▷warm", "why", "warm", ()),
        ("why\n</think>\n<answer>warm</answer>", "why", "warm", (UNWRAPPED,)),
        ("<think>a</think>\n<think>b</think>\nwarm", "a\n\nb", "warm", ()),
        ("<think>a<think>b</think>c</think>warm", "a<think>b</think>c", "warm", ()),
        # Not a thought in a thought: the answer speaks of both tags.
        (
            "<think>say <think></think>use <think> and </think>",
            "say <think>",
            "use <think> and </think>",
            (LEFT,),
        ),
        (
            "<thinking>a<reflection>b</reflection></thinking><output>2</output>",
            "a<reflection>b</reflection>",
            "2",
            (UNWRAPPED,),
        ),
        ("<thinking>a</thinking><reflection>b</reflection>2", "a\n\nb", "2", ()),
        ("<Thought>\na\n</Thought>\n<Output>\n2\n</Output>", "a", "2", (UNWRAPPED,)),
        ('<think time="3">a</think>2', "a", "2", ()),
        ("<think>a</think>so <answer>2</answer>", "a", "so <answer>2</answer>", (LEFT_ANSWER,)),
        ("<think>a</think>2 <think>b</think>", "a", "2 <think>b</think>", (LEFT,)),
        ("<think>a</think>2 <think>", "a", "2 <think>", (LEFT,)),
        (
            '<details type="reasoning" done="true">\n<summary>Thought for 2 seconds</summary>\n'
            "> a\n> b\n</details>\n2",
            "a\nb",
            "2",
            (),
        ),
        # Texts that speak of the tags.
        ("The tag <think>a</think> opens it.", "", "The tag <think>a</think> opens it.", (LEFT,)),
        ("Close it with `</think>`.", "", "Close it with `</think>`.", (LEFT,)),
        ("Close it (</think>)", "", "Close it (</think>)", (LEFT,)),
        ("So:\n```\n</think>\n```\n", "", "So:\n```\n</think>\n```\n", (LEFT,)),
        ("<details>\na\n</details>\nb", "", "<details>\na\n</details>\nb", ()),
    ],
)
def test_texts_with_tags(text: str, thinking: str, content: str, notes: tuple[str, ...]) -> None:
    read = read_row(said(text), WHERE)
    assert read.example.messages[-1] == Message("assistant", content, thinking)
    assert read.notes == dict.fromkeys(notes, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 < 3 and [think",
        "<p>think</p>",
        "<table><th>a</th></table>",
        "a <b|c> [0] ◁",
        "<thinker>a</thinker>",
        "if (a<think) { }",
        "<answer>2</answer>",
        "x <output>2</output>",
    ],
)
def test_a_text_without_tags_of_thinking_is_unchanged(text: str) -> None:
    state = RowState(WHERE)
    assert split_thinking(text, "content", state) == ("", text)
    assert not state.problems
    assert not state.notes
    assert not may_think(text)


PIECES = ("<", ">", "</", "[", "]", "`", "think", "answer", "\n", " ", "a", "|", "◁", "▷", "<b>")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_nothing_of_a_text_is_lost(text: str) -> None:
    """Every word is in the thinking or in the answer, and a text without tags is unchanged."""
    state = RowState(WHERE)
    thinking, answer = split_thinking(text, "content", state)
    if not may_think(text):
        assert (thinking, answer) == ("", text)
    if not state.problems and UNWRAPPED not in state.notes:
        assert text.rstrip().endswith(answer.rstrip())
        assert thinking in text or "\n\n" in thinking


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<think>a", "<think> is not closed"),
        ("<THINKING>a</think>", "<THINKING> is not closed"),
        ("<|begin_of_thought|>a", "<|begin_of_thought|> is not closed"),
        ("<think>a</think><answer>2", "<answer> is not closed"),
        ("<think>a</think><think>b", "<think> is not closed"),
        ("the tag </think> ends it", "in the middle of a line"),
    ],
)
def test_tags_that_cannot_be_read_are_refused_with_the_way_out(text: str, what: str) -> None:
    for row, key in (
        (said(text), "messages[1].content"),
        ({"prompt": "a", "completion": text}, "completion"),
        ({"instruction": "a", "output": text}, "output"),
    ):
        ((found, where, mend),) = problems(row)
        assert (what in found, where) == (True, key)
        assert "data.on_bad=drop" in mend


def test_thinking_is_read_after_calls_and_before_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "warmth", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": "<think>a</think>", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "31"},
        {"role": "assistant", "content": "b\n</think>\n\nWarm."},
    ]
    _, called, _, last = parse({"messages": messages}, WHERE).messages
    assert (called.thinking, called.content) == ("a", "")
    assert last == Message("assistant", "Warm.", "b")


@pytest.mark.parametrize("key", sorted(MESSAGE_KEYS))
def test_every_key_of_messages(key: str) -> None:
    for name in (key, key.upper(), key.replace("_", "-")):
        assert answer(said("4", **{name: "why"})) == Message("assistant", "4", "why")
    for empty in (None, "", [], {}):
        assert answer(said("4", **{key: empty})) == Message("assistant", "4")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("why", "why"),
        ({"content": "why"}, "why"),
        ({"text": "why"}, "why"),
        ({"type": "thinking", "thinking": "why", "signature": "s"}, "why"),
        ([{"type": "reasoning.text", "text": "why", "index": 0}], "why"),
        ([{"type": "reasoning.summary", "summary": "why"}], "why"),
        ([{"text": "w", "index": 0}, {"text": "hy", "index": 0}], "why"),
        ([{"text": "a", "index": 0}, {"text": "b", "index": 1}], "a\n\nb"),
        (["a", "b"], "a\n\nb"),
        ("<think>\nwhy\n</think>", "why"),
        (False, ""),
        ([{"type": "reasoning.encrypted", "data": "…"}], ""),
    ],
)
def test_forms_of_thinking(value: Any, text: str) -> None:
    state = RowState(WHERE)
    assert thinking_text(value, "reasoning_details", state) == text
    assert not state.problems
    opaque = isinstance(value, list) and isinstance(value[0], dict) and "data" in value[0]
    assert state.notes == ({OPAQUE: 1} if opaque else {})


def test_columns_have_names_of_their_own_beside_those_of_messages() -> None:
    assert MESSAGE_KEYS < THINKING_KEYS
    assert {"complex_cot", "deepseek_thinking_trajectory"} < THINKING_KEYS - MESSAGE_KEYS
    assert "not read" in problems(said("4", Complex_CoT="why"))[0][0]


def test_two_that_say_the_same_are_one() -> None:
    details = [{"type": "reasoning.text", "text": "a\nb"}]
    row = said("<think>\na b\n</think>4", reasoning="a b", reasoning_details=details)
    assert answer(row) == Message("assistant", "4", "a b")


@pytest.mark.parametrize(
    ("message", "key", "what", "mend"),
    [
        (
            {"role": "assistant", "content": "4", "thought": "a", "cot": "b"},
            "messages[1]",
            "`thought` and `cot` are both thinking and differ",
            "'data.ignore=[thought]' or 'data.ignore=[cot]'",
        ),
        (
            {"role": "assistant", "content": "<think>a</think>4", "thought": "b"},
            "messages[1]",
            "differ",
            "'data.ignore=[thought]'",
        ),
        (
            {"role": "user", "content": "4", "reasoning": "a"},
            "messages[1].reasoning",
            "a user message cannot have `reasoning`",
            "move it to an assistant message",
        ),
        (
            {"role": "assistant", "content": "4", "reasoning": 3},
            "messages[1].reasoning",
            "not a text",
            "write a string",
        ),
    ],
)
def test_keys_that_are_refused(message: dict[str, Any], key: str, what: str, mend: str) -> None:
    row = {"messages": [USER, message, {"role": "assistant", "content": "a"}]}
    ((found, where, advice),) = problems(row)
    assert (what in found, where, mend in advice) == (True, key, True)


def test_keys_that_the_user_ignores_are_left_out_and_counted() -> None:
    state = RowState(WHERE, ignore=frozenset(("cot",)))
    message = {"role": "assistant", "content": "4", "thought": "a", "cot": "b"}
    ((_, read),) = translated([PlacedItem("messages[0]", message)], state)
    assert read == {"role": "assistant", "content": "4", "thinking": "a"}
    assert not state.problems
    assert list(state.notes) == ["key `cot` of messages ignored, as data.ignore says"]


HARMONY = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>4"


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("assistant", HARMONY),
        ("assistant", f"{HARMONY}<|return|>"),
        ("assistant", "4<|return|>"),
        ("assistant", "4<|end|>\n"),
        ("assistant", f"Well. <|end|>{HARMONY}"),
        ("user", "<|start|>user<|message|>2+2?<|end|>"),
        ("system", "<|start|>system<|message|>You are ChatGPT.<|end|>"),
    ],
)
def test_raw_harmony_in_a_message_is_refused(role: str, text: str) -> None:
    tail = {"role": "assistant", "content": "4"}
    row = {"messages": [USER, {"role": role, "content": text}, tail]}
    ((what, key, mend),) = problems(row)
    assert "raw Harmony" in what
    assert key == "messages[1].content"
    assert "data.format=harmony" in mend
    assert "data.on_bad=drop" in mend


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("assistant", "A message ends with <|end|>"),
        ("assistant", "It ends with `<|end|>`"),
        ("assistant", f"So:\n```\n<|start|>assistant{HARMONY}\n```\nDone."),
        ("user", "What is <|channel|>?"),
        ("user", "<|end|>"),
    ],
)
def test_texts_that_speak_of_special_tokens_are_read_and_counted(role: str, text: str) -> None:
    tail = {"role": "assistant", "content": "4"}
    read = read_row({"messages": [USER, {"role": role, "content": text}, tail]}, WHERE)
    assert read.example.messages[1] == Message(role, text)
    assert sum(read.notes.values()) == 1


def test_tags_inside_a_key_of_thinking_are_dropped() -> None:
    """They are no part of the thinking, however the rest is written."""
    answer = {"role": "assistant", "content": "High.", "thinking": "<think>By noon.</think>"}
    read = parse({"messages": [{"role": "user", "content": "Tide?"}, answer]}, "f:1")
    assert read.messages[1].thinking == "By noon."
