"""A column or key that nobody knows is refused, named as not read, or read: never lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.data.formats.harmless import NAMES
from gptoss_ft.data.layouts import names
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import ReadRow, read_row
from gptoss_ft.errors import DataError

SAMPLES = Path(__file__).parents[2] / "data" / "formats"
ROWS = [
    (file.stem, row)
    for file in sorted(SAMPLES.glob("*.jsonl"))
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()[:3])
]
OTHERS = """
    train training trainable loss mask train_detail weight label kto_tag rating reward channel
    recipient content_type rejected_response rejected_messages images audio videos segments
    helpfulness preference winner refusal function_call functions segment score_chosen
"""
MEANINGFUL = (
    *names.CANONICAL,
    *names.CONVERSATIONS,
    *names.PROMPTS,
    *names.COMPLETIONS,
    *names.SYSTEMS,
    *names.THINKING,
    *names.TOOLS,
    *OTHERS.split(),
)
KEYS = st.one_of(
    st.sampled_from(MEANINGFUL),
    st.sampled_from(sorted(NAMES)),
    st.text("abcdefghijklmnopqrstuvwxyz_", min_size=3, max_size=12),
)
VALUES = st.sampled_from(
    [
        "SECRET that nobody has said",
        1,
        0,
        True,
        False,
        2.5,
        ["SECRET"],
        {"text": "SECRET"},
        [{"role": "user", "content": "SECRET"}],
    ]
)
several = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def outcome(row: dict[str, Any], name: str) -> ReadRow | str:
    """The row as it is read, or its refusal as a text."""
    try:
        return read_row(row, "f:1", Reading("harmony" if name == "harmony" else ""))
    except DataError as error:
        return str(error)


def accounted_for(key: str, before: ReadRow | str, after: ReadRow | str) -> bool:
    """Tells whether the key is refused or named by name, or has changed what is read."""
    assert not isinstance(before, str), before
    if isinstance(after, str):
        return True
    said = " ".join((*after.columns, *after.notes))
    return key in said or after.example != before.example


@several
@given(st.sampled_from(ROWS), KEYS, VALUES)
def test_a_column_more_is_never_lost(
    sample: tuple[str, dict[str, Any]], key: str, value: Any
) -> None:
    name, row = sample
    if key in row:
        return
    assert accounted_for(key, outcome(row, name), outcome(row | {key: value}, name))


def lists_of_messages(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Every list of objects in a row's columns."""
    found = [value for value in row.values() if isinstance(value, list)]
    found += [v for value in row.values() if isinstance(value, dict) for v in value.values()]
    return [v for v in found if isinstance(v, list) and v and all(isinstance(m, dict) for m in v)]


@several
@given(st.sampled_from([one for one in ROWS if lists_of_messages(one[1])]), KEYS, VALUES, st.data())
def test_a_key_more_is_never_lost(
    sample: tuple[str, dict[str, Any]], key: str, value: Any, data: st.DataObject
) -> None:
    name, row = sample[0], copy.deepcopy(sample[1])
    before = outcome(row, name)
    message = data.draw(st.sampled_from(data.draw(st.sampled_from(lists_of_messages(row)))))
    if key in message:
        return
    message[key] = value
    assert accounted_for(key, before, outcome(row, name))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_samples_here(name: str) -> None:
    assert name == "segments" or any(name == sample for sample, _ in ROWS)
