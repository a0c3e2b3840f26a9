"""Parts of rows, and their problems, for the tests of formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_ft.data.formats.common import RowState
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.layouts.rows import canonical_row
from gptoss_ft.data.reading import parse
from gptoss_ft.errors import DataError

WHERE = "rows.jsonl:7"
SAMPLES = Path(__file__).parents[2] / "data" / "formats"
USER = {"role": "user", "content": "How warm?"}
ANSWER = {"role": "assistant", "content": "Warm."}
COLD = {"role": "assistant", "content": "Cold."}
FUNCTION = {"name": "warmth", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALLING = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "warmth", "arguments": "{}"}}],
}
BROKEN = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "warmth", "arguments": "{city"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "31"}


def detected(row: dict[str, Any]) -> str | None:
    """The format that a row is read in, None where it fits none."""
    return canonical_row(row, Reading(), RowState("")).format or None


def problems(row: dict[str, Any], name: str = "") -> list[tuple[str, str, str]]:
    """What, where (without the line) and mend of every problem."""
    with pytest.raises(DataError) as caught:
        parse(row, WHERE, name)
    found = caught.value.problems
    assert all(p.where.startswith(WHERE) for p in found)
    return [(p.what, p.where.removeprefix(WHERE).strip(), p.mend) for p in found]


def turns(*pairs: tuple[str, Any], **keys: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in pairs], **keys}


def calling(name: str, arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "function": {"name": name, "arguments": arguments}}],
    }
