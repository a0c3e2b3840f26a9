"""OpenAI chat rows: what is read, and every way a row can be bad."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gptoss_ft.data.reading import parse
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Message, ToolCall, ToolSpec

WHERE = "chats.jsonl:12"
USER = {"role": "user", "content": "How warm is it?"}
ANSWER = {"role": "assistant", "content": "Warm."}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "warmth", "parameters": SCHEMA}}
CALL = {"id": "c1", "type": "function", "function": {"name": "warmth", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "31"}


def row(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


def problems(bad: dict[str, Any], **options: Any) -> list[tuple[str, str, str, str]]:
    with pytest.raises(DataError) as caught:
        parse(bad, WHERE, "chat", **options)
    found = caught.value.problems
    assert all(p.where.startswith(WHERE) for p in found)
    return [(p.what, p.where.removeprefix(WHERE).strip(), p.found, p.mend) for p in found]


def test_a_full_row_is_read() -> None:
    arguments = {"city": "São Paulo", "days": [1, 2]}
    second = {"id": "c2", "type": "function", "function": {"name": "wind", "arguments": arguments}}
    read = parse(
        row(
            {"role": "system", "content": "Be brief."},
            USER,
            {
                "role": "assistant",
                "content": "Looking.",
                "thinking": "ask",
                "tool_calls": [CALL, second],
                "weight": 0,
            },
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "calm"}]},
            RESULT,
            {"role": "assistant", "content": "Warm.", "reasoning_content": "31", "weight": 0.5},
            tools=[TOOL],
            reasoning_effort="high",
        ),
        WHERE,
        "chat",
    )
    made = (ToolCall("warmth", "{}", "c1"),)
    made += (ToolCall("wind", '{"city":"São Paulo","days":[1,2]}', "c2"),)
    assert read == Conversation(
        (
            Message("system", "Be brief."),
            Message("user", "How warm is it?"),
            Message("assistant", "Looking.", "ask", made, weight=0.0),
            Message("tool", "calm", name="wind"),
            Message("tool", "31", name="warmth"),
            Message("assistant", "Warm.", "31", weight=0.5),
        ),
        (ToolSpec("warmth", "", SCHEMA),),
        "high",
    )


def test_text_parts_are_joined_and_harmless_keys_ignored() -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "warm?"}]
    harmless = {"refusal": None, "audio": None, "function_call": None, "annotations": [], "id": "m"}
    read = parse(
        row(
            {"role": "user", "content": parts, "name": "ana"},
            ANSWER | harmless,
            source="somewhere",
        ),
        WHERE,
        "chat",
    )
    assert read.messages == (Message("user", "How warm?"), Message("assistant", "Warm."))


def test_a_result_may_name_its_function_and_ids_may_be_used_again() -> None:
    other = copy.deepcopy(CALLING)
    other["tool_calls"][0]["function"]["name"] = "functions.wind"
    by_name = {"role": "tool", "name": "warmth", "content": "31"}
    read = parse(row(USER, CALLING, RESULT, CALLING, by_name, other, RESULT, ANSWER), WHERE)
    assert [m.name for m in read.messages if m.role == "tool"] == ["warmth", "warmth", "wind"]


def test_thinking_may_stand_in_a_message_of_its_own() -> None:
    read = parse(row(USER, {"role": "assistant", "thinking": "31"}, ANSWER), WHERE)
    assert read.messages[1] == Message("assistant", thinking="31")


def test_broken_json_in_arguments_may_stand_in_untrained_history() -> None:
    wrong = copy.deepcopy(CALLING)
    wrong["tool_calls"][0]["function"]["arguments"] = "{city: Rome}"
    assert "the arguments are not JSON" in problems(row(USER, wrong))[0][0]
    read = parse(row(USER, wrong | {"weight": 0}, RESULT, ANSWER), WHERE)
    assert read.messages[1].tool_calls[0].arguments == "{city: Rome}"


def test_prompts_need_no_answer_when_asked() -> None:
    assert problems(row(USER))[0][0] == "the row is all prompt: no assistant message"
    assert parse(row(USER), WHERE, "chat", needs_answer=False).messages[0].role == "user"


def called(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "c1", "function": function}]}


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "no `messages`"),
    ({"mesages": [USER]}, "", "no `messages`"),
    ({"messages": "Hi"}, "messages", "not a list"),
    ({"messages": []}, "messages", "is empty"),
    (row("Hi", ANSWER), "messages[0]", "not an object"),
    (row({"content": "a"}, ANSWER), "messages[0].role", "has no role"),
    (row({"role": "robot", "content": "a"}, ANSWER), "messages[0].role", "unknown role"),
    (row({"role": ["user"], "content": "a"}, ANSWER), "messages[0].role", "unknown role"),
    (row({"role": "function", "content": "a"}, ANSWER), "messages[0]", "answers no call"),
    (row({"role": "user"}, ANSWER), "messages[0].content", "no content"),
    (row({"role": "user", "content": 3}, ANSWER), "messages[0].content", "not a text"),
    (row({"role": "user", "content": "\ud83d"}, ANSWER), "messages[0].content", "surrogate"),
    (row(USER, {"role": "assistant"}), "messages[1]", "no content, no thinking"),
    (row(USER, {"role": "assistant", "content": ""}), "messages[1]", "no content, no thinking"),
    (row(USER, {"role": "assistant", "thinking": "a"}), "messages[1]", "ends in thinking"),
    (row(USER, {"role": "assistant", "thinking": "a"}, USER, ANSWER), "messages[1]", "ends in"),
    (row(USER, ANSWER | {"thinking": 3}), "messages[1].thinking", "not a text"),
    (row(USER, ANSWER | {"thinking": "a", "reasoning_content": "b"}), "messages[1]", "differ"),
    (row(USER | {"thinking": "a"}, ANSWER), "messages[0].thinking", "cannot have"),
    (row(USER | {"tool_calls": [CALL]}, ANSWER), "messages[0].tool_calls", "cannot have"),
    (row(USER | {"weight": 1}, ANSWER), "messages[0].weight", "cannot be trained"),
    (row(USER, ANSWER | {"weight": -1}), "messages[1].weight", "out of range"),
    (row(USER, ANSWER | {"weight": float("nan")}), "messages[1].weight", "out of range"),
    (row(USER, ANSWER | {"weight": "much"}), "messages[1].weight", "number"),
    (row(USER, ANSWER | {"refusal": "No."}), "messages[1].refusal", "not read"),
    (row(USER, ANSWER | {"function_call": {"n": 1}}), "messages[1].function_call", "not a call"),
    (row(USER, ANSWER | {"tool_call_id": "c1"}), "messages[1].tool_call_id", "answers no call"),
    (row(USER, ANSWER | {"wieght": 0}), "messages[1].wieght", "not read: `wieght`"),
    (row(USER, ANSWER | {"my_note": "a"}), "messages[1].my_note", "not read: `my_note`"),
    (row(USER, ANSWER | {"tool_calls": {}}), "messages[1].tool_calls", "not a list"),
    (row(USER, ANSWER | {"tool_calls": [{}]}), "messages[1].tool_calls[0]", "without `function`"),
    (row(USER, called(arguments={})), "messages[1].tool_calls[0].function.name", "no name"),
    (
        row(USER, called(name="a<b", arguments={})),
        "messages[1].tool_calls[0].function.name",
        "not a function name",
    ),
    (
        row(USER, called(name="f", arguments=5)),
        "messages[1].tool_calls[0].function.arguments",
        "neither an object nor a text",
    ),
    (
        row(USER, called(name="f")),
        "messages[1].tool_calls[0].function.arguments",
        "neither an object nor a text",
    ),
    (row(USER, RESULT, ANSWER), "messages[1].tool_call_id", "was not made before it"),
    (row(USER, {"role": "tool", "content": "31"}, ANSWER), "messages[1]", "answers no call"),
    (
        row(USER, CALLING, RESULT | {"tool_call_id": "c9"}, ANSWER),
        "messages[2].tool_call_id",
        "was not made before it",
    ),
    (
        row(USER, CALLING, RESULT | {"tool_call_id": ["c1"]}, ANSWER),
        "messages[2].tool_call_id",
        "was not made before it",
    ),
    (
        row(USER, CALLING, {"role": "tool", "name": "wind", "content": "1"}, ANSWER),
        "messages[2].name",
        "was not made before it",
    ),
    (row(USER), "messages", "all prompt"),
    (row(USER, ANSWER, reasoning_effort="max"), "reasoning_effort", "unknown reasoning effort"),
    (row(USER, ANSWER, tools=3), "tools", "not a list"),
    (row(USER, ANSWER, tools=[{"nme": "f"}]), "tools[0]", "not a function tool"),
    (
        row(USER, ANSWER, tools=[{"function": {"strict": True}}]),
        "tools[0].function.name",
        "the tool has no name",
    ),
    (
        row(USER, ANSWER, tools=[{"function": {"name": "f", "description": 3}}]),
        "tools[0].function.description",
        "not a text",
    ),
    (
        row(USER, ANSWER, tools=[{"function": {"name": "f", "parameters": 3}}]),
        "tools[0].function.parameters",
        "not a JSON schema",
    ),
]


@pytest.mark.parametrize(("bad", "where", "what"), BAD)
def test_a_bad_row_is_refused_with_its_place(bad: dict[str, Any], where: str, what: str) -> None:
    found = problems(bad)
    assert len(found) == 1
    assert found[0][1] == where
    assert what in found[0][0]
    assert found[0][3], "every problem says how to mend it"


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "image_url", "image_url": {"url": "x.png"}}, "image_url"),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "text", "text": None}, "not a text part"),
    ],
)
def test_other_parts_than_text_are_refused_by_name(part: Any, named: str) -> None:
    ((what, where, _, mend),) = problems(
        row({"role": "user", "content": [{"type": "text", "text": "See:"}, part]}, ANSWER)
    )
    assert named in what and where == "messages[0].content[1]" and mend


def test_all_problems_of_a_row_are_reported() -> None:
    found = problems(
        row(
            {"role": "robot", "content": "a"},
            {"role": "assistant", "content": "b", "weigth": 1},
            {"role": "tool", "content": "c"},
            reasoning_effort="max",
        )
    )
    assert [where for _, where, _, _ in found] == [
        "reasoning_effort",
        "messages[2]",
        "messages[0].role",
        "messages[1].weigth",
    ]


def test_the_mend_names_the_nearest_key() -> None:
    ((_, _, _, mend),) = problems(row(USER, ANSWER | {"wieght": 1}))
    assert mend.startswith("did you mean `weight`? ") and "'data.ignore=[wieght]'" in mend


def test_a_broken_call_does_not_make_its_result_a_second_problem() -> None:
    broken = called(name="f", arguments=3)
    assert len(problems(row(USER, broken, RESULT, ANSWER))) == 1
