"""Parameters of tools in other notations, rewritten as JSON schema.

Harmony declares a parameter only if its schema says so in the words of JSON schema: of
`"type": "dict"` it would write nothing. What is JSON schema already is left exactly as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded
from gptoss_ft.data.formats.loose_json import python_value, split_outside

JSON_TYPES = frozenset(("string", "integer", "number", "boolean", "array", "object", "null"))
ANY = "any"
_WORDS = {
    "string": """str string text char character varchar date datetime date-time time timestamp uuid
        url uri email path file filepath filename bytes enum regex password duration""",
    "integer": """int integer long short byte bigint biginteger int8 int16 int32 int64 uint uint32
        uint64 integral count""",
    "number": """float double decimal number num numeric real float32 float64 bigdecimal
        complex""",
    "boolean": "bool boolean bit logical",
    "array": """list array tuple set frozenset arraylist linkedlist vector sequence iterable
        collection queue stack deque list_type array_type""",
    "object": """dict object map hashmap hash hashtable treemap dictionary mapping json record
        struct linkedhashmap""",
    "null": "null none void nil nonetype undefined",
    ANY: "any mixed unknown var variant type_unspecified union generic t",
}
TYPE_OF = MappingProxyType({word: kind for kind, words in _WORDS.items() for word in words.split()})
# Where a schema holds one schema, a list of them, or some by name.
_ONE = frozenset(
    (
        "items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else",
        "propertyNames", "unevaluatedProperties", "unevaluatedItems",
    )
)  # fmt: skip
_LISTS = frozenset(("oneOf", "anyOf", "allOf", "prefixItems"))
_NAMED = frozenset(("$defs", "definitions", "patternProperties", "dependentSchemas"))
# Words of a schema; any other name beside them, holding an object, is a parameter.
_SCHEMA_WORDS = _ONE | _LISTS | _NAMED | {
    "type", "properties", "required", "default", "const", "example", "examples", "enum", "title",
    "description", "format", "nullable", "dependencies", "dependentRequired", "discriminator",
    "xml", "externalDocs", "annotations",
}  # fmt: skip
_NO_OBJECT = frozenset(("$ref", "anyOf", "oneOf", "allOf", "enum", "const"))

_OPTIONAL = re.compile(r"[\s,;(\[]*\boptional\b(?!\s*[\[<])[\s)\]]*", re.IGNORECASE)
_REQUIRED = re.compile(r"[\s,;(\[]*\brequired\b[\s)\]]*", re.IGNORECASE)
_DEFAULT = re.compile(r"[\s,;(]*\b(?:default|defaults to)\b.*\Z", re.IGNORECASE | re.DOTALL)
_OF = re.compile(r"([\w-]+?)s?(?:\s*\(s\))?\s+of\s+(.+)", re.IGNORECASE | re.DOTALL)
_GENERIC = re.compile(r"(?:\w+\.)*(\w+)\s*[\[<(](.*)[\])>]", re.DOTALL)
_PLAIN = re.compile(r"[\w\- ]+")


def is_regular(schema: Any) -> bool:
    """Returns whether nothing needs to be rewritten: no null that Arrow filled in, no type that
    JSON schema does not know. Says no a little too often, never yes.
    """
    if isinstance(schema, OBJECTS):
        kind, properties = schema.get("type"), schema.get("properties")
        if isinstance(kind, str):
            odd = kind not in JSON_TYPES
        elif isinstance(kind, list):
            odd = any(not isinstance(one, str) or one not in JSON_TYPES for one in kind)
        else:
            odd = properties is not None
        if odd or isinstance(schema.get("required"), bool) or not _are_schemas(properties):
            return False
        for name, value in schema.items():
            if value is None:
                if name not in ("default", "const"):
                    return False
            elif not isinstance(value, str) and not is_regular(value):
                return False
        return True
    return not isinstance(schema, list) or all(map(is_regular, schema))


def _are_schemas(properties: Any) -> bool:
    if not isinstance(properties, OBJECTS):
        return properties is None
    return not any(isinstance(value, str) for value in properties.values())


def object_schema(raw: Any, required: Any, state: RowState, *, regular: bool = False) -> Any:
    """Rewrites the parameters of a function, nested, flat or listed, as the schema of an object.

    Args:
        raw: the parameters.
        required: names of the required ones, where they stand beside the parameters.
        state: of the row, for its notes.
        regular: whether `is_regular` says so already.
    """
    if isinstance(raw, list):
        raw = {"type": "object", "properties": _by_name(raw)}
    flat = _flat(raw) if isinstance(raw, OBJECTS) else None
    if flat is not None:
        raw = _of_flat(raw, flat, state)
    elif not (regular or is_regular(raw)):
        raw = _schema(raw, state)
    names = required if isinstance(required, list) else []
    if names and isinstance(raw, OBJECTS) and "properties" in raw and not raw.get("required"):
        raw = {**raw, "required": names}
    return raw


def _by_name(listed: list[Any]) -> Any:
    """Rewrites a list of parameters that hold their own names; any other list stays."""
    if not all(isinstance(one, OBJECTS) and isinstance(one.get("name"), str) for one in listed):
        return listed
    return {one["name"]: {k: v for k, v in one.items() if k != "name"} for one in listed}


def _flat(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the parameters that stand in the place of a schema, if any do."""
    if isinstance(schema.get("properties"), OBJECTS) and isinstance(schema.get("type"), str | None):
        return None
    typed = isinstance(schema.get("type"), str)
    if typed and TYPE_OF.get(schema["type"].lower()) != "object":
        return None
    if not typed and not _NO_OBJECT.isdisjoint(schema):
        return None
    return {
        name: value
        for name, value in schema.items()
        if not name.startswith("$")
        and (
            (isinstance(value, str) and not typed and name not in _SCHEMA_WORDS)
            or (isinstance(value, OBJECTS) and _is_parameter(name, value, typed))
        )
    } or None


def _is_parameter(name: str, value: Mapping[str, Any], typed: bool) -> bool:
    if name not in _SCHEMA_WORDS:
        return True
    return not typed and name not in _ONE | _NAMED and ("type" in value or "description" in value)


def _of_flat(raw: Mapping[str, Any], flat: dict[str, Any], state: RowState) -> dict[str, Any]:
    """Writes the schema of flat parameters: required are those that are not said to be optional and
    have no default.
    """
    listed = raw.get("required")
    properties, required = {}, []
    for name, value in flat.items():
        schema, optional = _property(value, state)
        properties[name] = schema
        if optional is None:
            optional = "default" in schema
        if not (name not in listed if isinstance(listed, list) else optional):
            required.append(name)
    rest = {k: v for k, v in raw.items() if k not in flat and k not in ("type", "required")}
    found = {"type": "object", **rest, "properties": properties}
    return {**found, "required": required} if required else found


def _property(raw: Any, state: RowState) -> tuple[Any, bool | None]:
    """Rewrites the schema of a parameter; the second says whether it calls itself optional."""
    if isinstance(raw, str):
        read = _read_type(raw)
        if read is None:
            return {"description": raw}, None
        return read
    schema, optional = _schema(raw, state), None
    if isinstance(raw, OBJECTS):
        kind = raw.get("type")
        said = _read_type(kind) if isinstance(kind, str) else None
        optional = said[1] if said else None
        for name, means in (("required", False), ("optional", True)):
            if isinstance(raw.get(name), bool):
                optional = raw[name] is means
                schema = {k: v for k, v in schema.items() if k != name}
    return schema, optional


def _schema(raw: Any, state: RowState) -> Any:
    """Rewrites a schema, at any depth."""
    raw = decoded(raw)
    if isinstance(raw, str):
        return _typed(raw, state)
    if isinstance(raw, list):
        return [_schema(one, state) for one in raw]
    if not isinstance(raw, OBJECTS):
        return raw
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "type" and isinstance(value, str | list):
            found |= {k: v for k, v in _typed(value, state).items() if k == "type" or k not in raw}
        elif name == "properties":
            _add_properties(found, raw, state)
        elif name in _ONE and not isinstance(value, bool):
            found[name] = _schema(value, state)
        elif name in _LISTS and isinstance(value, list):
            found[name] = [_schema(one, state) for one in value]
        elif name in _NAMED and isinstance(value, OBJECTS):
            found[name] = {key: _schema(one, state) for key, one in value.items()}
        elif name != "required" or "required" not in found:
            found[name] = value
    if "type" not in found and isinstance(found.get("properties"), OBJECTS):
        found["type"] = "object"
    return found


def _add_properties(found: dict[str, Any], raw: Mapping[str, Any], state: RowState) -> None:
    properties = raw["properties"]
    properties = _by_name(properties) if isinstance(properties, list) else properties
    if not isinstance(properties, OBJECTS):
        found["properties"] = properties
        return
    read = {name: _property(value, state) for name, value in properties.items()}
    found["properties"] = {name: schema for name, (schema, _) in read.items()}
    needed = [name for name, (_, optional) in read.items() if optional is False]
    listed = raw.get("required")
    if isinstance(listed, list):
        needed = [*listed, *(name for name in needed if name not in listed)]
    if needed and needed != listed:
        found["required"] = needed


def _typed(kind: Any, state: RowState) -> dict[str, Any]:
    """Writes a type as the part of a schema that says the same; nothing for any type."""
    if isinstance(kind, list):
        kinds = [one for one in kind if isinstance(one, str)]
        return _union([_typed(one, state) for one in kinds])
    read = _read_type(kind)
    if read is None:
        state.note(f"the type `{kind}` of a tool's parameter is not known: declared as any")
        return {}
    return read[0]


def _read_type(text: str) -> tuple[dict[str, Any], bool | None] | None:
    """Reads the text of a type; whether it says that the parameter is optional comes second."""
    if text in JSON_TYPES:
        return {"type": text}, None
    bare = _DEFAULT.sub("", text)
    shorter = _REQUIRED.sub("", _OPTIONAL.sub("", bare))
    optional = None
    if shorter != bare:
        optional = _OPTIONAL.search(bare) is not None
    schema = _shape(shorter.strip(" ,;."))
    return None if schema is None else (schema, optional)


def _shape(text: str) -> dict[str, Any] | None:
    lower = text.lower()
    kind = TYPE_OF.get(lower)
    if kind is not None:
        return {} if kind == ANY else {"type": kind}
    if text.endswith("[]"):
        return _array(text[:-2])
    for separator in (" or ", "|", "/", ","):
        parts = _parts(text, separator)
        if len(parts) > 1:
            return _all_shapes(parts)
    generic = _GENERIC.fullmatch(text)
    if generic:
        return _generic(generic[1].lower(), generic[2])
    of = _OF.fullmatch(text)
    if of and TYPE_OF.get(of[1].lower()) == "array":
        return _array(of[2])
    return None if of or not lower.endswith("s") else _shape(text[:-1])


def _parts(text: str, separator: str) -> list[str]:
    if separator == " or ":
        return text.split(separator) if _PLAIN.fullmatch(text) else [text]
    return [
        part.strip() for part in split_outside(text.replace("<", "[").replace(">", "]"), separator)
    ]


def _array(inner: str) -> dict[str, Any] | None:
    items = _shape(inner.strip())
    return None if items is None else {"type": "array", "items": items}


def _all_shapes(parts: list[str]) -> dict[str, Any] | None:
    shapes = [shape for part in parts if (shape := _shape(part.strip())) is not None]
    return _union(shapes) if len(shapes) == len(parts) else None


def _union(shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes types of which any may be given."""
    if {} in shapes:
        return {}
    if all(shape.keys() == {"type"} and isinstance(shape["type"], str) for shape in shapes):
        kinds = list(dict.fromkeys(shape["type"] for shape in shapes))
        return {"type": kinds[0] if len(kinds) == 1 else kinds}
    return {"oneOf": shapes}


def _generic(word: str, inner: str) -> dict[str, Any] | None:
    """Reads `list[…]`, `Optional[…]`, `Union[…]`, `Literal[…]`, `Map<…>` and the like."""
    parts = [part for part in _parts(inner, ",") if part]
    if word == "optional":
        shape = _shape(inner.strip())
        return None if shape is None else {**shape, "nullable": True}
    if word == "union":
        return _all_shapes(parts)
    if word in ("literal", "enum"):
        choices = python_value(f"[{inner}]")
        choices = parts if choices is None else choices
        return {"type": "string", "enum": choices} if choices else None
    kind = TYPE_OF.get(word)
    if kind == "array":
        shapes = [_shape(part) for part in parts if part != "..."]
        same = bool(shapes) and shapes[0] is not None and all(one == shapes[0] for one in shapes)
        return {"type": "array", "items": shapes[0]} if same else {"type": "array"}
    if kind == "object":
        value = _shape(parts[-1]) if parts else None
        return {"type": "object", "additionalProperties": value} if value else {"type": "object"}
    return None if kind is None else {"type": kind} if kind != ANY else {}
