"""Rows of exports, traces and logs, each with one question and its answer."""

from __future__ import annotations

import json
from typing import Any

USER = {"role": "user", "content": "Tide?"}
SYSTEM = {"role": "system", "content": "One word."}
ANSWER = {"role": "assistant", "content": "High."}
TOOL = {"type": "function", "function": {"name": "tide_height", "parameters": {"type": "object"}}}
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
