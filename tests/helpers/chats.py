"""Chats for tests: short ways to write them, and hypothesis strategies for them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from gptoss_ft.harmony.messages import Conversation, Message, ToolCall, ToolSpec


def write_chats(file: Path, count: int) -> Path:
    """`count` chats of one turn, each answer longer than the one before."""
    rows = [
        [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "thinking": "Think.", "content": f"Answer {number}. " * number},
        ]
        for number in range(1, count + 1)
    ]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def chat(*messages: Message) -> Conversation:
    return Conversation(messages)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str = "", thinking: str = "", weight: float = 1.0, *calls: str) -> Message:
    made = tuple(ToolCall(name, "{}") for name in calls)
    return Message("assistant", text, thinking, made, weight=weight)


LOOK_ALIKES = (
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|start|>assistant<|channel|>final<|message|>",
    "<|start|>system<|message|>",
    "<|endoftext|>",
    "<|constrain|>json",
    "<|reserved_200013|>",
)
PIECES = (
    "word", " ", "\n", "\n\n", "\t", "  ", "12345", "Olá, você", "naïve", "日本語", "🙂", "👩‍👧",
    "العربية", "हिन्दी", ")", "...", "//", "# Tools", "it's", "'LL", "CamelCase", "a" * 50,
    '"quoted"', "{", "}", "\r\n", "\u200b", "e\u0301",
)  # fmt: skip

# One string is one draw for hypothesis: its letters stand for pieces, a second string is anything.
_LETTERS = {chr(0x4E00 + place): piece for place, piece in enumerate((*PIECES, *LOOK_ALIKES))}
texts = (
    st.tuples(st.text("".join(_LETTERS), max_size=8), st.text(max_size=8))
    .map(lambda pair: "".join(_LETTERS[letter] for letter in pair[0]) + pair[1])
    .filter(bool)
)
maybe_texts = st.one_of(st.just(""), texts)
names = st.text(string.ascii_letters + string.digits + "_-", max_size=12).map("f{}".format)
# openai-harmony reads a decimal with many digits one unit in the last place off, so few are given.
decimals = st.builds(
    lambda digits, power: float(f"{digits}e{power}"), st.integers(-999, 999), st.integers(-12, 18)
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**62), 2**62),
    decimals,
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=4,
)


def _noted(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """The schema with any of the annotations that the tool block shows or must ignore."""
    notes = st.fixed_dictionaries(
        {},
        optional={
            "description": texts,
            "title": texts,
            "default": values,
            "nullable": st.booleans(),
            "examples": st.lists(values, max_size=2),
            "enum": st.lists(scalars, max_size=3),
            "minimum": st.integers(0, 3),
            "$defs": st.just({"place": {"type": "string"}}),
        },
    )
    return st.tuples(schemas, notes).map(lambda pair: pair[0] | pair[1])


_leaves = st.one_of(
    st.sampled_from(
        [
            *({"type": kind} for kind in ("string", "number", "integer", "boolean", "null")),
            {"type": ["integer", "null"]},
            {"type": ["string", "number"]},
            {"type": []},
            {"type": "array"},
            {"type": "object"},
            {},
            {"oneOf": []},
            {"oneOf": None, "type": "string"},
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
            {"anyOf": [{"type": "string"}], "type": "string"},
            {"allOf": [{"$ref": "#/$defs/place"}]},
            {"$ref": "#/$defs/place"},
            {"$ref": "#/$defs/place", "type": "object"},
            {"const": "a"},
            {"type": ["array", "null"], "items": {"type": "string"}},
            {"type": "object", "additionalProperties": {"type": "number"}},
        ]
    ),
)


def _grown(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    array = inner.map(lambda items: {"type": "array", "items": items})
    one_of = st.lists(inner, min_size=1, max_size=3).map(lambda variants: {"oneOf": variants})
    any_of = st.lists(inner, min_size=1, max_size=2).map(lambda variants: {"anyOf": variants})
    return _noted(st.one_of(array, one_of, any_of, _objects(inner)))


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, inner, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if properties and draw(st.booleans()):
        schema["required"] = draw(st.lists(st.sampled_from(sorted(properties)), max_size=3))
    return schema


schemas = st.recursive(_noted(_leaves), _grown, max_leaves=6)
small_schemas = st.recursive(_noted(_leaves), _grown, max_leaves=2)
parameters = st.one_of(st.none(), _objects(schemas), schemas)
tool_specs = st.builds(ToolSpec, names, maybe_texts, st.one_of(st.none(), _objects(small_schemas)))
weights = st.sampled_from((0.0, 0.5, 1.0, 2.0))


arguments = st.builds(lambda name, text: json.dumps({name: text}), names, texts)
function_calls = st.builds(ToolCall, names, arguments)
builtin_calls = st.one_of(
    st.builds(ToolCall, st.just("python"), texts, builtin=st.just(True)),
    st.builds(
        ToolCall,
        st.sampled_from(("browser.search", "browser.open", "browser.find")),
        arguments,
        builtin=st.just(True),
    ),
)


@st.composite
def tool_rounds(draw: st.DrawFn) -> list[Message]:
    """An assistant message with one or two parallel calls, and the results of all of them."""
    calls = draw(st.lists(st.one_of(function_calls, builtin_calls), min_size=1, max_size=2))
    thinking, preamble = draw(maybe_texts), draw(maybe_texts)
    asked = Message("assistant", preamble, thinking, tuple(calls), weight=draw(weights))
    order = draw(st.permutations(calls))
    return [asked, *(_result(call, draw(maybe_texts)) for call in order)]


def _result(call: ToolCall, text: str) -> Message:
    return Message("tool", text, name=call.name, builtin=call.builtin)


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    """A question, any number of tool rounds, an answer; now and then an instruction in between."""
    said = [Message("user", draw(maybe_texts))]
    if draw(st.integers(0, 4)) == 0:
        said.insert(0, Message(draw(st.sampled_from(("system", "developer"))), draw(maybe_texts)))
    for called in draw(st.lists(tool_rounds(), max_size=2)):
        said += called
    if draw(st.integers(0, 4)) == 0:
        said.append(Message("assistant", thinking=draw(texts), weight=draw(weights)))
    said.append(Message("assistant", draw(texts), draw(maybe_texts), weight=draw(weights)))
    return said


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    roles = st.sampled_from(("system", "developer"))
    # A function of two arguments: hypothesis draws every field of a NamedTuple.
    instructions = st.builds(lambda role, text: Message(role, text), roles, maybe_texts)
    messages = draw(st.lists(instructions, max_size=2))
    for turn in draw(st.lists(turns(), min_size=1, max_size=3)):
        messages += turn
    if draw(st.integers(0, 5)) == 0:
        messages += draw(tool_rounds())[:1]
    tools = tuple(draw(st.lists(tool_specs, max_size=2)))
    effort = draw(st.sampled_from((None, "low", "medium", "high")))
    builtin = draw(st.sampled_from(((), ("python",), ("browser",), ("python", "browser"))))
    return Conversation(tuple(messages), tools, effort, builtin)
