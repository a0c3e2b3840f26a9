"""Bad rows of Responses items, texts and raw Harmony: what is refused, and where."""

from __future__ import annotations

import re
from typing import Any

import pytest
from format_rows import ANSWER, USER, problems

OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "31"}
F_ITEM = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    # responses
    ("responses", {"id": "a"}, "", "no `items`"),
    ("responses", {"items": {}}, "items", "not a list"),
    ("responses", {"items": []}, "items", "is empty"),
    ("responses", {"items": ["Hi"]}, "items[0]", "not an object"),
    ("responses", {"items": [{"content": "a"}]}, "items[0].type", "no type"),
    ("responses", {"items": [USER, {"type": "web_search_call"}]}, "items[1].type", "are not read"),
    ("responses", {"items": [{"role": "bot", "content": "a"}]}, "items[0].role", "unknown role"),
    ("responses", {"items": [{"role": "user"}, ANSWER]}, "items[0].content", "no content"),
    ("responses", {"items": [USER, ANSWER | {"content": ""}]}, "items[1].content", "is empty"),
    (
        "responses",
        {"items": [{"role": "user", "content": [{"type": "input_image"}]}, ANSWER]},
        "items[0].content[0]",
        "input_image",
    ),
    (
        "responses",
        {"items": [USER, ANSWER | {"content": [{"type": "refusal", "refusal": "No."}]}]},
        "items[1].content[0]",
        "refusal",
    ),
    ("responses", {"items": [USER | {"weight": 1}, ANSWER]}, "items[0].weight", "be trained"),
    (
        "responses",
        {"items": [USER, ANSWER | {"wieght": 1}]},
        "items[1].wieght",
        "not read: `wieght`",
    ),
    ("responses", {"items": [USER, OUTPUT, ANSWER]}, "items[1].call_id", "was not made before"),
    ("responses", {"items": [USER, F_ITEM | {"name": None}]}, "items[1].name", "has no name"),
    ("responses", {"items": [USER, F_ITEM | {"arguments": "{"}]}, "items[1].arguments", "not JSON"),
    (
        "responses",
        {"items": [USER, F_ITEM, OUTPUT | {"output": None}, ANSWER]},
        "items[2].output",
        "is missing",
    ),
    (
        "responses",
        {"items": [USER, F_ITEM, {"type": "function_call_output", "output": "31"}, ANSWER]},
        "items[2].call_id",
        "no `call_id`",
    ),
    (
        "responses",
        {"items": [USER, ANSWER], "instructions": [1]},
        "instructions[0]",
        "not a text part",
    ),
    ("responses", {"items": [USER, ANSWER], "tools": [{"type": "mcp"}]}, "tools[0]", "not a func"),
    (
        "responses",
        {"items": [USER, ANSWER], "reasoning": {"effort": "minimal"}},
        "reasoning.effort",
        "unknown reasoning effort",
    ),
    (
        "responses",
        {
            "items": [
                USER,
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}]},
            ]
        },
        "items[1]",
        "ends in thinking",
    ),
    # text and harmony
    ("text", {"txt": "a"}, "", "no `text`"),
    ("text", {"text": "\n"}, "text", "is empty"),
    ("text", {"text": ["a"]}, "text", "not a text"),
    ("text", {"text": "a\ud83d"}, "text", "surrogate"),
    ("harmony", {"text": "Hi"}, "text", "does not begin with <|start|>"),
    ("harmony", {"text": ""}, "text", "is empty"),
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
