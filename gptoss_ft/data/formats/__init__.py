"""Every data format that is read, and how a row of it becomes an `Example`.

One module per format or close family; `detect` has the table that tells them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gptoss_ft.data.formats.alpaca import parse_alpaca
from gptoss_ft.data.formats.chat import parse_openai_chat
from gptoss_ft.data.formats.common import RowState
from gptoss_ft.data.formats.completions import parse_kto, parse_prompt_completion
from gptoss_ft.data.formats.detect import detect, undetected
from gptoss_ft.data.formats.preference import parse_openai_preference, parse_trl_preference
from gptoss_ft.data.formats.responses import parse_responses
from gptoss_ft.data.formats.sharegpt import parse_sharegpt
from gptoss_ft.data.formats.text import parse_harmony, parse_text
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Example

__all__ = ["FORMATS", "KINDS", "ReadRow", "detect", "parse", "read_row"]

_PARSERS: Mapping[str, Callable[..., Example]] = MappingProxyType(
    {
        "chat": parse_openai_chat,
        "openai_preference": parse_openai_preference,
        "prompt_completion": parse_prompt_completion,
        "trl_preference": parse_trl_preference,
        "kto": parse_kto,
        "alpaca": parse_alpaca,
        "sharegpt": parse_sharegpt,
        "responses": parse_responses,
        "text": parse_text,
        "harmony": parse_harmony,
    }
)
_PAIRS = MappingProxyType(
    {"openai_preference": "preference", "trl_preference": "preference", "kto": "kto"}
)
FORMATS = tuple(_PARSERS)
# What each format trains: sft, preference or kto.
KINDS: Mapping[str, str] = MappingProxyType({name: _PAIRS.get(name, "sft") for name in FORMATS})


class ReadRow(NamedTuple):
    """One row, read.

    Attributes:
        format: the one that it was read in.
        example: what it says.
        notes: what the user is told of it, counted; see `RowState.notes`.
    """

    format: str
    example: Example
    notes: Counter[str]


def read_row(
    row: Mapping[str, Any], where: str, format_name: str = "", *, needs_answer: bool = True
) -> ReadRow:
    """Reads one row.

    Args:
        row: the decoded JSON object, or the columns of a table; null counts as absent.
        where: `file:line`, put before the field in every problem.
        format_name: one of `FORMATS`; empty to detect it.
        needs_answer: refuse a conversation that the assistant does not answer; turn it off for
            prompts.

    Raises:
        DataError: with every problem of the row, or because it fits no format.
    """
    name = format_name or detect(row)
    if not name:
        raise DataError(undetected(row, where))
    state = RowState(where)
    example = _PARSERS[name](row, state, needs_answer=needs_answer)
    return ReadRow(name, example, state.notes)


def parse(
    row: Mapping[str, Any], where: str, format_name: str = "", *, needs_answer: bool = True
) -> Example:
    """Reads one row to its example; see `read_row`."""
    return read_row(row, where, format_name, needs_answer=needs_answer).example
