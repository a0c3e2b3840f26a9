"""Exports of products, traces and logs of APIs: the messages that a row of each holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from format_rows import WHERE, problems

from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import ReadRow, read_row
from gptoss_ft.harmony.messages import Conversation, Message, Preference, ToolCall

USER = {"role": "user", "content": "Tide?"}
SYSTEM = {"role": "system", "content": "One word."}
ANSWER = {"role": "assistant", "content": "High."}
TOOL = {"type": "function", "function": {"name": "tide_height", "parameters": {"type": "object"}}}
QUESTION, HIGH = Message("user", "Tide?"), Message("assistant", "High.")
BRIEF = Message("system", "One word.")
CHOICES = [{"index": 0, "message": ANSWER | {"refusal": None}, "finish_reason": "stop"}]
HUMAN = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "HumanMessage"],
    "kwargs": {"content": "Tide?", "type": "human"},
}
AI = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain", "schema", "messages", "AIMessage"],
    "kwargs": {"content": "High.", "type": "ai", "response_metadata": {"model_name": "m"}},
}
GEMINI_USER = {"role": "user", "parts": [{"text": "Tide?"}]}
GEMINI_ANSWER = {"role": "model", "parts": [{"text": "High."}]}
ITEM = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "High."}],
}
SPAN_MESSAGE = "attributes.llm.input_messages"
ROWS: dict[str, dict[str, Any]] = {
    "langsmith run": {
        "id": "r",
        "run_type": "llm",
        "name": "ChatOpenAI",
        "inputs": {"messages": [[HUMAN]]},
        "outputs": {"generations": [[{"text": "High.", "message": AI}]], "llm_output": None},
        "extra": {"invocation_params": {"model": "m"}},
        "dotted_order": "x",
        "error": None,
    },
    "langsmith run of OpenAI": {
        "run_type": "llm",
        "inputs": json.dumps({"messages": [USER], "model": "m", "temperature": 0}),
        "outputs": json.dumps({"choices": CHOICES, "id": "c", "usage": {"total_tokens": 3}}),
    },
    "langsmith graph: the output repeats the input": {
        "inputs": {"messages": [USER]},
        "outputs": {"messages": [HUMAN, AI]},
    },
    "langsmith dataset": {"inputs": {"question": "Tide?"}, "outputs": {"answer": "High."}},
    "langsmith dataset of messages": {
        "inputs": {"messages": [USER]},
        "outputs": {"message": ANSWER},
        "metadata": {},
    },
    "langsmith dataset: output": {"inputs": {"input": "Tide?"}, "outputs": {"output": "High."}},
    "langfuse generation": {
        "id": "o",
        "traceId": "t",
        "type": "GENERATION",
        "name": "gen",
        "level": "DEFAULT",
        "input": [USER],
        "output": ANSWER,
    },
    "langfuse CSV": {
        "traceId": "t",
        "type": "GENERATION",
        "input": json.dumps([USER]),
        "output": json.dumps({"role": "assistant", "content": "High."}),
    },
    "langfuse: texts": {"traceId": "t", "type": "GENERATION", "input": "Tide?", "output": "High."},
    "langfuse: a list of answers": {"traceId": "t", "input": [USER], "output": [ANSWER]},
    "langfuse dataset": {"input": {"question": "Tide?"}, "expectedOutput": "High.", "status": "A"},
    "langfuse dataset, messages": {"input": [USER], "expected_output": {"answer": "High."}},
    "weave": {
        "id": "c",
        "op_name": "weave:///e/p/op/openai.chat.completions.create:v",
        "inputs": {"self": "weave:///x", "model": "m", "messages": [USER]},
        "output": {"choices": CHOICES, "object": "chat.completion"},
        "summary": {"usage": {}},
        "exception": None,
    },
    "phoenix": {
        "span_kind": "LLM",
        SPAN_MESSAGE: [{"message.role": "user", "message.content": "Tide?"}],
        "attributes.llm.output_messages": json.dumps(
            [{"message.role": "assistant", "message.content": "High."}]
        ),
    },
    "phoenix, nested": {
        "name": "ChatCompletion",
        "attributes": {
            "llm": {
                "input_messages": [{"message": USER}],
                "output_messages": [{"message": ANSWER}],
            }
        },
    },
    "stored completion": {"id": "c", "messages": [USER], "choices": CHOICES, "model": "m"},
    "litellm": {
        "request_id": "r",
        "call_type": "acompletion",
        "messages": [USER],
        "response": {"id": "c", "choices": CHOICES, "usage": {}},
        "spend": 0.1,
    },
    "messages and a text": {"messages": [USER], "response": "High."},
    "request and response": {
        "request": {"model": "m", "messages": [USER], "temperature": 1},
        "response": {"choices": CHOICES},
    },
    "request and response, JSON text": {
        "request_body": json.dumps({"messages": [USER], "stream": False}),
        "response_body": json.dumps({"choices": CHOICES}),
    },
    "request and response of HTTP": {
        "request": {"method": "POST", "url": "/v1", "body": {"messages": [USER]}},
        "response": {"status_code": 200, "body": {"choices": CHOICES}},
    },
    "request and response of Anthropic": {
        "request": {"model": "m", "max_tokens": 9, "messages": [USER]},
        "response": {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "High."}],
            "stop_reason": "end_turn",
        },
    },
    "request and response of Responses": {
        "request": {"model": "m", "input": "Tide?"},
        "response": {"object": "response", "output": [ITEM], "status": "completed"},
    },
    "request and response of Gemini": {
        "request": {"contents": [GEMINI_USER], "generationConfig": {"temperature": 1}},
        "response": {"candidates": [{"content": GEMINI_ANSWER, "finishReason": "STOP"}]},
        "status": "",
    },
    "request and response of Ollama": {
        "request": {"model": "m", "messages": [USER], "options": {"temperature": 0}},
        "response": {"model": "m", "message": ANSWER, "done": True, "done_reason": "stop"},
    },
    "bedrock log": {
        "schemaType": "ModelInvocationLog",
        "operation": "Converse",
        "modelId": "m",
        "input": {
            "inputContentType": "application/json",
            "inputBodyJson": {"messages": [{"role": "user", "content": [{"text": "Tide?"}]}]},
        },
        "output": {
            "outputBodyJson": {
                "output": {"message": {"role": "assistant", "content": [{"text": "High."}]}},
                "stopReason": "end_turn",
            }
        },
    },
    "gemini": {"contents": [GEMINI_USER, GEMINI_ANSWER]},
    "evals": {"input": [USER], "ideal": "High."},
    "claude": {
        "uuid": "c",
        "name": "Tide",
        "account": {"uuid": "a"},
        "chat_messages": [
            {"uuid": "1", "sender": "human", "text": "Tide?", "content": [], "files": []},
            {
                "uuid": "2",
                "sender": "assistant",
                "text": "High.",
                "content": [
                    {"type": "text", "text": "High.", "start_timestamp": "x", "citations": []}
                ],
            },
        ],
    },
}


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
    """What nobody reads is never lost, and the advice ends the complaint."""
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
    assert [note in line for line in notes] == [True]


BAD: list[tuple[dict[str, Any], str, str]] = [
    (ROWS["langsmith run"] | {"run_type": "chain"}, "run_type", "data.on_bad=drop"),
    (ROWS["langsmith run"] | {"error": "boom"}, "error", "data.on_bad=drop"),
    (ROWS["langfuse generation"] | {"type": "SPAN"}, "type", "data.on_bad=drop"),
    (ROWS["weave"] | {"exception": "boom"}, "exception", "data.on_bad=drop"),
    (
        {"inputs": {"question": "Tide?", "port": "Faro"}, "outputs": {"answer": "High."}},
        "inputs",
        "'data.columns={prompt: inputs.question, completion: outputs.answer}'",
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
    assert [where for _, where, _ in found] == [place]
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
