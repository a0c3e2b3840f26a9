"""Details of chats: builtin tools, inline thinking, nulls."""

from __future__ import annotations

from typing import Any

import pytest
from format_rows import ANSWER, RESULT, USER, WHERE, calling

from gptoss_ft.data.reading import parse
from gptoss_ft.harmony.messages import Conversation, Message, ToolCall


@pytest.mark.parametrize(
    "arguments",
    ["print(1)", {"code": "print(1)"}, '{"code": "print(1)"}', {"code": "print(1)", "n": None}],
)
def test_python_is_called_with_code(arguments: Any) -> None:
    row = {"messages": [USER, calling("python", arguments), RESULT, ANSWER]}
    read = parse(row | {"builtin_tools": ["python"]}, WHERE)
    assert isinstance(read, Conversation) and read.builtin_tools == ("python",)
    assert read.messages[1].tool_calls == (ToolCall("python", "print(1)", "c1", builtin=True),)
    assert read.messages[2] == Message("tool", "31", name="python", builtin=True)


@pytest.mark.parametrize("by", ["tool_call_id", "name"])
def test_browser_calls_keep_their_recipient(by: str) -> None:
    arguments = {"query": "warm", "topn": None}
    result = {"role": "tool", by: {"tool_call_id": "c1", "name": "browser.search"}[by]}
    messages = [USER, calling("browser.search", arguments), result | {"content": "31"}, ANSWER]
    read = parse({"messages": messages, "tools": [{"type": "web_search"}]}, WHERE)
    assert isinstance(read, Conversation) and read.builtin_tools == ("browser",)
    call = ToolCall("browser.search", '{"query":"warm"}', "c1", builtin=True)
    assert read.messages[1].tool_calls == (call,)
    assert read.messages[2] == Message("tool", "31", name="browser.search", builtin=True)


def test_builtin_tools_come_in_one_order() -> None:
    row = {"messages": [USER, ANSWER], "tools": [{"type": "python"}], "builtin_tools": ["browser"]}
    read = parse(row, WHERE)
    assert isinstance(read, Conversation) and read.builtin_tools == ("browser", "python")


def test_a_function_may_be_called_python_where_the_builtin_tool_is_not_declared() -> None:
    tool = {"type": "function", "function": {"name": "python"}}
    row = {"messages": [USER, calling("python", "{}"), RESULT, ANSWER], "tools": [tool]}
    read = parse(row, WHERE)
    assert isinstance(read, Conversation)
    assert read.messages[1].tool_calls == (ToolCall("python", "{}", "c1"),)
    qualified = {"messages": [USER, calling("functions.python", "{}")], "builtin_tools": ["python"]}
    read = parse(qualified, WHERE)
    assert isinstance(read, Conversation) and not read.messages[1].tool_calls[0].builtin


def test_thinking_at_the_start_of_the_content_is_split_off() -> None:
    content = "\n<think>\n31 is\nwarm\n</think>\n\nWarm. </think>"
    read = parse({"messages": [USER, {"role": "assistant", "content": content}]}, WHERE)
    assert isinstance(read, Conversation)
    assert read.messages[1] == Message("assistant", "Warm. </think>", "31 is\nwarm")
    inside = "The tag <think>a</think> opens it."
    read = parse({"messages": [USER, {"role": "assistant", "content": inside}]}, WHERE)
    assert isinstance(read, Conversation) and read.messages[1] == Message("assistant", inside)


def test_nulls_that_arrow_filled_into_schemas_are_left_out() -> None:
    def tool(properties: dict[str, Any]) -> dict[str, Any]:
        function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
        return {"type": "function", "function": function}

    def read(properties: dict[str, Any]) -> Any:
        example = parse({"messages": [USER, ANSWER], "tools": [tool(properties)]}, WHERE)
        assert isinstance(example, Conversation) and example.tools[0].parameters is not None
        return example.tools[0].parameters["properties"]

    meant = {"a": {"type": "string", "default": None, "enum": ["x", None]}}
    assert read(meant) == meant
    filled = {"a": {"type": "string", "default": None, "enum": None}, "b": None}
    assert read(filled) == {"a": {"type": "string"}}
