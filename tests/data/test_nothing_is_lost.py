"""A column or key that nobody knows is refused, named as not read, or read: never lost."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from block_rows import ASKED, TABLE
from export_rows import ROWS as EXPORTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_ft.data.formats import FORMATS
from gptoss_ft.data.formats.dialects.masks import DETAILS, FLAGS, WEIGHTS
from gptoss_ft.data.formats.harmless import NAMES
from gptoss_ft.data.layouts import names
from gptoss_ft.data.layouts.maps import map_names
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import ReadRow, read_row
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Message

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
UNREAD = ("not read", "ignored", "a mode")
MARKS = {"weight", *FLAGS, *DETAILS, *WEIGHTS}
several = settings(
    derandomize=True, max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def outcome(row: dict[str, Any], name: str) -> ReadRow | str:
    """The row as it is read, or its refusal as a text."""
    try:
        return read_row(row, "f:1", Reading("harmony" if name == "harmony" else ""))
    except DataError as error:
        return str(error)


def accounted_for(
    key: str, before: ReadRow | str, after: ReadRow | str, inside: tuple[str, ...] = ()
) -> bool:
    """Tells whether the key is refused or named as not read, or has changed what is read.

    Args:
        key: the key or column.
        before: the row without it.
        after: the row with it.
        inside: names of the columns and keys that it stands in.
    """
    assert not isinstance(before, str), before
    if isinstance(after, str):
        return True
    if after.example != before.example:
        return True
    # A column that is said to be read has to change what is read.
    unread = [line for line in after.columns if any(word in line for word in UNREAD)]
    said = [*unread, *after.notes]
    return any(key in one for one in said) or any(
        one.startswith(f"{name}: ") or f"`{name}` " in one for one in said for name in inside
    )


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
    # A mark may say what holds anyway.
    if key in message or (key in MARKS and isinstance(value, bool | int | float)):
        return
    message[key] = value
    assert accounted_for(key, before, outcome(row, name))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_samples_here(name: str) -> None:
    assert name == "segments" or any(name == sample for sample, _ in ROWS)


# Rows of exports and logs, and messages in every API's own parts.
DEEP = [
    *EXPORTS.items(),
    *((name, {"messages": [ASKED, *parts]}) for name, (parts, _) in TABLE.items()),
]
# What is JSON of the user's own, and what is left out as a whole, which is counted.
OWN = ("parameters", "arguments", "args", "input_schema", "properties", "cachePoint")
Path_ = tuple[str | int, ...]


def objects_in(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Yields the way to every object in a row, at any depth."""
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            if key not in OWN:
                yield from objects_in(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from objects_in(item, (*path, i))


@pytest.mark.parametrize(("name", "row"), [*DEEP, *ROWS])
def test_a_key_is_never_lost_at_any_depth(name: str, row: dict[str, Any]) -> None:
    before = outcome(row, name)
    for path in objects_in(row):
        changed = copy.deepcopy(row)
        at = functools.reduce(lambda found, step: found[step], path, changed)
        at["zqx_mood"] = "SECRET"
        after = outcome(changed, name)
        inside = tuple(str(step) for step in path)
        assert accounted_for("zqx_mood", before, after, inside) or left_out(after), path


def left_out(row: ReadRow | str) -> bool:
    """Tells whether a part of the row is left out as a whole, and that is said."""
    return isinstance(row, ReadRow) and any(
        "left out" in note or "not read again" in note for note in row.notes
    )


CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
LONG = "word " * 100
TOOLS = [{"name": "tide", "description": "Height.", "parameters": {"type": "object"}}]
WEIGHTY = [
    (CHAT | {"notes": LONG}, "column `notes` not read: it holds texts of some length"),
    (CHAT | {"meta": {"system": "s", "label": True}}, "`system`, `label`"),
    (CHAT | {"extra": CHAT["messages"]}, "column `extra` not read: it holds messages"),
    (CHAT | {"metadata": json.dumps({"system": "s"})}, "`system`"),
]


@pytest.mark.parametrize(("row", "note"), WEIGHTY)
def test_what_a_harmless_name_should_not_hold_is_said(row: dict[str, Any], note: str) -> None:
    assert any(note in said for said in read_row(row, "f:1").notes)


REFUSED = [
    (CHAT | {"chat_template_kwargs": {"python_tools": ["x"]}}, (), "python_tools"),
    (CHAT | {"chat_template_kwargs": "x"}, (), "chat_template_kwargs"),
    (CHAT | {"reasoning": {"effort": "low", "text": "SECRET"}}, (), "reasoning.text"),
    (
        {"inputs": {"question": "q", "port": "Faro"}, "a": "a"},
        (("prompt", "inputs.question"), ("completion", "a")),
        "'data.ignore=[inputs.port]'",
    ),
    (
        {"q": "q", "answers": [{"text": "a"}, {"text": "b"}]},
        (("prompt", "q"), ("completion", "answers.0.text")),
        "'data.ignore=[answers]'",
    ),
    (
        {"q": "q", "answers": [{"text": "a", "tone": "sad"}]},
        (("prompt", "q"), ("completion", "answers.0.text")),
        "'data.ignore=[answers.0.tone]'",
    ),
]


@pytest.mark.parametrize(("row", "columns", "found"), REFUSED)
def test_what_stands_inside_a_column_is_refused_until_it_is_ignored(
    row: dict[str, Any], columns: tuple[tuple[str, str], ...], found: str
) -> None:
    with pytest.raises(DataError) as error:
        read_row(row, "f:1", Reading(columns=columns))
    assert found in str(error.value)
    advised = re.search(r"data\.ignore=\[([\w.]+)\]", str(error.value))
    assert advised
    read_row(row, "f:1", Reading(columns=columns, ignore=frozenset((advised[1],))))


def test_settings_of_a_template_are_read_as_columns_are() -> None:
    said = {"custom_instructions": "s", "xml_tools": TOOLS, "enable_thinking": False}
    read = read_row(CHAT | {"chat_template_kwargs": said}, "f:1")
    assert isinstance(read.example, Conversation)
    assert read.example.messages[0] == Message("system", "s")
    assert [tool.name for tool in read.example.tools] == ["tide"]
    assert any("enable_thinking" in note for note in read.notes)


def test_tools_beside_an_instruction_are_declared() -> None:
    read = read_row({"instruction": "q", "output": "a", "tools": TOOLS}, "f:1")
    assert isinstance(read.example, Conversation)
    assert [tool.name for tool in read.example.tools] == ["tide"]


def test_maps_are_loaded_once_for_all_refused_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: loaded.append(text) or load(text))
    for _ in range(50):
        with pytest.raises(DataError):
            read_row({"instruction": "q", "context": "c", "response": "a", "odd": "o"}, "f:1")
    assert len(loaded) <= len(map_names())


ASK = CHAT["messages"][0]
TWICE = [
    ({"type": "human", "text": "SECRET", "data": {"content": "q"}}, "`content` stands in"),
    (ASK | {"name": "Ada"}, "key `name` of messages not read"),
    (ASK | {"parts": [{"text": "q"}], "content": {"odd": 1}}, "`content` and `parts`"),
    (ASK | {"content": [{"type": "text", "text": "q", "content": "SECRET"}]}, "`content` are both"),
]


@pytest.mark.parametrize(("message", "found"), TWICE)
def test_what_is_said_twice_is_read_once_and_told(message: dict[str, Any], found: str) -> None:
    read = outcome({"messages": [message, CHAT["messages"][1]]}, "")
    assert found in (read if isinstance(read, str) else " ".join(read.notes))
