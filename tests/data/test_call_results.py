"""Turns of calls, results without ids, and calls that do not fit their declaration."""

from __future__ import annotations

from typing import Any

import pytest
from call_rows import (
    CALL,
    DONE,
    FARO,
    FARO_TEXT,
    LAGOS,
    LAGOS_TEXT,
    TIDE,
    UNDECLARED,
    calls_of,
    problem,
    read,
    said,
    turn,
)

from gptoss_ft.harmony.messages import Message


@pytest.mark.parametrize("who", ["function_call", "tool_call", "function-call", "Tool_Calls"])
@pytest.mark.parametrize("value", [FARO_TEXT, FARO, [FARO], {"function": FARO}, str(FARO)])
def test_a_turn_of_calls_joins_the_text_before_it(who: str, value: Any) -> None:
    messages, _ = read(turn("gpt", "Looking."), turn(who, value), turn("observation", "31"), DONE)
    assert [(m.role, m.content, calls_of(m), m.name) for m in messages] == [
        ("assistant", "Looking.", [CALL], ""),
        ("tool", "31", [], "tide"),
        ("assistant", "3.1 m", [], ""),
    ]
    weighed, _ = read(turn("gpt", "Looking."), turn(who, value, weight=0), turn("tool", "31"), DONE)
    assert [(m.content, m.weight) for m in weighed[:2]] == [("Looking.", 1.0), ("", 0.0)]


def results(*messages: Any) -> list[tuple[str, str]]:
    return [(m.name, m.content) for m in read(*messages)[0] if m.role == "tool"]


PAIR = said("", tool_calls=[{"id": "a", "function": FARO}, {"id": "b", "function": LAGOS}])
TEXT_PAIR = said(f"<tool_call>{FARO_TEXT}</tool_call><tool_call>{LAGOS_TEXT}</tool_call>")
TURNS = turn("function_call", [FARO, LAGOS])
RESPONSES = "<tool_response>\n31\n</tool_response>\n<tool_response>calm</tool_response>"
ORDERED = [("tide", "31"), ("wind", "calm")]


@pytest.mark.parametrize(
    "messages",
    [
        (PAIR, {"role": "tool", "content": "31"}, {"role": "tool", "content": "calm"}, DONE),
        (
            PAIR,
            {"role": "tool", "content": "calm", "tool_call_id": "b"},
            {"role": "tool", "content": "31"},
            DONE,
        ),
        (
            PAIR,
            {"role": "function", "name": "wind", "content": "calm"},
            {"role": "function", "name": "tide", "content": "31"},
            DONE,
        ),
        (TURNS, turn("tool", "31"), turn("observation", "calm"), DONE),
        (TURNS, turn("observation", '[31, "calm"]'), DONE),
        (
            TURNS,
            turn("tool", RESPONSES),
            DONE,
        ),
        (TEXT_PAIR, turn("tool", "31"), turn("tool", "calm"), DONE),
        (
            TEXT_PAIR,
            turn("user", RESPONSES),
            DONE,
        ),
        (
            TEXT_PAIR,
            turn("user", "<tool_response>31</tool_response>"),
            turn("user", "EXECUTION RESULT of [wind]:\ncalm"),
            DONE,
        ),
        (
            turn("function_call", FARO),
            turn("function_call", LAGOS),
            turn("tool", "31"),
            turn("tool", "calm"),
            DONE,
        ),
    ],
)  # fmt: skip
def test_results_find_their_calls(messages: tuple[Any, ...]) -> None:
    assert sorted(results(*messages)) == ORDERED


def test_the_elements_of_one_result_stay_as_they_are_written() -> None:
    listed = '[{"m": 3.10, "at": [1, 2]}, "calm"]'
    messages, notes = read(TURNS, turn("tool", listed), DONE)
    assert [m.content for m in messages[1:3]] == ['{"m": 3.10, "at": [1, 2]}', "calm"]
    assert notes == {"one result for several calls: a list, split into its elements": 1}
    one, _ = read(turn("function_call", FARO), turn("tool", '[{"m": 3}]'), DONE)
    assert one[1].content == '[{"m": 3}]'


def test_what_a_user_says_with_a_result_stays_the_users() -> None:
    text = "<tool_response>31</tool_response>\nAnd now?"
    messages, _ = read(said(f"<tool_call>{FARO_TEXT}</tool_call>"), turn("user", text), DONE)
    assert [(m.role, m.content) for m in messages[1:3]] == [("tool", "31"), ("user", "And now?")]
    plain, _ = read(said("Hello."), turn("user", text), DONE)
    assert plain[1] == Message("user", text)


@pytest.mark.parametrize(
    ("content", "text", "note"),
    [
        ({"m": 3.1, "x": None}, '{"m":3.1}', "results of tools that are objects: written as JSON"),
        ([1, 2], "[1,2]", "results of tools that are objects: written as JSON"),
        (3, "3", "results of tools that are objects: written as JSON"),
        (None, "", "results of tools without content: read as empty"),
    ],
)
def test_results_that_are_no_text_are_written_as_json(content: Any, text: str, note: str) -> None:
    result = {"role": "tool", "tool_call_id": "a", "content": content}
    other = {"role": "tool", "tool_call_id": "b", "content": "calm"}
    messages, notes = read(PAIR, result, other, DONE)
    assert messages[1].content == text and notes == {note: 1}


BAD: list[tuple[tuple[Any, ...], str, str]] = [
    ((turn("tool", "31"), DONE), "messages[1]", "answers no call"),
    ((TURNS, turn("tool", "31"), DONE), "messages[2]", "fewer results than calls"),
    ((TURNS, turn("tool", "[1, 2, 3]"), DONE), "messages[2]", "fewer results than calls"),
    (
        (turn("function_call", FARO), turn("tool", "1"), turn("tool", "2"), DONE),
        "messages[3]",
        "answers no call",
    ),
    ((turn("function_call", "f()"), turn("tool", "1"), DONE), "messages[1]", "not a call"),
    ((turn("function_call", "[]"), DONE), "messages[1]", "holds no call"),
    ((turn("function_call", [FARO, 3]), DONE), "messages[1]", "not a call"),
    ((said("", function_call="look"), DONE), "messages[1].function_call", "not a call"),
    (
        (said("", function_call=FARO, tool_calls=[{"function": LAGOS}]),),
        "messages[1].function_call",
        "`function_call` and `tool_calls` are both given",
    ),
    (
        (said("", tool_calls=[{"function": FARO, "output": "31"}]),),
        "messages[1].tool_calls[0].output",
        "carries meaning that is not read",
    ),
    (
        (turn("function_call", '{"name": "tide", "arguments": "{"}'),),
        "messages[1].tool_calls[0].function.arguments",
        "not JSON",
    ),
    (
        (said("", tool_calls=[{"function": {"name": "tide", "arguments": ""}}]),),
        "messages[1].tool_calls[0].function.arguments",
        "not JSON",
    ),
]


@pytest.mark.parametrize(("messages", "where", "what"), BAD)
def test_calls_and_results_that_do_not_fit_are_refused(
    messages: tuple[Any, ...], where: str, what: str
) -> None:
    found, place, mend = problem(*messages)
    assert what in found and place == where and mend


NOTED: list[tuple[str, Any, str, str]] = [
    ("tide", '"{\\"port\\": \\"Faro\\"}"', '{"port": "Faro"}', "arguments of calls encoded twice: "
     "one encoding taken off"),
    ("tide", '["Faro"]', '["Faro"]', "arguments of calls that are JSON, but no object: trained as "
     "they stand"),
    ("sail", {"to": "Faro"}, '{"to":"Faro"}', UNDECLARED),
    ("tide", {"hours": 3}, '{"hours":3}', "calls without arguments that their tool requires"),
    ("tide", {"port": "a", "x": 1}, '{"port":"a","x":1}', "calls with arguments that their "
     "tool does not declare"),
    ("wind", "", "{}", "calls without arguments: written with `{}`"),
    ("wind", None, "{}", "calls without arguments: written with `{}`"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "text", "note"), NOTED)
def test_calls_that_do_not_fit_their_declaration_are_counted(
    name: str, given: Any, text: str, note: str
) -> None:
    call = {"id": "a", "type": "function", "function": {"name": name, "arguments": given}}
    (message,), notes = read(said("", tool_calls=[call]))
    assert calls_of(message) == [(name, text)] and notes == {note: 1}


def test_calls_of_a_row_without_tools_are_counted() -> None:
    _, notes = read(turn("function_call", FARO), turn("tool", "31"), DONE, tools=None)
    assert notes == {UNDECLARED: 1}


def test_blanks_in_names_become_underscores_in_tools_calls_and_results() -> None:
    tool = {**TIDE, "name": "Tide Height"}
    call = said('[Tide Height(port="Faro")]')
    messages, notes = read(
        call, {"role": "tool", "name": "Tide Height", "content": "3"}, DONE, tools=[tool]
    )
    assert calls_of(messages[0]) == [("Tide_Height", CALL[1])]
    assert messages[1].name == "Tide_Height"
    assert list(notes) == ["names of tools with blanks: written with `_`"]
