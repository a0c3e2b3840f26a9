"""Bad rows of the other formats: what is refused, and where."""

from __future__ import annotations

import re
from typing import Any

import pytest
from format_rows import ANSWER, BROKEN, CALLING, COLD, RESULT, TOOL, USER, calling, problems, turns

IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}
PICTURE = {"role": "user", "content": [IMAGE]}
PROMPTED = {"prompt": "a", "completion": "b"}
PAIRED = {"prompt": "a", "chosen": "b", "rejected": "c"}
ALPACA = {"instruction": "a", "output": "b"}
HI = ("human", "Hi")
F_CALL = '{"name": "f", "arguments": {}}'


def builtin(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": [USER, *messages], "builtin_tools": ["python", "browser"]} | keys


def openai_pair(**keys: Any) -> dict[str, Any]:
    good = {
        "input": {"messages": [USER]},
        "preferred_output": [ANSWER],
        "non_preferred_output": [COLD],
    }
    return good | keys


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    # chat: what test_format_chat.py does not hold
    ("chat", builtin(ANSWER, builtin_tools="python"), "builtin_tools", "not a list"),
    ("chat", builtin(ANSWER, builtin_tools=["shell"]), "builtin_tools[0]", "unknown builtin"),
    (
        "chat",
        builtin(ANSWER, tools=[{"type": "function", "function": {"name": "python"}}]),
        "tools",
        "a function and a builtin tool at once",
    ),
    (
        "chat",
        builtin(calling("browser.click", "{}")),
        "messages[1].tool_calls[0].function.name",
        "has no such function",
    ),
    (
        "chat",
        builtin(calling("browser.search", "{}"), builtin_tools=["python"]),
        "messages[1].tool_calls[0].function.name",
        "does not declare",
    ),
    (
        "chat",
        builtin(calling("python", {"source": "1"})),
        "messages[1].tool_calls[0].function.arguments",
        "holds no code",
    ),
    (
        "chat",
        builtin(calling("python", " ")),
        "messages[1].tool_calls[0].function.arguments",
        "holds no code",
    ),
    (
        "chat",
        builtin(calling("f", {"x": float("nan")})),
        "messages[1].tool_calls[0].function.arguments",
        "not JSON",
    ),
    ("chat", {"messages": [USER, ANSWER], "tool": [TOOL]}, "tool", "not read: `tool`"),
    (
        "chat",
        {"messages": [USER, {"role": "assistant", "content": "<think>a"}]},
        "messages[1].content",
        "not closed",
    ),
    (
        "chat",
        {"messages": [USER, ANSWER | {"content": "<think>a</think>b", "thinking": "c"}]},
        "messages[1]",
        "differ",
    ),
    (
        "chat",
        {
            "messages": [USER, ANSWER],
            "reasoning_effort": "low",
            "chat_template_kwargs": {"reasoning_effort": "high"},
        },
        "reasoning_effort",
        "differ",
    ),
    (
        "chat",
        {"messages": [USER, ANSWER], "chat_template_kwargs": {"reasoning_effort": "max"}},
        "chat_template_kwargs.reasoning_effort",
        "unknown reasoning effort",
    ),
    # openai_preference
    ("openai_preference", openai_pair(input=[USER]), "input", "not an object"),
    ("openai_preference", openai_pair(input={"tools": []}), "input", "no `messages`"),
    ("openai_preference", openai_pair(input={"messages": []}), "input.messages", "is empty"),
    (
        "openai_preference",
        openai_pair(input={"messages": [PICTURE]}),
        "input.messages[0].content[0]",
        "image_url",
    ),
    (
        "openai_preference",
        openai_pair(input={"messages": [USER], "tools": [{"type": "mcp"}]}),
        "input.tools[0]",
        "not a function tool",
    ),
    (
        "openai_preference",
        openai_pair(input={"messages": [USER], "tool": [TOOL]}),
        "input.tool",
        "not read: `tool`",
    ),
    (
        "openai_preference",
        openai_pair(input={"messages": [USER, ANSWER]}),
        "input.messages[1]",
        "ends in an assistant message",
    ),
    ("openai_preference", openai_pair(preferred_output=None), "", "no `preferred_output`"),
    ("openai_preference", openai_pair(preferred_output="Warm."), "preferred_output", "not a list"),
    ("openai_preference", openai_pair(preferred_output=[]), "preferred_output", "is empty"),
    (
        "openai_preference",
        openai_pair(non_preferred_output=[USER, COLD]),
        "non_preferred_output[0]",
        "does not begin with an assistant message",
    ),
    (
        "openai_preference",
        openai_pair(preferred_output=[BROKEN]),
        "preferred_output[0].tool_calls[0].function.arguments",
        "not JSON",
    ),
    (
        "openai_preference",
        openai_pair(preferred_output=[CALLING], non_preferred_output=[COLD, RESULT, COLD]),
        "non_preferred_output[1].tool_call_id",
        "was not made before",
    ),
    # prompt_completion
    ("prompt_completion", {"completion": "b"}, "", "no `prompt`"),
    ("prompt_completion", {"prompt": "a"}, "", "no `completion`"),
    ("prompt_completion", PROMPTED | {"prompt": " "}, "prompt", "is empty"),
    ("prompt_completion", PROMPTED | {"completion": ""}, "completion", "is empty"),
    ("prompt_completion", PROMPTED | {"completion": 3}, "completion", "not a list"),
    ("prompt_completion", PROMPTED | {"completion": "\ud83d"}, "completion", "surrogate"),
    ("prompt_completion", PROMPTED | {"completion": "<think>b"}, "completion", "not closed"),
    ("prompt_completion", PROMPTED | {"completion": "<think>b</think>"}, "completion", "ends in"),
    ("prompt_completion", PROMPTED | {"prompt": [{"role": "robot"}]}, "prompt[0].role", "unknown"),
    (
        "prompt_completion",
        PROMPTED | {"completion": [ANSWER, USER, ANSWER]},
        "completion[1]",
        "more than assistant messages",
    ),
    (
        "prompt_completion",
        PROMPTED | {"completion": [CALLING, RESULT]},
        "completion[1]",
        "ends in a tool result",
    ),
    (
        "prompt_completion",
        PROMPTED | {"completion": [ANSWER, {"role": "assistant", "thinking": "a"}]},
        "completion[1]",
        "ends in thinking",
    ),
    # trl_preference
    ("trl_preference", {"prompt": "a", "chosen": "b"}, "", "no `rejected`"),
    ("trl_preference", {"chosen": "b", "rejected": "c"}, "", "no `prompt`"),
    ("trl_preference", PAIRED | {"rejected": ""}, "rejected", "is empty"),
    ("trl_preference", PAIRED | {"chosen": [PICTURE]}, "chosen[0].content[0]", "image_url"),
    ("trl_preference", PAIRED | {"chosen": [USER, ANSWER]}, "chosen[0]", "does not begin"),
    (
        "trl_preference",
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [COLD]},
        "chosen[0]",
        "does not begin",
    ),
    (
        "trl_preference",
        {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "How cold?"}, COLD]},
        "rejected[0]",
        "do not begin with the same prompt",
    ),
    (
        "trl_preference",
        {"chosen": [ANSWER], "rejected": [COLD]},
        "rejected[0]",
        "do not begin with the same prompt",
    ),
    # kto
    ("kto", PROMPTED, "", "no `label`"),
    ("kto", PROMPTED | {"label": 2}, "label", "neither true nor false"),
    ("kto", PROMPTED | {"label": "spam"}, "label", "neither true nor false"),
    ("kto", {"completion": "b", "label": True}, "", "no `prompt`"),
    (
        "kto",
        {"prompt": "a", "completion": [BROKEN], "label": True},
        "completion[0].tool_calls[0].function.arguments",
        "not JSON",
    ),
    # alpaca
    ("alpaca", {"output": "b"}, "", "no `instruction`"),
    ("alpaca", {"instruction": "a"}, "", "no `output`"),
    ("alpaca", ALPACA | {"instruction": ""}, "instruction", "is empty"),
    ("alpaca", ALPACA | {"instruction": ["a"]}, "instruction", "not a text"),
    ("alpaca", ALPACA | {"input": 3}, "input", "not a text"),
    ("alpaca", ALPACA | {"output": " "}, "output", "is empty"),
    ("alpaca", ALPACA | {"output": {"a": 1}}, "output", "not a text"),
    ("alpaca", ALPACA | {"systm": "Be kind."}, "systm", "not read: `systm`"),
    ("alpaca", ALPACA | {"history": "a"}, "history", "not a list"),
    ("alpaca", ALPACA | {"history": [["a"]]}, "history[0]", "not a question and its answer"),
    ("alpaca", ALPACA | {"history": [["a", ""]]}, "history[0][1]", "is empty"),
    # sharegpt
    ("sharegpt", {"conversation": []}, "conversation", "is empty"),
    ("sharegpt", {"conversations": {}}, "conversations", "not a list"),
    ("sharegpt", {"conversations": []}, "conversations", "is empty"),
    ("sharegpt", {"conversations": ["Hi"]}, "conversations[0]", "not an object"),
    ("sharegpt", turns(HI), "conversations", "all prompt"),
    ("sharegpt", turns(("humann", "Hi"), ("gpt", "Hi")), "conversations[0].from", "unknown role"),
    ("sharegpt", turns((None, "Hi"), ("gpt", "Hi")), "conversations[0].from", "has no role"),  # type: ignore[arg-type]
    ("sharegpt", turns(HI, ("gpt", None)), "conversations[1]", "no content"),
    ("sharegpt", turns(HI, ("gpt", "")), "conversations[1]", "no content"),
    ("sharegpt", turns(HI, ("gpt", 3)), "conversations[1].value", "not a text"),
    ("sharegpt", turns(("human", [IMAGE]), ("gpt", "a")), "conversations[0].value[0]", "image_url"),
    ("sharegpt", turns(HI, ("gpt", "<think>a")), "conversations[1].value", "not closed"),
    ("sharegpt", turns(HI, ("gpt", "<think>a</think>")), "conversations[1]", "ends in thinking"),
    (
        "sharegpt",
        turns(HI, ("gpt", f"<tool_call>\n{F_CALL}\n</tool_call>")),
        "conversations[1]",
        "does not declare",
    ),
    ("sharegpt", turns(HI, ("function_call", "f()")), "conversations[1]", "not a call"),
    ("sharegpt", turns(HI, ("function_call", "[]")), "conversations[1]", "holds no call"),
    (
        "sharegpt",
        turns(HI, ("function_call", '{"name": "f", "arguments": "{"}')),
        "conversations[1].tool_calls[0].function.arguments",
        "not JSON",
    ),
    ("sharegpt", turns(HI, ("tool", "31"), ("gpt", "a")), "conversations[1]", "answers no call"),
    (
        "sharegpt",
        turns(HI, ("function_call", f"[{F_CALL}, {F_CALL}]"), ("tool", "31"), ("gpt", "a")),
        "conversations[2]",
        "fewer results than calls",
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "Hi", "weight": 1},
                *turns(("gpt", "a"))["conversations"],
            ]
        },
        "conversations[0].weight",
        "cannot be trained",
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "vlaue": "Hi", "value": "Hi"},
                *turns(("gpt", "a"))["conversations"],
            ]
        },
        "conversations[0].vlaue",
        "not read: `vlaue`",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "a", "thinking": 3}]},
        "conversations[0].thinking",
        "not a text",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "<think>b</think>a", "thinking": "c"}]},
        "conversations[0]",
        "both given and differ",
    ),
]


def _case(value: Any) -> str:
    return re.sub(r"\W+", " ", value) if isinstance(value, str) else ""


@pytest.mark.parametrize(("name", "row", "where", "what"), BAD, ids=_case)
def test_a_bad_row_is_refused_with_its_place(
    name: str, row: dict[str, Any], where: str, what: str
) -> None:
    found = problems(row, name)
    assert [place for _, place, _ in found] == [where], found
    assert what in found[0][0]
    assert found[0][2], "every problem says how to mend it"


def test_all_problems_of_a_row_are_reported() -> None:
    row = {
        "prompt": [PICTURE],
        "chosen": [{"role": "robot"}],
        "rejected": "",
        "tools": 3,
        "reasoning_effort": "max",
    }
    assert [where for _, where, _ in problems(row)] == [
        "reasoning_effort",
        "tools",
        "prompt[0].content[0]",
        "chosen[0].role",
        "rejected",
    ]
    shared = turns(("robot", "Hi"), ("gpt", 3), ("function_call", "x"), reasoning_effort="max")
    assert [where for _, where, _ in problems(shared)] == [
        "reasoning_effort",
        "conversations[2]",
        "conversations[0].from",
        "conversations[1].value",
    ]
