"""Calls of tools in texts and in other keys: which are read, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from call_rows import (
    BOTH,
    CALL,
    FARO,
    FARO_TEXT,
    LAGOS,
    LAGOS_TEXT,
    TIDE,
    TOOLS,
    calls_of,
    problem,
    read,
    said,
)
from format_rows import USER, WHERE

from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import read_row
from gptoss_ft.harmony.messages import Conversation, Message

TEXTS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (f"<tool_call>\n{FARO_TEXT}\n</tool_call>", "", [CALL]),
    (f"Let me look.\n\n<tool_call>{FARO_TEXT}</tool_call>", "Let me look.", [CALL]),
    (f"<tool_call>{FARO_TEXT}</tool_call>\n<tool_call>{LAGOS_TEXT}</tool_call>", "", BOTH),
    (f"<tool_call>[{FARO_TEXT}, {LAGOS_TEXT}]</tool_call>", "", BOTH),
    (f"<tool_call>{FARO_TEXT}\n{LAGOS_TEXT}</tool_call>", "", BOTH),
    (f"<tool_call>{FARO_TEXT}", "", [CALL]),
    (f"<tool_call>{FARO!r}</tool_call>", "", [CALL]),
    ("<tool_call>{'name': 'tide', 'arguments': '{\"port\":\"Faro\"}'}</tool_call>", "", [CALL]),
    (f"<tool_call>{FARO_TEXT}</tool_call><|im_end|>", "", [CALL]),
    (f"<TOOLCALL>[{FARO_TEXT}]</TOOLCALL>", "", [CALL]),
    (f"<tool_use>{FARO_TEXT}</tool_use>", "", [CALL]),
    ('<function=tide>{"port": "Faro"}</function>', "", [CALL]),
    ("Look.\n\n<function=tide>\n<parameter=port>Faro</parameter>\n</function>", "Look.", [CALL]),
    (
        "<function=tide>\n<parameter=port>\nFaro\n</parameter>\n<parameter=hours>3</parameter>\n"
        "</function>",
        "",
        [("tide", '{"port":"Faro","hours":3}')],
    ),
    (
        "<tool_call>\n<function=tide>\n<parameter=port>\nFaro\n</parameter>\n</function>\n</tool_call>",
        "",
        [CALL],
    ),
    (
        "<tool_call>tide\n<arg_key>port</arg_key>\n<arg_value>Faro</arg_value>\n</tool_call>",
        "",
        [CALL],
    ),
    (
        '<function_calls><invoke name="tide"><parameter name="port">Faro</parameter></invoke>'
        "</function_calls>",
        "",
        [CALL],
    ),
    ("<function=wind>\n</function>", "", [("wind", "{}")]),
    ('[tide(port="Faro")]', "", [CALL]),
    ('[tide(port="Faro"), wind(port=\'Lagos\')]', "", BOTH),
    ("[tide(\"Faro\", hours=3)]", "", [("tide", '{"port":"Faro","hours":3}')]),
    (
        '[tide(port="F(a, b)", x=[1, {"y": true}], z=None)]',
        "",
        [("tide", '{"port":"F(a, b)","x":[1,{"y":true}],"z":null}')],
    ),
    ('[tide(from="Faro", class=False)]', "", [("tide", '{"from":"Faro","class":false}')]),
    (
        "<functioncall> {\"name\": \"tide\", \"arguments\": '{\"port\":\"Faro\"}'} <|endoftext|>",
        "",
        [CALL],
    ),
    (
        "<functioncall> {\"name\": \"tide\", \"arguments\": '{\"port\": \"Faro's\"}'}",
        "",
        [("tide", '{"port": "Faro\'s"}')],
    ),
    (f"[TOOL_CALLS] [{FARO_TEXT}]</s>", "", [CALL]),
    ('[TOOL_CALLS]tide[ARGS]{"port": "Faro"}', "", [CALL]),
    ('<|python_tag|>{"name": "tide", "parameters": {"port": "Faro"}}<|eom_id|>', "", [CALL]),
    ('{"type": "function", "name": "tide", "parameters": {"port": "Faro"}}', "", [CALL]),
    (f"[{FARO_TEXT}, {LAGOS_TEXT}]", "", BOTH),
    (
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>function"
        "<\uff5ctool\u2581sep\uff5c>tide\n```json\n{\"port\":\"Faro\"}\n```"
        "<\uff5ctool\u2581call\u2581end\uff5c><\uff5ctool\u2581calls\u2581end\uff5c>",
        "",
        [CALL],
    ),
    (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.tide:0<|tool_call_argument_begin|>"
        '{"port":"Faro"}<|tool_call_end|><|tool_calls_section_end|>',
        "",
        [CALL],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "before", "calls"), TEXTS)
def test_calls_in_a_text_are_read_where_declared(
    text: str, before: str, calls: list[tuple[str, str]]
) -> None:
    (message,), _ = read(said(text))
    assert (message.content, calls_of(message)) == (before, calls)


@pytest.mark.parametrize(("text", "before", "calls"), TEXTS[:3])
def test_thinking_before_a_call_stays_thinking(
    text: str, before: str, calls: list[tuple[str, str]]
) -> None:
    thought = "<think>\nask with <tool_call> now\n</think>\n\n"
    (message,), _ = read(said(thought + text))
    assert message.thinking == "ask with <tool_call> now"
    assert (message.content, calls_of(message)) == (before, calls)


IGNORE = "'data.ignore=[calls_in_text]'"
REFUSED: list[tuple[str, str]] = [
    ('<tool_call>{"name": "sail", "arguments": {}}</tool_call>', "calls `sail`, which"),
    ("<function=sail>\n<parameter=to>Faro</parameter>\n</function>", "calls `sail`, which"),
    ('[sail(to="Faro")]', "calls `sail`, which"),
    ("<tool_call>{\"name\": \"tide\", \"arguments\": {</tool_call>", "cannot be parsed"),
    ("<function=tide>port: Faro</function>", "cannot be parsed"),
    (f"<tool_call>{FARO_TEXT}</tool_call> It is high.", "goes on after its call: 'It is high.'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what"), REFUSED)
def test_calls_in_a_text_are_refused_otherwise_and_the_advice_trains_the_text(
    text: str, what: str
) -> None:
    found, where, mend = problem(said(text))
    assert what in found and where == "messages[1]" and IGNORE in mend
    row = {"messages": [USER, said(text)], "tools": TOOLS}
    read_text = read_row(row, WHERE, Reading(ignore=frozenset(("calls_in_text",))))
    assert isinstance(read_text.example, Conversation)
    assert read_text.example.messages[1] == Message("assistant", text)
    assert list(read_text.notes.values()) == [1]


@pytest.mark.parametrize(
    "text",
    [
        "Write <tool_call> before a call.",
        "[1, 2, (3)]",
        "[See here](https://example.org/a(b))",
        '{"name": "Faro", "kind": "port"}',
        '{"name": "sail", "arguments": {}}',
        "[f() for f in (g, h)]",
        "<b>bold</b>",
    ],
)
def test_other_texts_stay_texts(text: str) -> None:
    assert read(said(text)) == ((Message("assistant", text),), {})


DECLARING: list[tuple[str, bool]] = [
    (f"Use these. <tools>{json.dumps([TIDE])}</tools> Be brief.", True),
    (f"Use these. <tools>\n{json.dumps({'type': 'function', 'function': TIDE})}\n</tools>", True),
    (f"Use these. <tools>{[TIDE]!r}</tools>", True),
    (f"Functions you can invoke:\n{json.dumps([TIDE])}. \nAnswer with calls.", True),
    (f"Functions:\n{json.dumps(TIDE, indent=4)}\n", True),
    (f"<tools>{json.dumps([TIDE])}</tools>", False),
    (json.dumps([TIDE]), False),
]


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(("text", "stays"), DECLARING)
def test_tools_in_a_system_text_are_declared_and_other_words_stay(
    text: str, stays: bool, column: bool
) -> None:
    system = [] if column else [{"role": "system", "content": text}]
    keys = {"system": text} if column else {}
    row = {"messages": [*system, USER, said(f"<tool_call>{FARO_TEXT}</tool_call>")]} | keys
    found = read_row(row, WHERE)
    assert isinstance(found.example, Conversation)
    assert [(tool.name, tool.parameters) for tool in found.example.tools] == [
        ("tide", TIDE["parameters"])
    ]
    texts = [m.content for m in found.example.messages if m.role == "system" and m.content]
    assert texts == ([text] if stays else [])
    assert calls_of(found.example.messages[-1]) == [CALL]
    assert list(found.notes) == ["tools declared in a system text: declared to the model as well"]


KEYS: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"function_call": {"name": "tide", "arguments": '{"port":"Faro"}'}}, [CALL]),
    ({"function_call": FARO_TEXT}, [CALL]),
    ({"function_calls": 'tide(port="Faro")'}, [CALL]),
    ({"function_calls": 'tide(port="Faro")\nwind(port="Lagos")'}, BOTH),
    ({"function_calls": [FARO, LAGOS]}, BOTH),
    ({"tool_calls": [FARO, LAGOS]}, BOTH),
    ({"tool_calls": json.dumps([FARO])}, [CALL]),
    ({"tool_calls": [FARO_TEXT]}, [CALL]),
    ({"tool_calls": {"name": "tide", "args": {"port": "Faro"}, "type": "tool_call"}}, [CALL]),
    ({"tool_calls": [{"function": "tide", "arguments": {"port": "Faro"}}]}, [CALL]),
    ({"tool_calls": [{"type": "function", "function": FARO, "index": 0}]}, [CALL]),
]


@pytest.mark.parametrize(("keys", "calls"), KEYS)
@pytest.mark.parametrize("text", ["", "Let me look."])
def test_calls_in_other_keys_are_read(
    keys: dict[str, Any], calls: list[tuple[str, str]], text: str
) -> None:
    (message,), notes = read(said(text, **keys))
    assert (message.content, calls_of(message)) == (text, calls) and not notes


def test_functions_on_a_message_are_declared() -> None:
    system = {"role": "system", "content": "Be brief.", "functions": json.dumps(TOOLS)}
    row = {"messages": [system, USER, said("", function_calls='tide(port="Faro")')]}
    found = read_row(row, WHERE)
    assert isinstance(found.example, Conversation)
    assert [tool.name for tool in found.example.tools] == ["tide", "wind"]
    assert not found.notes and found.example.messages[0].content == "Be brief."
