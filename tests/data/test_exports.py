"""Exports of products, traces and logs of APIs: the messages that a row of each holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from export_rows import ANSWER, CHOICES, GEMINI_ANSWER, GEMINI_USER, ROWS, SYSTEM, TOOL, USER
from format_rows import WHERE, problems

from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import ReadRow, read_row
from gptoss_ft.harmony.messages import Conversation, Message, Preference, ToolCall

QUESTION, HIGH = Message("user", "Tide?"), Message("assistant", "High.")
BRIEF = Message("system", "One word.")


def messages_of(row: Mapping[str, Any], **reading: Any) -> list[Message]:
    example = read(row, **reading).example
    assert isinstance(example, Conversation)
    return list(example.messages)


def read(row: Mapping[str, Any], **reading: Any) -> ReadRow:
    return read_row(row, WHERE, Reading(**reading))


@pytest.mark.parametrize("name", ROWS)
def test_a_question_and_its_answer(name: str) -> None:
    assert messages_of(ROWS[name]) == [QUESTION, HIGH]


@pytest.mark.parametrize("name", ROWS)
def test_a_column_with_a_meaning_is_refused_beside_each(name: str) -> None:
    """Nobody's column is lost, and the advice ends the complaint."""
    row = ROWS[name] | {"reservations": "Never at night."}
    found = problems(row)
    assert [(where, "data.ignore=[reservations]" in mend) for _, where, mend in found] == [
        ("reservations", True)
    ]
    assert messages_of(row, ignore=frozenset(("reservations",))) == [QUESTION, HIGH]


NESTED = [
    ("request and response", "request"),
    ("langfuse dataset", "input"),
    ("weave", "inputs"),
    ("weave", "output"),
    ("request and response of Gemini", "response"),
]


@pytest.mark.parametrize(("name", "column"), NESTED)
def test_a_key_with_a_meaning_is_refused_inside_each(name: str, column: str) -> None:
    row = ROWS[name]
    row = row | {column: row[column] | {"reservations": "Never at night."}}
    assert all("reservations" in f"{what} {mend}" or "data.columns" in mend
               for what, _, mend in problems(row))  # fmt: skip
    assert messages_of(row, ignore=frozenset(("reservations",))) == [QUESTION, HIGH]


CALL = ToolCall("tide_height", '{"port":"Faro"}', "c1")
OPENAI_CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "tide_height", "arguments": '{"port":"Faro"}'},
}


def test_system_tools_thinking_and_calls_come_along() -> None:
    row = {
        "request": {
            "messages": [SYSTEM, USER],
            "tools": [TOOL],
            "reasoning_effort": "low",
            "tool_choice": "auto",
        },
        "response": {
            "choices": [
                {
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "thinking": "Ask.",
                        "tool_calls": [OPENAI_CALL],
                    },
                    "finish_reason": "tool_calls",
                }
            ]
        },
    }
    example = read(row).example
    assert isinstance(example, Conversation)
    called = Message("assistant", thinking="Ask.", tool_calls=(CALL,))
    assert example.messages == (BRIEF, QUESTION, called)
    assert ([tool.name for tool in example.tools], example.effort) == (["tide_height"], "low")


PARTS = {"parts": [{"text": "One word."}]}
BLOCKS = [{"type": "text", "text": "One word."}]
CONTENTS = [GEMINI_USER, GEMINI_ANSWER]
SYSTEMS: list[dict[str, Any]] = [
    {"systemInstruction": PARTS, "contents": CONTENTS},
    {"system_instruction": "One word.", "contents": CONTENTS},
    {"schemaVersion": "x", "system": PARTS["parts"], "messages": [USER, ANSWER]},
    {
        "request": {"system": "One word.", "messages": [USER]},
        "response": {"content": [{"type": "text", "text": "High."}]},
    },
    {"request": {"system": BLOCKS, "messages": [USER]}, "response": {"choices": CHOICES}},
]


@pytest.mark.parametrize("row", SYSTEMS)
def test_the_system_message_comes_first(row: dict[str, Any]) -> None:
    assert messages_of(row) == [BRIEF, QUESTION, HIGH]


TOOLS: list[dict[str, Any]] = [
    {
        "toolConfig": {"tools": [TOOL]},
        "messages": [USER, ANSWER],
    },
    {
        "inputs": {"messages": [USER]},
        "outputs": ANSWER,
        "extra": {"invocation_params": {"tools": [TOOL]}},
    },
    {"traceId": "t", "input": {"messages": [USER], "tools": [TOOL]}, "output": ANSWER},
    {"traceId": "t", "input": [USER, {"role": "tool", "content": TOOL}], "output": ANSWER},
    {"messages": [USER], "model_parameters": {"tools": [TOOL]}, "response": {"choices": CHOICES}},
]


@pytest.mark.parametrize("row", TOOLS)
def test_tools_are_found_where_each_program_keeps_them(row: dict[str, Any]) -> None:
    example = read(row).example
    assert isinstance(example, Conversation)
    assert [tool.name for tool in example.tools] == ["tide_height"]
    assert example.messages == (QUESTION, HIGH)


def test_earlier_answers_of_a_request_are_not_trained_again() -> None:
    row = {"request": {"messages": [USER, ANSWER, USER]}, "response": {"choices": CHOICES}}
    assert [message.weight for message in messages_of(row)][1::2] == [0.0, 1.0]


def test_two_gemini_completions_are_a_pair() -> None:
    low = {"role": "model", "parts": [{"text": "Low."}]}
    completions = [{"score": 0, "completion": low}, {"score": 1, "completion": GEMINI_ANSWER}]
    example = read({"contents": [GEMINI_USER], "completions": completions}).example
    assert isinstance(example, Preference)
    assert (example.chosen, example.rejected) == ((HIGH,), (Message("assistant", "Low."),))


NOTED = [
    ({"choices": [*CHOICES, *CHOICES]}, "several answers"),
    ({"choices": [CHOICES[0] | {"finish_reason": "length"}]}, "limit of tokens"),
    ({"candidates": [{"content": GEMINI_ANSWER, "finishReason": "SAFETY"}]}, "filter"),
]


@pytest.mark.parametrize(("response", "note"), NOTED)
def test_what_became_of_an_answer_is_said(response: dict[str, Any], note: str) -> None:
    notes = read({"request": {"messages": [USER]}, "response": response}).notes
    told = [line for line in notes if "nothing to train" not in line]
    assert [note in line for line in told] == [True]


BAD: list[tuple[dict[str, Any], str, str]] = [
    (ROWS["weave"] | {"inputs": {"text": "Tide?"}, "output": "High."}, "inputs", "data.on_bad"),
    ({"custom_id": "1", "response": {"body": {"choices": CHOICES}}}, "custom_id", "custom_id"),
    (
        {"request": {"messages": [USER], "prompt": "Sea?"}, "response": {"choices": CHOICES}},
        "request",
        "data.ignore=[prompt]",
    ),
    (
        {"request": {"messages": [USER]}, "response": {"choices": CHOICES, "text": "Low."}},
        "response",
        "data.ignore=[text]",
    ),
    (
        {
            "request": {"messages": [USER]},
            "response": {"choices": [CHOICES[0] | {"train": False}]},
        },
        "response.choices[0].train",
        "data.ignore=[train]",
    ),
    (
        {"inputs": {"topic": "Tide", "port": "Faro"}, "outputs": {"a": "High.", "b": "Low."}},
        "inputs",
        "data.columns={prompt: inputs.port, completion: outputs.a}",
    ),
    (ROWS["langsmith run"] | {"run_type": "chain"}, "run_type", "data.on_bad=drop"),
    (ROWS["langsmith run"] | {"error": "boom"}, "error", "data.on_bad=drop"),
    (ROWS["langfuse generation"] | {"type": "SPAN"}, "type", "data.on_bad=drop"),
    (ROWS["weave"] | {"exception": "boom"}, "exception", "data.on_bad=drop"),
    (
        {"inputs": {"question": "Tide?", "port": "Faro"}, "outputs": {"answer": "High."}},
        "inputs",
        r'{prompt: "{inputs.question}\n\n{inputs.port}", completion: outputs.answer}',
    ),
    (
        {"input": [USER], "expected_output": "High.", "output": "Low."},
        "expected_output",
        "data.ignore=[output]",
    ),
    (
        {"request": {"messages": [USER]}, "response": {"error": {"message": "x"}}},
        "response",
        "data.on_bad=drop",
    ),
]


@pytest.mark.parametrize(("row", "place", "mend"), BAD)
def test_a_row_that_is_no_answer_is_refused(row: dict[str, Any], place: str, mend: str) -> None:
    found = problems(row)
    assert found[0][1] == place
    assert mend in found[0][2]


def test_a_prompt_of_a_batch_is_a_prompt() -> None:
    row = {"custom_id": "1", "method": "POST", "url": "/v1", "body": {"messages": [USER]}}
    example = read_row(row, WHERE, needs_answer=False).example
    assert isinstance(example, Conversation)
    assert example.messages == (QUESTION,)


def test_claude_attachments_are_read_and_files_refused() -> None:
    human = {
        "sender": "human",
        "text": "Tide?",
        "attachments": [{"file_name": "a.txt", "extracted_content": "Faro."}],
        "files": [{"file_name": "a.txt"}],
    }
    answer = {"sender": "assistant", "text": "High."}
    [asked, _] = messages_of({"chat_messages": [human, answer]})
    assert asked == Message("user", "Faro.\n\nTide?")
    row = {"chat_messages": [human | {"files": [{"file_name": "b.png"}]}, answer]}
    [(_, where, mend)] = problems(row)
    assert (where, "'data.ignore=[files,files_v2]'" in mend) == ("chat_messages[0].files", True)
    assert messages_of(row, ignore=frozenset(("files", "files_v2"))) == [asked, HIGH]


def test_claude_branches() -> None:
    def message(uuid: str, parent: str, sender: str, text: str) -> dict[str, Any]:
        return {"uuid": uuid, "parent_message_uuid": parent, "sender": sender, "text": text}

    row = {
        "chat_messages": [
            message("1", "0", "human", "Tide?"),
            message("2", "1", "assistant", "High."),
            message("3", "1", "assistant", "Low."),
        ]
    }
    assert messages_of(row) == [QUESTION, Message("assistant", "Low.")]
    assert messages_of(row | {"current_leaf_message_uuid": "2"}) == [QUESTION, HIGH]
