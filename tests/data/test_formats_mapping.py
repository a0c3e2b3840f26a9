"""What a row of each format becomes: the examples."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_rows import (
    ANSWER,
    BROKEN,
    CALLING,
    COLD,
    FUNCTION,
    RESULT,
    TOOL,
    USER,
    WHERE,
    detected,
    problems,
    turns,
)

from gptoss_ft.data.formats import FORMATS, KINDS
from gptoss_ft.data.reading import parse
from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Example,
    Feedback,
    HarmonyText,
    Message,
    Preference,
    ToolCall,
    ToolSpec,
)

ASKED, WARM, CHILLY = (
    Message("user", "How warm?"),
    Message("assistant", "Warm."),
    Message("assistant", "Cold."),
)
SPEC = ToolSpec("warmth", "", {"type": "object"})
CALLED = Message("assistant", tool_calls=(ToolCall("warmth", "{}", "c1"),))
GOT = Message("tool", "31", name="warmth")


def prompt_of(*messages: Message, **keys: Any) -> Conversation:
    return Conversation(messages, **keys)


CONVERSATION = Conversation((ASKED, WARM))
PAIR = Preference(Conversation((ASKED,)), (WARM,), (CHILLY,))
OBSERVED = Message("assistant", tool_calls=(ToolCall("warmth", '{"city":"Rome"}'),))
MAPPINGS: list[tuple[str, dict[str, Any], Example]] = [
    ("chat", {"messages": json.dumps([USER, ANSWER])}, CONVERSATION),
    (
        "openai_preference",
        {
            "input": {"messages": [USER], "tools": [TOOL]},
            "preferred_output": [CALLING, RESULT, ANSWER],
            "non_preferred_output": [BROKEN],
            "reasoning_effort": "low",
        },
        Preference(
            prompt_of(ASKED, tools=(SPEC,), effort="low"),
            (CALLED, GOT, WARM),
            (Message("assistant", tool_calls=(ToolCall("warmth", "{city", "c1"),)),),
        ),
    ),
    ("prompt_completion", {"prompt": "How warm?", "completion": "Warm."}, CONVERSATION),
    ("prompt_completion", {"prompt": [USER], "completion": "Warm."}, CONVERSATION),
    ("prompt_completion", {"prompt": "How warm?", "completion": [ANSWER]}, CONVERSATION),
    (
        "prompt_completion",
        {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])},
        CONVERSATION,
    ),
    (
        "prompt_completion",
        {"prompt": "How warm?", "completion": '[{"city": "Rome"}]'},
        Conversation((ASKED, Message("assistant", '[{"city": "Rome"}]'))),
    ),
    (
        "prompt_completion",
        {
            "prompt": [USER, COLD | {"weight": 1}, USER, BROKEN, RESULT],
            "completion": [ANSWER],
            "tools": json.dumps([TOOL]),
            "chat_template_kwargs": {"reasoning_effort": "high", "builtin_tools": ["python"]},
        },
        Conversation(
            (
                ASKED,
                Message("assistant", "Cold.", weight=0.0),
                ASKED,
                Message("assistant", "", "", (ToolCall("warmth", "{city", "c1"),), weight=0.0),
                GOT,
                WARM,
            ),
            (SPEC,),
            "high",
            ("python",),
        ),
    ),
    ("trl_preference", {"prompt": "How warm?", "chosen": "Warm.", "rejected": "Cold."}, PAIR),
    ("trl_preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [COLD]}, PAIR),
    ("trl_preference", {"chosen": [USER, ANSWER], "rejected": [USER, COLD]}, PAIR),
    (
        "trl_preference",
        {"prompt": "How warm?", "chosen": [USER, ANSWER], "rejected": [USER, COLD]},
        PAIR,
    ),
    ("trl_preference", {"prompt": "How warm?", "chosen": [ANSWER], "rejected": [COLD]}, PAIR),
    (
        "trl_preference",
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        Preference(Conversation((ASKED,)), (WARM,), (WARM,)),
    ),
    (
        "trl_preference",
        # The run is one action from its thinking on; the round before the result is the prompt's.
        {
            "chosen": [USER, CALLING, RESULT, {"role": "assistant", "thinking": "31"}, ANSWER],
            "rejected": [USER, CALLING, RESULT, {"role": "assistant", "thinking": "31"}, COLD],
        },
        Preference(
            prompt_of(ASKED, Message("assistant", tool_calls=CALLED.tool_calls, weight=0.0), GOT),
            (Message("assistant", thinking="31"), WARM),
            (Message("assistant", thinking="31"), CHILLY),
        ),
    ),
    (
        "trl_preference",
        # Results that differ belong to the calls they answer, and so does the whole round.
        {
            "chosen": [USER, CALLING, RESULT, ANSWER],
            "rejected": [USER, CALLING, RESULT | {"content": "3"}, COLD],
        },
        Preference(
            prompt_of(ASKED),
            (CALLED, GOT, WARM),
            (CALLED, Message("tool", "3", name="warmth"), CHILLY),
        ),
    ),
    (
        "kto",
        {"prompt": "How warm?", "completion": "Warm.", "label": True},
        Feedback(Conversation((ASKED,)), (WARM,), True),
    ),
    (
        "kto",
        {"prompt": [USER], "completion": [BROKEN], "label": "False"},
        Feedback(
            Conversation((ASKED,)),
            (Message("assistant", tool_calls=(ToolCall("warmth", "{city", "c1"),)),),
            False,
        ),
    ),
    ("alpaca", {"instruction": "How warm?", "output": "Warm."}, CONVERSATION),
    (
        "alpaca",
        {
            "instruction": "Translate.",
            "input": "Morno.",
            "output": "<think>\nmorno: warm\n</think>\n\nWarm.",
            "system": "Be brief.",
            "history": [["How warm?", "Warm."]],
        },
        Conversation(
            (
                Message("system", "Be brief."),
                ASKED,
                WARM,
                Message("user", "Translate.\n\nMorno."),
                Message("assistant", "Warm.", "morno: warm"),
            )
        ),
    ),
    ("sharegpt", turns(("human", "How warm?"), ("gpt", "Warm.")), CONVERSATION),
    ("sharegpt", {"conversations": json.dumps([USER, ANSWER])}, CONVERSATION),
    (
        "sharegpt",
        {"conversations": [USER, CALLING, RESULT, ANSWER]},
        Conversation((ASKED, CALLED, GOT, WARM)),
    ),
    (
        "sharegpt",
        turns(
            ("human", "How warm?"),
            ("gpt", "<think>ask</think>Looking."),
            ("function_call", '{"name": "warmth", "arguments": {"city": "Rome"}}'),
            ("observation", "31"),
            ("gpt", "Warm."),
            tools=json.dumps([FUNCTION]),
            system="Be brief.",
        ),
        Conversation(
            (
                Message("system", "Be brief."),
                ASKED,
                Message("assistant", "Looking.", "ask", OBSERVED.tool_calls),
                GOT,
                WARM,
            ),
            (SPEC,),
        ),
    ),
    (
        "sharegpt",
        turns(
            ("human", "How warm?"),
            (
                "function_call",
                [
                    {"function": {"name": "wind", "arguments": "{}"}},
                    {"name": "warmth", "arguments": {}},
                ],
            ),
            ("tool", "calm"),
            ("tool", "31"),
            ("gpt", "Warm."),
        ),
        Conversation(
            (
                ASKED,
                Message("assistant", tool_calls=(ToolCall("wind", "{}"), ToolCall("warmth", "{}"))),
                Message("tool", "calm", name="wind"),
                GOT,
                WARM,
            )
        ),
    ),
    ("responses", {"items": [USER, ANSWER]}, CONVERSATION),
    (
        "responses",
        {
            "instructions": "Be brief.",
            "input": "How warm?",
            "output": [
                {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
                {
                    "type": "reasoning",
                    "summary": [
                        {"type": "summary_text", "text": "Ask."},
                        {"type": "summary_text", "text": "Then say."},
                    ],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Looking.", "annotations": []}],
                },
                {"type": "function_call", "call_id": "c1", "name": "warmth", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "31"},
                {
                    "type": "reasoning",
                    "summary": [{"type": "summary_text", "text": "short"}],
                    "content": [{"type": "reasoning_text", "text": "31 is warm"}],
                },
                ANSWER | {"type": "message"},
            ],
            "tools": [{"type": "function", **FUNCTION}, {"type": "code_interpreter"}],
            "reasoning": {"effort": "low", "summary": None},
        },
        Conversation(
            (
                Message("system", "Be brief."),
                ASKED,
                Message("assistant", "Looking.", "Ask.\n\nThen say.", CALLED.tool_calls),
                GOT,
                Message("assistant", "Warm.", "31 is warm"),
            ),
            (SPEC,),
            "low",
            ("python",),
        ),
    ),
    (
        "responses",
        {
            "input": [
                USER | {"content": [{"type": "input_text", "text": "How warm?"}]},
                {"type": "function_call", "call_id": "c1", "name": "warmth", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "wind", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c2", "output": "calm"},
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "31"}],
                },
                ANSWER | {"weight": 0.5},
            ]
        },
        Conversation(
            (
                ASKED,
                Message(
                    "assistant",
                    tool_calls=(ToolCall("warmth", "{}", "c1"), ToolCall("wind", "{}", "c2")),
                ),
                Message("tool", "calm", name="wind"),
                GOT,
                Message("assistant", "Warm.", weight=0.5),
            )
        ),
    ),
    ("text", {"text": "A page.\n"}, Document("A page.\n")),
    ("text", {"text": "<|start|> is a special token."}, Document("<|start|> is a special token.")),
]


@pytest.mark.parametrize(("name", "row", "example"), MAPPINGS)
def test_a_row_becomes_the_example(name: str, row: dict[str, Any], example: Example) -> None:
    assert detected(row) == name
    assert parse(row, WHERE) == parse(row, WHERE, name) == example
    filled = row | {"note": 1, "tols": None, "messages": row.get("messages")}
    assert parse(filled, WHERE) == example


def test_harmony_is_read_only_when_it_is_named() -> None:
    text = (
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    )
    assert parse({"text": text}, WHERE, "harmony") == HarmonyText(text)
    ((what, where, mend),) = problems({"text": text})
    assert "in Harmony" in what and where == "text" and "data.format=harmony" in mend


def test_kinds_say_what_a_format_trains() -> None:
    kinds = {Preference: "preference", Feedback: "kto"}
    for name, row, example in MAPPINGS:
        assert KINDS[name] == kinds.get(type(example), "sft"), row
    assert tuple(KINDS) == FORMATS


def test_prompts_need_no_answer_when_asked() -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [USER]},
        {"prompt": "How warm?", "completion": None},
        {"instruction": "How warm?", "output": ""},
        turns(("human", "How warm?")),
        {"input": "How warm?"},
    ]
    names = ("chat", "prompt_completion", "alpaca", "sharegpt", "responses")
    for name, row in zip(names, rows, strict=True):
        assert parse(row, WHERE, name, needs_answer=False) == Conversation((ASKED,))
        assert problems(row, name)
