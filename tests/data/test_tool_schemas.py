"""Tools in every layout that public datasets and APIs declare them in keep every parameter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from format_rows import ANSWER, USER, WHERE, problems

from gptoss_ft.data.formats.common import RowState
from gptoss_ft.data.formats.tool_types import is_regular, object_schema
from gptoss_ft.data.reading import read_row
from gptoss_ft.harmony.messages import Conversation, ToolSpec
from gptoss_ft.harmony.tools import Namespace, tools_text

SCHEMA = {
    "type": "object",
    "properties": {
        "port": {"type": "string", "description": "Which."},
        "hours": {"type": "integer"},
    },
    "required": ["port"],
}
BARE = {"name": "tide", "description": "Height.", "parameters": SCHEMA}
NESTED = {"type": "function", "function": BARE}
SPEC = ToolSpec("tide", "Height.", SCHEMA)
ABOUT = {"name": "tide", "description": "Height."}
UPPER = {
    "type": "OBJECT",
    "properties": {
        "port": {"type": "STRING", "description": "Which."},
        "hours": {"type": "INTEGER"},
    },
    "required": ["port"],
}
FLAT = {
    "port": {"type": "str", "description": "Which."},
    "hours": {"type": "int, optional"},
}


def specs(**keys: Any) -> tuple[tuple[ToolSpec, ...], Mapping[str, int]]:
    """The tools of a row with these columns, and its notes."""
    read = read_row({"messages": [USER, ANSWER]} | keys, WHERE)
    assert isinstance(read.example, Conversation)
    return read.example.tools, read.notes


LAYOUTS: dict[str, Any] = {
    "nested": [NESTED],
    "responses": [{"type": "function", **BARE, "strict": True}],
    "bare": [BARE],
    "one": NESTED,
    "text": json.dumps([NESTED]),
    "texts": [json.dumps(BARE)],
    "following": json.dumps(BARE) + "\n",
    "python": str([NESTED]),
    "schema as text": [ABOUT | {"parameters": json.dumps(SCHEMA)}],
    "anthropic": [ABOUT | {"input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}],
    "mcp": [ABOUT | {"inputSchema": SCHEMA}],
    "bedrock": {"tools": [{"toolSpec": ABOUT | {"inputSchema": {"json": SCHEMA}}}]},
    "gemini": [{"functionDeclarations": [ABOUT | {"parameters": UPPER}]}],
    "gemini rest": [{"function_declarations": [ABOUT | {"parameters": UPPER}]}],
    "langchain": [ABOUT | {"args_schema": SCHEMA}],
    "pydantic": [{"title": "tide", **SCHEMA, "description": "Height."}],
    "by name": {"tide": {"description": "Height.", "parameters": SCHEMA}},
    "harmony": {"functions": {"name": "functions", "description": None, "tools": [BARE]}},
    "flat": [ABOUT | {"parameters": FLAT}],
    "flat arguments": [ABOUT | {"arguments": FLAT}],
    "flat, typed": [ABOUT | {"parameters": {"type": "dict", "required": ["port"], **FLAT}}],
    "listed": [
        ABOUT
        | {
            "parameters": [
                {"name": "port", "type": "string", "description": "Which.", "required": True},
                {"name": "hours", "type": "integer", "required": False},
            ]
        }
    ],
    "toolbench": [
        ABOUT
        | {
            "required_parameters": [{"name": "port", "type": "STRING", "description": "Which."}],
            "optional_parameters": [{"name": "hours", "type": "NUMBER"}],
        }
    ],
    "required beside": [
        ABOUT
        | {
            "parameters": {k: v for k, v in SCHEMA.items() if k != "required"},
            "required": ["port"],
        }
    ],
    "no type": [ABOUT | {"parameters": {k: v for k, v in SCHEMA.items() if k != "type"}}],
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_every_layout_declares_the_same_function(layout: str, column: str) -> None:
    (tool,), notes = specs(**{column: LAYOUTS[layout]})
    expected = json.loads(json.dumps(SPEC.parameters))
    if layout == "toolbench":
        expected["properties"]["hours"] = {"type": "number"}
    assert (tool.name, tool.description, tool.parameters) == ("tide", "Height.", expected)
    assert not notes


TYPES: list[tuple[Any, dict[str, Any]]] = [
    ("dict", {"type": "object"}),
    ("float", {"type": "number"}),
    ("int", {"type": "integer"}),
    ("tuple", {"type": "array"}),
    ("list", {"type": "array"}),
    ("str", {"type": "string"}),
    ("bool", {"type": "boolean"}),
    ("any", {}),
    ("Any", {}),
    ("Boolean", {"type": "boolean"}),
    ("String", {"type": "string"}),
    ("char", {"type": "string"}),
    ("long", {"type": "integer"}),
    ("double", {"type": "number"}),
    ("Bigint", {"type": "integer"}),
    ("HashMap", {"type": "object"}),
    ("Hashtable", {"type": "object"}),
    ("ArrayList", {"type": "array"}),
    ("Queue", {"type": "array"}),
    ("NoneType", {"type": "null"}),
    ("list[str]", {"type": "array", "items": {"type": "string"}}),
    ("List[Dict[str, Any]]", {"type": "array", "items": {"type": "object"}}),
    (
        "Dict[str, float]",
        {"type": "object", "additionalProperties": {"type": "number"}},
    ),
    ("Tuple[int, int]", {"type": "array", "items": {"type": "integer"}}),
    ("ArrayList<String>", {"type": "array", "items": {"type": "string"}}),
    ("array of strings", {"type": "array", "items": {"type": "string"}}),
    ("list of int", {"type": "array", "items": {"type": "integer"}}),
    ("string[]", {"type": "array", "items": {"type": "string"}}),
    ("Union[int, float]", {"type": ["integer", "number"]}),
    ("int | None", {"type": ["integer", "null"]}),
    ("string or number", {"type": ["string", "number"]}),
    ("Optional[str]", {"type": "string", "nullable": True}),
    ("Literal['a', 'b']", {"type": "string", "enum": ["a", "b"]}),
    (["str", "None"], {"type": ["string", "null"]}),
]


@pytest.mark.parametrize(("kind", "expected"), TYPES)
def test_types_of_other_languages_become_those_of_json_schema(
    kind: Any, expected: dict[str, Any]
) -> None:
    raw = {"type": "dict", "properties": {"a": {"type": kind}}}
    deep = {"type": "array", "items": {"type": "dict", "properties": {"a": {"type": kind}}}}
    state = RowState("")
    assert object_schema(raw, None, state)["properties"]["a"] == expected
    nested = object_schema({"type": "dict", "properties": {"b": deep}}, None, state)
    assert nested["properties"]["b"]["items"]["properties"]["a"] == expected
    assert not state.notes


def test_an_unknown_type_is_declared_as_any_and_noted() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "Widget", "description": "d"}}}
    (tool,), notes = specs(tools=[ABOUT | {"parameters": parameters}])
    assert tool.parameters == {"type": "object", "properties": {"a": {"description": "d"}}}
    assert dict(notes) == {
        "the type `Widget` of a tool's parameter is not known: declared as any": 1
    }


OBJECT = {"type": "object"}
REFERENCE = {"$ref": "#/$defs/A"}
PROPER_PROPERTIES: list[dict[str, Any]] = [
    {},
    {"type": {"type": "string"}, "items": {"type": "string"}},
    {"properties": OBJECT, "required": {"type": "boolean"}},
    {"a": {"enum": [1, None]}, "b": {}, "c": True},
    {"a": {"type": "object", "default": {"type": "dict"}}},
    {"a": {"type": ["string", "null"], "default": None}},
    {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    {"a": {"items": {"type": "string"}}},
]
PROPER: list[dict[str, Any]] = [
    {},
    OBJECT,
    *({"type": "object", "properties": properties} for properties in PROPER_PROPERTIES),
    {"type": "object", "properties": {"a": REFERENCE}, "$defs": {"A": OBJECT}},
    {"type": "object", "additionalProperties": {"type": "string"}, "description": "Free."},
    {**REFERENCE, "$defs": {"A": OBJECT}},
    {"anyOf": [OBJECT, {"type": "null"}]},
]


@pytest.mark.parametrize("schema", PROPER)
def test_a_proper_schema_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert json.dumps(object_schema(schema, None, RowState(""))) == json.dumps(schema)


def test_the_quick_test_never_passes_what_needs_rewriting() -> None:
    for kind, _ in TYPES:
        if kind != ["string", "null"]:
            assert not is_regular(
                {"type": "object", "properties": {"a": {"items": {"type": kind}}}}
            )


# A public benchmark's dialect: each of its types, nested too, in three languages.
BENCHMARK = [
    {
        "name": "geometry.area",
        "description": "Area.",
        "parameters": {
            "type": "dict",
            "properties": {
                "base": {"type": "float", "description": "b"},
                "corner": {"type": "tuple", "items": {"type": "float"}},
                "points": {
                    "type": "array",
                    "items": {
                        "type": "dict",
                        "properties": {"px": {"type": "integer"}, "py": {"type": "any"}},
                    },
                },
                "options": {
                    "type": "dict",
                    "properties": {
                        "unit": {"type": "string", "enum": ["m", "km"]},
                        "inner": {"type": "dict", "properties": {"deep": {"type": "boolean"}}},
                    },
                    "required": ["unit"],
                },
            },
            "required": ["base"],
        },
    },
    {
        "name": "Harbour.open",
        "description": "Java.",
        "parameters": {
            "type": "dict",
            "properties": {
                name: {"type": kind}
                for name, kind in {
                    "berth": "String",
                    "slots": "ArrayList",
                    "depths": "HashMap",
                    "turns": "Queue",
                    "tons": "double",
                    "mark": "char",
                    "age": "long",
                    "bits": "byte",
                    "few": "short",
                    "draught": "float",
                    "free": "Boolean",
                    "stack": "Stack",
                    "table": "Hashtable",
                    "rows": "Array",
                    "thing": "any",
                }.items()
            },
            "required": ["berth", "slots"],
        },
    },
    {
        "name": "openGate",
        "description": "JavaScript.",
        "parameters": {
            "type": "dict",
            "properties": {
                "count": {"type": "Bigint"},
                "ids": {"type": "array", "items": {"type": "String"}},
                "when": {"type": "dict", "properties": {"hour": {"type": "integer"}}},
                "how": {"type": "any"},
            },
            "required": ["count"],
        },
    },
]


def parameter_names(schema: Any) -> list[str]:
    """The names of all parameters in a schema, at any depth."""
    if isinstance(schema, list):
        return [name for one in schema for name in parameter_names(one)]
    if not isinstance(schema, dict):
        return []
    own = list(schema.get("properties", {}))
    return own + [name for value in schema.values() for name in parameter_names(value)]


@pytest.mark.parametrize("tool", BENCHMARK, ids=lambda tool: tool["name"])
def test_every_parameter_of_a_benchmarks_dialect_is_rendered(tool: dict[str, Any]) -> None:
    tools, notes = specs(tools=[tool])
    text = tools_text([Namespace("functions", "", tools)])
    names = parameter_names(tool["parameters"])
    assert len(names) >= 5
    for name in names:
        assert f"{name}: " in text or f"{name}?: " in text, f"{name} is lost in {text}"
    assert "base: number" in text or tool["name"] != "geometry.area"
    assert not notes


def test_parameters_of_objects_only_are_written_as_openai_harmony_does() -> None:
    (tool,), _ = specs(tools=[BENCHMARK[0]])
    assert tools_text([Namespace("functions", "", (tool,))]).splitlines()[6:] == [
        "// Area.",
        "type geometry.area = (_: {",
        "// b",
        "base: number,",
        "corner?: number[],",
        "points?: {",
        "    px?: number,",
        "    py?: any,",
        "    }[],",
        "options?: {",
        '    unit: "m" | "km",',
        "    inner?: {",
        "        deep?: boolean,",
        "        },",
        "    },",
        "}) => any;",
        "",
        "} // namespace functions",
    ]


def test_names_with_blanks_get_underscores_with_a_note() -> None:
    (tool,), notes = specs(tools=[{"name": "Tide Height", "parameters": SCHEMA}])
    assert tool.name == "Tide_Height"
    assert dict(notes) == {"names of tools with blanks: written with `_`": 1}


def test_what_harmony_cannot_declare_is_noted() -> None:
    _, notes = specs(tools=[BARE | {"returns": {"type": "string"}, "strict": True}])
    assert dict(notes) == {"key `returns` of tools not read: Harmony declares parameters only": 1}


def test_tools_in_metadata_are_taken_where_there_are_no_others() -> None:
    tools, notes = specs(metadata=json.dumps({"tools": [NESTED]}))
    assert tools == (SPEC,) and notes["tools taken from the row's metadata"] == 1
    other = {"name": "wind", "parameters": SCHEMA}
    assert [tool.name for tool in specs(tools=[other], metadata={"tools": [NESTED]})[0]] == ["wind"]
    assert specs(metadata={"tools": "hammer"})[0] == ()


@pytest.mark.parametrize("empty", [None, "", [], {}, "[]"])
def test_no_tools_are_none(empty: Any) -> None:
    assert specs(tools=empty) == ((), {})


BAD: list[tuple[Any, str, str]] = [
    ("a hammer", "tools", "neither a list nor JSON"),
    (3, "tools", "not a list"),
    ([3], "tools[0]", "not a function tool"),
    ([{}], "tools[0]", "not a function tool"),
    ([{"type": "mcp", "server_label": "x"}], "tools[0]", "not a function tool"),
    ([{"googleSearch": {"n": 1}}], "tools[0]", "not a function tool"),
    ([{"name": "a<b", "parameters": SCHEMA}], "tools[0].name", "not a function name"),
    ([{"name": "f", "parameters": 3}], "tools[0].parameters", "not a JSON schema"),
    ([{"name": "f", "parameters": ["a"]}], "tools[0].parameters", "not a JSON schema"),
    ([{"name": "f", "paramters": SCHEMA}], "tools[0].paramters", "unknown key of a tool"),
    (
        [{"name": "a b", "parameters": SCHEMA}, {"name": "a\tb", "parameters": SCHEMA}],
        "tools[1].name",
        "two tools would be called `a_b`",
    ),
]


@pytest.mark.parametrize(("tools", "where", "what"), BAD)
def test_what_is_no_function_is_refused(tools: Any, where: str, what: str) -> None:
    ((found, place, mend),) = problems({"messages": [USER, ANSWER], "tools": tools})
    assert what in found and place == where and mend
