"""Spans of models as Phoenix exports them, in the terms of OpenInference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded, is_empty
from gptoss_ft.data.layouts.bodies import sample
from gptoss_ft.data.layouts.layout import Layout
from gptoss_ft.data.layouts.nested import check_nested, opened, tool_list

_BESIDE = """
    llm openinference input output metadata session user tag tags exception span input_messages
    output_messages invocation_parameters tools model_name token_count provider system cost
    finish_reason
"""
BESIDE = frozenset(_BESIDE.split())
SEVERAL = "spans with several answers: the first is trained"
SPAN_KEYS = ("llm.input_messages", "llm.output_messages")


def _attributes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the attributes of a span of Phoenix, whether flat or as objects in objects."""
    flat = {name.removeprefix("attributes."): value for name, value in row.items()}
    nested = opened(row.get("attributes"))
    model = opened(nested.get("llm"))
    return flat | nested | {f"llm.{name}": value for name, value in model.items()}


def fits_span(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is a span of a model in OpenInference's terms."""
    if not any(name.startswith("attributes") for name in row):
        return False
    given = _attributes(row)
    return all(not is_empty(given.get(name)) for name in SPAN_KEYS)


def convert_span(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a span of Phoenix."""
    given = _attributes(row)
    nested = opened(row.get("attributes"))
    check_nested(nested, BESIDE, "attributes", state)
    check_nested(opened(nested.get("llm")), BESIDE, "attributes.llm", state)
    sides = []
    for name in SPAN_KEYS:
        messages = decoded(given[name])
        listed = messages if isinstance(messages, list) else []
        sides.append([_span_message(m, f"{name}[{i}]", state) for i, m in enumerate(listed)])
    if len(sides[1]) > 1:
        state.note(SEVERAL)
    columns: dict[str, Any] = {"messages": sides[0]}
    settings = opened(given.get("llm.invocation_parameters"))
    tools = tool_list({"tools": settings.get("tools") or _span_tools(given.get("llm.tools"))})
    return sample(columns | ({"tools": tools} if tools else {}), sides[1][:1])


def _span_tools(raw: Any) -> list[Any]:
    tools = decoded(raw)
    found = []
    for item in tools if isinstance(tools, list) else ():
        tool = _bare(opened(item), "tool")
        found.append(decoded(tool.get("json_schema", tool)))
    return found


def _bare(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Takes the name of the object off its keys, or takes the object out."""
    if isinstance(raw.get(name), OBJECTS):
        return opened(raw[name])
    return {key.removeprefix(f"{name}."): value for key, value in raw.items()}


def _span_message(raw: Any, key: str, state: RowState) -> dict[str, Any]:
    outer = opened(raw)
    message = _bare(outer, "message")
    if "message" in outer:
        check_nested(outer, frozenset(("message",)), key, state)
    calls = decoded(message.pop("tool_calls", None))
    contents = decoded(message.pop("contents", None))
    if isinstance(calls, list) and calls:
        message["tool_calls"] = [_span_call(_bare(opened(call), "tool_call")) for call in calls]
    if isinstance(contents, list) and contents:
        message["content"] = [_bare(opened(part), "message_content") for part in contents]
    return message


def _span_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = _bare(call, "function")
    names = ("name", "arguments")
    made: dict[str, Any] = {"function": {n: function[n] for n in names if n in function}}
    return {"type": "function", **({"id": call["id"]} if "id" in call else {}), **made}


_PHOENIX = """
    name span_kind parent_id start_time end_time status_code status_message events context
"""
SPAN = frozenset(("attributes", *(f"attributes.{name}" for name in SPAN_KEYS), *_PHOENIX.split()))
PASSES = frozenset(_PHOENIX.split())
LAYOUTS = (Layout("Phoenix span", fits_span, convert_span, lambda row: SPAN, PASSES),)
