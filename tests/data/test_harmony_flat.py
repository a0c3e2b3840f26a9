"""Channels, recipients and content types on messages whose content is a text."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import parse, read_row
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Header, Message, ToolCall
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

RENDERER = Renderer(packaged_vocabulary(), RenderOptions())
USER = {"role": "user", "content": "Tide?"}
FINAL = {"role": "assistant", "channel": "final", "content": "3 m"}
CALL = {
    "role": "assistant",
    "channel": "commentary",
    "recipient": "functions.tide",
    "content_type": "<|constrain|>json",
    "content": '{"port":  "Faro"}',
}
RESULT = {
    "role": "tool",
    "name": "functions.tide",
    "channel": "commentary",
    "recipient": "assistant",
    "content": "3.1",
}


def said(channel: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "channel": channel, "content": text, **more}


def read(*messages: dict[str, Any], **columns: Any) -> Conversation:
    example = parse({"messages": list(messages), **columns}, "rows.jsonl:1")
    assert isinstance(example, Conversation)
    return example


def trained(*messages: dict[str, Any]) -> str:
    """The texts that are trained, from the last action's row."""
    row = RENDERER.render(read(*messages))[-1]
    return RENDERER.vocabulary.decode([label for label in row.labels if label >= 0])


START, COMMENTARY = "<|end|><|start|>assistant", "<|channel|>commentary<|message|>"
CALLED = ' to=functions.tide<|channel|>commentary <|constrain|>json<|message|>{"port":  "Faro"}'
ANSWER = "<|channel|>final<|message|>3 m<|return|>"


@pytest.mark.parametrize(
    ("messages", "target"),
    [
        ([said("analysis", "T"), FINAL], f"<|channel|>analysis<|message|>T{START}{ANSWER}"),
        ([said("commentary", "P"), FINAL], f"{COMMENTARY}P{START}{ANSWER}"),
        (
            [said("commentary", "P"), said("analysis", "T"), said("commentary", "Q"), FINAL],
            f"{COMMENTARY}P{START}<|channel|>analysis<|message|>T{START}{COMMENTARY}Q{START}{ANSWER}",
        ),
        ([CALL, RESULT, FINAL], f"{CALLED}<|call|>{ANSWER}"),
        ([said("commentary", "P"), CALL], f"{COMMENTARY}P{START}{CALLED}<|call|>"),
        ([CALL | {"content_type": "json"}], CALLED.replace("<|constrain|>", "") + "<|call|>"),
        ([CALL | {"content_type": None}], f"{CALLED}<|call|>"),
        ([CALL | {"recipient": "tide"}], f"{CALLED}<|call|>"),
        ([CALL | {"channel": None}], f"{CALLED}<|call|>"),
        (
            [CALL | {"content": [{"type": "text", "text": "{}"}], "content_type": None}],
            " to=functions.tide<|channel|>commentary<|message|>{}<|call|>",
        ),
        (
            [said("analysis", "1+1", recipient="python", content_type="code")],
            " to=python<|channel|>analysis code<|message|>1+1<|call|>",
        ),
        ([FINAL | {"recipient": "all"}], ANSWER),
        ([FINAL | {"content": "<think>"}], ANSWER.replace("3 m", "<think>")),
        ([{"role": "assistant", "content": "3 m"}, USER, FINAL], ANSWER * 2),
        ([said("final", "no", weight=0), USER, FINAL], ANSWER),
        (
            [{"role": None, "author": {"role": "assistant"}, "channel": "final", "content": "3 m"}],
            ANSWER,
        ),
    ],
)
def test_what_is_trained(messages: list[dict[str, Any]], target: str) -> None:
    assert trained(USER, *messages) == target


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (RESULT, Message("tool", "3.1", name="tide")),
        (RESULT | {"channel": None, "recipient": None}, Message("tool", "3.1", name="tide")),
        (RESULT | {"name": "tide"}, Message("tool", "3.1", name="tide")),
        (RESULT | {"name": None}, Message("tool", "3.1", name="tide")),
        (
            {"role": "functions.tide", "channel": "commentary", "content": "3.1"},
            Message("tool", "3.1", name="tide"),
        ),
        (
            {"role": "tool", "name": "functions.tide", "content": [{"type": "text", "text": "3"}]},
            Message("tool", "3", name="tide", header=Header("functions.tide")),
        ),
    ],
)
def test_results(result: dict[str, Any], message: Message) -> None:
    assert read(USER, CALL, result, FINAL).messages[2] == message


def test_parallel_calls_are_one_message_and_keep_their_text() -> None:
    second = CALL | {"content": '{"port": "Olhão"}'}
    calls = read(USER, said("analysis", "T"), CALL, second, RESULT, RESULT, FINAL).messages[1]
    assert calls == Message(
        "assistant",
        thinking="T",
        tool_calls=(ToolCall("tide", CALL["content"]), ToolCall("tide", second["content"])),
    )


def test_names_of_users_are_written() -> None:
    named = read(USER | {"name": "ana"}, FINAL)
    assert "<|start|>user:ana<|message|>Tide?" in RENDERER.vocabulary.decode(RENDERER.prompt(named))


SYSTEM_TEXT = "You are Faro.\n\nReasoning: high\n\n# Valid channels: analysis, final."


def test_a_whole_system_message_takes_the_place_of_ours() -> None:
    shown = RENDERER.prompt(read({"role": "system", "content": SYSTEM_TEXT}, USER, FINAL))
    assert RENDERER.vocabulary.decode(shown).startswith(
        f"<|start|>system<|message|>{SYSTEM_TEXT}<|end|><|start|>user"
    )


def test_a_system_prompt_is_instructions_as_in_any_chat() -> None:
    first = read({"role": "system", "content": "Be brief."}, USER, FINAL).messages[0]
    assert first == Message("system", "Be brief.")


def system(**lines: Any) -> dict[str, Any]:
    return {"role": "system", "content": [{"type": "system_content", **lines}]}


TOOLS = {"functions": {"name": "functions", "tools": [{"name": "tide", "description": ""}]}}
DEVELOPER = {"role": "developer", "content": [{"type": "developer_content", "tools": TOOLS}]}
OTHER = [{"type": "function", "function": {"name": "wind"}}]


@pytest.mark.parametrize(
    ("messages", "columns", "what", "mend"),
    [
        ([said("sms", "x")], {}, "unknown channel", "data.ignore=[channel]"),
        ([FINAL | {"recipient": "user"}], {}, "not a tool", "delete it"),
        ([FINAL | {"recipient": "functions.f"}], {}, "a call in the final", '"commentary"'),
        ([CALL | {"content": "{"}], {}, "the arguments are not JSON", "`weight` to 0"),
        ([CALL | {"recipient": "a b"}], {}, "no part of a Harmony header", "[recipient]"),
        ([FINAL | {"content": ""}], {}, "answer is empty", "delete the message"),
        ([FINAL | {"mood": "x"}], {}, "not read: `mood`", "data.ignore=[mood]"),
        ([said("analysis", "x")], {}, "ends in thinking", "write the answer"),
        ([said("commentary", "x")], {}, "ends in thinking", "write the answer"),
        ([system(), FINAL], {}, "not the first message", "first message"),
        ([DEVELOPER, FINAL], {"tools": OTHER}, "gives its tools twice", "keep one"),
    ],
)
def test_what_is_refused(
    messages: list[dict[str, Any]], columns: dict[str, Any], what: str, mend: str
) -> None:
    with pytest.raises(DataError) as error:
        read(USER, *messages, **columns)
    assert any(what in p.what and mend in p.mend for p in error.value.problems), error.value


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ({"reasoning_effort": "Max"}, "unknown reasoning effort"),
        ({"model_identity": 1}, "`model_identity` is not a text"),
        ({"voice": "warm"}, "not read: `voice`"),
        ({"channel_config": ["final"]}, "not the config of channels"),
        ({"tools": {"python": {"name": "other", "tools": []}}}, "not a namespace"),
    ],
)
def test_broken_system_contents_are_refused(lines: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        read(system(**lines), USER, FINAL)


def test_an_effort_in_the_row_and_another_in_the_message_are_refused() -> None:
    with pytest.raises(DataError, match="effort twice"):
        read(system(reasoning_effort="HIGH"), USER, FINAL, reasoning_effort="low")


def test_ignored_channels_are_left_out() -> None:
    row = {"messages": [USER, {"role": "assistant", "channel": "sms", "content": "x"}]}
    found = read_row(row, "rows.jsonl:1", Reading(ignore=frozenset(["channel"])))
    assert found.example == Conversation((Message("user", "Tide?"), Message("assistant", "x")))
