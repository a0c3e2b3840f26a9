"""Messages of parts, in every API's way of writing them, and what they are."""

from __future__ import annotations

from typing import Any

from gptoss_ft.harmony.messages import Message, ToolCall

ASKED = {"role": "user", "content": "Tide?"}
QUESTION = Message("user", "Tide?")
HIGH = Message("assistant", "High.")
CALL = ToolCall("tide_height", '{"port":"Faro"}', "c1")
NAMELESS = ToolCall("tide_height", '{"port":"Faro"}')
GOT = Message("tool", "3.1", name="tide_height")
FARO = {"port": "Faro"}
ANTHROPIC_CALL = {"type": "tool_use", "id": "c1", "name": "tide_height", "input": FARO}
THOUGHT = {"type": "thinking", "thinking": "Ask.", "signature": "x"}
BEDROCK_CALL = {"toolUse": {"toolUseId": "c1", "name": "tide_height", "input": FARO}}
BEDROCK_THOUGHT = {"reasoningContent": {"reasoningText": {"text": "Ask.", "signature": "x"}}}
VERCEL_RUN = {"state": "result", "toolCallId": "c1", "toolName": "tide_height", "args": FARO}
LANGCHAIN_CALL = {"name": "tide_height", "args": FARO, "id": "c1", "type": "tool_call"}


def said(*parts: Any, role: str = "assistant", **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": list(parts), **keys}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def lc(name: str, **kwargs: Any) -> dict[str, Any]:
    path = ["langchain_core", "messages", name]
    return {"lc": 1, "type": "constructor", "id": path, "kwargs": kwargs}


def result(content: Any, **keys: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "c1", "content": content, **keys}


def bedrock_result(*content: Any, **keys: Any) -> dict[str, Any]:
    return {"toolResult": {"toolUseId": "c1", "content": list(content), **keys}}


CALLED = Message("assistant", "Let me look.", "Ask.", (CALL,))
PLAIN_CALL = Message("assistant", tool_calls=(CALL,))
TABLE: dict[str, tuple[list[Any], list[Message]]] = {
    "anthropic": (
        [
            ASKED,
            said(THOUGHT, text("Let me look."), ANTHROPIC_CALL),
            said(result("3.1"), role="user"),
            said(text("High.")),
        ],
        [QUESTION, CALLED, GOT, HIGH],
    ),
    "anthropic: words beside the result": (
        [
            ASKED,
            said(ANTHROPIC_CALL),
            said(result([text("3"), text(".1")], is_error=False), text("Well?"), role="user"),
            said(
                text(
                    "High.",
                )
            ),
        ],
        [QUESTION, PLAIN_CALL, GOT, Message("user", "Well?"), HIGH],
    ),
    "anthropic: redacted": (
        [ASKED, said({"type": "redacted_thinking", "data": "x"}, text("High."))],
        [QUESTION, HIGH],
    ),
    "anthropic: a whole response": (
        [
            ASKED,
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [{"type": "text", "text": "High.", "citations": [{"url": "u"}]}],
                "stop_reason": "end_turn",
                "usage": {"output_tokens": 2},
            },
        ],
        [QUESTION, HIGH],
    ),
    "a call inside the assistant's own message": (
        [ASKED, said(THOUGHT, text("Let me look."), ANTHROPIC_CALL, result("3.1"), text("High."))],
        [QUESTION, CALLED, GOT, HIGH],
    ),
    "bedrock": (
        [
            said({"text": "Tide?"}, role="user"),
            said(BEDROCK_THOUGHT, {"text": "Let me look."}, BEDROCK_CALL),
            said(bedrock_result({"text": "3.1"}, status="success"), role="user"),
            said({"text": "High."}),
        ],
        [QUESTION, CALLED, GOT, HIGH],
    ),
    "bedrock: JSON": (
        [
            ASKED,
            said(BEDROCK_CALL),
            said(bedrock_result({"json": {"m": 3.1}}), role="user"),
            said({"text": "High."}, {"cachePoint": {"type": "default"}}),
        ],
        [QUESTION, PLAIN_CALL, GOT._replace(content='{"m": 3.1}'), HIGH],
    ),
    "gemini": (
        [
            {"role": "user", "parts": [{"text": "Tide?"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "Ask.", "thought": True},
                    {"text": "Let me look.", "thoughtSignature": "x"},
                    {"functionCall": {"name": "tide_height", "args": FARO}},
                ],
            },
            {
                "role": "user",
                "parts": [{"functionResponse": {"name": "tide_height", "response": {"m": 3}}}],
            },
            {"role": "model", "parts": [{"text": "Hi"}, {"text": "gh."}]},
        ],
        [
            QUESTION,
            CALLED._replace(tool_calls=(NAMELESS,)),
            GOT._replace(content='{"m": 3}'),
            HIGH,
        ],
    ),
    "gemini: role function, snake case": (
        [
            {"role": "user", "parts": [{"text": "Tide?"}]},
            {"role": "model", "parts": [{"function_call": {"name": "tide_height", "args": FARO}}]},
            {
                "role": "function",
                "parts": [{"function_response": {"name": "tide_height", "response": "3.1"}}],
            },
            {"role": "model", "parts": ["High."]},
        ],
        [QUESTION, PLAIN_CALL._replace(tool_calls=(NAMELESS,)), GOT, HIGH],
    ),
    "openai: parts of three names": (
        [
            said({"type": "input_text", "text": "Tide?"}, role="user"),
            said({"type": "output_text", "text": "High.", "annotations": [], "logprobs": []}),
        ],
        [QUESTION, HIGH],
    ),
    "openai: threads": (
        [
            said({"type": "text", "text": {"value": "Tide?", "annotations": []}}, role="user"),
            said(
                {"type": "text", "text": {"value": "High.", "annotations": [{"type": "x"}]}},
                object="thread.message",
                thread_id="t",
                assistant_id="a",
            ),
        ],
        [QUESTION, HIGH],
    ),
    "langchain: dicts": (
        [
            {"type": "human", "data": {"content": "Tide?", "type": "human", "example": False}},
            {
                "type": "ai",
                "data": {
                    "content": "Let me look.",
                    "tool_calls": [LANGCHAIN_CALL],
                    "additional_kwargs": {"reasoning_content": "Ask.", "refusal": None},
                    "response_metadata": {"model_name": "m"},
                    "invalid_tool_calls": [],
                },
            },
            {
                "type": "tool",
                "data": {
                    "content": "3.1",
                    "name": "tide_height",
                    "tool_call_id": "c1",
                    "status": "success",
                    "artifact": {"raw": 1},
                },
            },
            {"type": "AIMessageChunk", "data": {"content": "High.", "type": "AIMessageChunk"}},
        ],
        [QUESTION, CALLED, GOT, HIGH],
    ),
    "langchain: constructors": (
        [
            lc("HumanMessage", content="Tide?", type="human"),
            lc(
                "AIMessage",
                content="",
                type="ai",
                additional_kwargs={
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "tide_height", "arguments": '{"port":"Faro"}'},
                        }
                    ]
                },
            ),
            lc("ToolMessage", content="3.1", tool_call_id="c1"),
            lc("AIMessageChunk", content="High.", usage_metadata={"input_tokens": 1}),
        ],
        [QUESTION, PLAIN_CALL, GOT, HIGH],
    ),
    "langchain: the call twice": (
        [
            {"type": "human", "content": "Tide?"},
            {
                "type": "ai",
                "content": [text("Let me look."), ANTHROPIC_CALL],
                "tool_calls": [LANGCHAIN_CALL],
            },
            {"type": "tool", "content": [text("3.1")], "tool_call_id": "c1"},
            {"type": "ai", "content": [{"type": "reasoning", "reasoning": "So."}, "High."]},
        ],
        [QUESTION, CALLED._replace(thinking=""), GOT, HIGH._replace(thinking="So.")],
    ),
    "vercel 4": (
        [
            {"id": "1", "role": "user", "content": "Tide?", "parts": [text("Tide?")]},
            {
                "id": "2",
                "role": "assistant",
                "content": "Let me look.High.",
                "parts": [
                    {"type": "step-start"},
                    {"type": "reasoning", "reasoning": "Ask.", "details": [text("Ask.")]},
                    text("Let me look."),
                    {
                        "type": "tool-invocation",
                        "toolInvocation": VERCEL_RUN | {"step": 0, "result": "3.1"},
                    },
                    {"type": "step-start"},
                    text("High."),
                ],
                "toolInvocations": [VERCEL_RUN | {"result": "3.1"}],
            },
        ],
        [QUESTION, CALLED, GOT, HIGH],
    ),
    "vercel 5": (
        [
            {"id": "1", "role": "user", "parts": [text("Tide?")]},
            {
                "id": "2",
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "text": "Ask.", "state": "done"},
                    {"type": "text", "text": "Let me look.", "state": "done"},
                    {
                        "type": "tool-tide_height",
                        "toolCallId": "c1",
                        "state": "output-available",
                        "input": FARO,
                        "output": "3.1",
                    },
                    text("High."),
                ],
            },
        ],
        [QUESTION, CALLED, GOT, HIGH],
    ),
    "vercel: messages of the model": (
        [
            ASKED,
            said(
                {
                    "type": "tool-call",
                    "toolCallId": "c1",
                    "toolName": "tide_height",
                    "input": FARO,
                }
            ),
            said(
                {
                    "type": "tool-result",
                    "toolCallId": "c1",
                    "toolName": "tide_height",
                    "output": {"type": "text", "value": "3.1"},
                },
                role="tool",
            ),
            said(text("High.")),
        ],
        [QUESTION, PLAIN_CALL, GOT, HIGH],
    ),
    "opentelemetry": (
        [
            {"role": "user", "parts": [{"type": "text", "content": "Tide?"}]},
            {
                "role": "assistant",
                "parts": [
                    {"type": "tool_call", "id": "c1", "name": "tide_height", "arguments": FARO}
                ],
            },
            {
                "role": "tool",
                "parts": [{"type": "tool_call_response", "id": "c1", "response": "3.1"}],
            },
            {"role": "assistant", "parts": [{"type": "text", "content": "High."}]},
        ],
        [QUESTION, PLAIN_CALL, GOT, HIGH],
    ),
    "mistral": (
        [ASKED, said({"type": "thinking", "thinking": [text("Ask.")]}, text("High."))],
        [QUESTION, HIGH._replace(thinking="Ask.")],
    ),
    "a weight holds for every step": (
        [ASKED, said(ANTHROPIC_CALL, result("3.1"), text("Low."), weight=0), ASKED, said("High.")],
        [
            QUESTION,
            PLAIN_CALL._replace(weight=0.0),
            GOT,
            Message("assistant", "Low.", weight=0.0),
            QUESTION,
            HIGH,
        ],
    ),
}
