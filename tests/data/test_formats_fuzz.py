"""Whatever a row holds, it is read or refused: nothing but DataError is ever raised."""

from __future__ import annotations

import json
from typing import Any

from format_rows import SAMPLES, WHERE
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.data.reading import parse
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Example

KEYS = (
    "messages", "prompt", "completion", "chosen", "rejected", "label", "input",
    "preferred_output", "non_preferred_output", "instruction", "output", "system", "history",
    "conversations", "items", "text", "tools", "builtin_tools", "functions", "reasoning_effort",
    "chat_template_kwargs", "reasoning", "instructions", "role", "content", "thinking",
    "reasoning_content", "tool_calls", "tool_call_id", "name", "weight", "from", "value", "type",
    "function", "arguments", "parameters", "description", "id", "call_id", "summary", "effort",
    "code", "refusal",
)  # fmt: skip
WORDS = (
    "user", "assistant", "system", "tool", "human", "gpt", "function_call", "observation",
    "message", "reasoning", "function", "function_call_output", "python", "browser",
    "browser.search", "text", "input_text", "output_text", "low", "c1", "warmth", "[]", "{}",
    "[{}]", "<think>a</think>", "<think>", '{"code":"1"}', "<|start|>user", "\ud83d",
)  # fmt: skip
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=4),
)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    return st.one_of(st.lists(inner, max_size=3), objects, objects.map(json.dumps))


values = st.recursive(scalars, grown, max_leaves=12)
message = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(("user", "assistant", "tool", "system")),
        "from": st.sampled_from(("human", "gpt", "function_call", "observation")),
        "type": st.sampled_from(("message", "reasoning", "function_call", "function_call_output")),
        "content": values,
        "value": values,
        "tool_calls": st.lists(values, max_size=2),
        "call_id": st.just("c1"),
        "name": st.sampled_from(("warmth", "python")),
        "arguments": values,
    },
)
columns = st.one_of(values, st.lists(message, max_size=4))
rows = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), columns, max_size=6)


def is_read_or_refused(row: dict[str, Any], name: str | None, needs_answer: bool) -> None:
    try:
        example = parse(row, WHERE, name, needs_answer=needs_answer)
    except DataError as error:
        assert all(p.where.startswith(WHERE) and p.what for p in error.problems)
    else:
        assert isinstance(example, Example)


@settings(max_examples=200, deadline=None)
@given(rows, st.sampled_from((None, *FORMATS)), st.booleans())
def test_any_row_is_read_or_refused(row: dict[str, Any], name: str | None, answered: bool) -> None:
    is_read_or_refused(row, name, answered)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(found for key, item in inner for found in places(item, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """A bundled row with one or two of its values replaced, and its format."""
    file = draw(st.sampled_from(sorted(SAMPLES.glob("*.jsonl"))))
    row = json.loads(draw(st.sampled_from(file.read_text(encoding="utf-8").splitlines())))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(row)[1:]))
        owner = row
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = draw(st.one_of(scalars, values))
    return row, file.stem


@settings(max_examples=200, deadline=None)
@given(damaged(), st.booleans())
def test_a_damaged_row_is_read_or_refused(case: tuple[dict[str, Any], str], answered: bool) -> None:
    is_read_or_refused(*case, answered)
