"""The tool block of a system or developer message: schemas written as TypeScript declarations.

Source: the Harmony response format, as openai-harmony 0.0.8 writes it; its quirks (text of a
multi-line property description left as it is, unescaped quotes in defaults) are kept, because the
model was trained on them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.harmony.messages import Namespace, ToolSpec

FUNCTIONS = "functions"
_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def tools_text(namespaces: Sequence[Namespace]) -> str:
    """Writes the `# Tools` section for at least one namespace, without a trailing newline."""
    return "\n\n".join(["# Tools", *(_namespace_text(namespace) for namespace in namespaces)])


def _namespace_text(namespace: Namespace) -> str:
    name, lines = namespace.name, _lines(namespace.description)
    if not namespace.tools:
        return "\n".join([f"## {name}\n", *lines])
    comments = [f"// {line}" for line in lines]
    declarations = [_declaration(tool) for tool in namespace.tools]
    opening, closing = f"namespace {name} {{\n", f"}} // namespace {name}"
    return "\n".join([f"## {name}\n", *comments, opening, *declarations, closing])


def _declaration(tool: ToolSpec) -> str:
    comments = "".join(f"// {line}\n" for line in _lines(tool.description))
    if tool.parameters is None:
        return f"{comments}type {tool.name} = () => any;\n"
    return f"{comments}type {tool.name} = (_: {schema_type(tool.parameters)}) => any;\n"


def _lines(text: str) -> list[str]:
    """Splits lines at \n or \r\n only; a last empty line does not count."""
    *ended, last = text.split("\n")
    lines = [line.removesuffix("\r") for line in ended]
    return [*lines, last] if last else lines


def schema_type(schema: Any, indent: str = "") -> str:
    """Writes the TypeScript type of a JSON schema; `indent` is put before each line after the
    first.
    """
    variants, kind = _get(schema, "oneOf"), _get(schema, "type")
    if isinstance(variants, list):
        return "".join(_bare_variant(variant, indent) for variant in variants)
    if isinstance(kind, list):
        kinds = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(kinds) or "any"
    if kind == "object":
        return _object_type(schema, indent)
    if kind == "array":
        if "items" not in schema:
            return "Array<any>"
        return f"{schema_type(schema['items'], indent)}[]"
    if kind == "string":
        choices = [f'"{value}"' for value in _enum(schema) if isinstance(value, str)]
        return " | ".join(choices) or "string"
    return _SCALARS.get(kind, "any") if isinstance(kind, str) else "any"


def _bare_variant(variant: Any, indent: str) -> str:
    """Writes one line of a oneOf that is not itself the value of a property."""
    comments = [_text(variant, "description"), _default(variant, bare_enum=False)]
    return f"\n{indent} | {_nullable_type(variant, indent + '   ')}{_trailing(comments)}"


def _object_type(schema: Any, indent: str) -> str:
    description = _text(schema, "description")
    opening = "" if description is None else f"{indent}// {description}\n"
    properties = _get(schema, "properties")
    required = _get(schema, "required")
    required = required if isinstance(required, list) else []
    fields = properties.items() if isinstance(properties, Mapping) else ()
    body = "".join(_property(name, value, name in required, indent) for name, value in fields)
    return f"{opening}{{\n{body}{indent}}}"


def _property(name: str, schema: Any, required: bool, indent: str) -> str:
    head = f"{indent}{name}{'' if required else '?'}:"
    comments = _property_comments(schema, indent)
    variants = _get(schema, "oneOf")
    if isinstance(variants, list):
        return f"{comments}{_one_of_property(schema, variants, head, indent)}"
    # A `oneOf` that is not a list hides description and default, but not the rest.
    default = None if _has(schema, "oneOf") else _default(schema, bare_enum=True)
    return f"{comments}{head} {_nullable_type(schema, indent + '    ')},{_trailing([default])}\n"


def _property_comments(schema: Any, indent: str) -> str:
    title, description = _text(schema, "title"), _text(schema, "description")
    examples = _get(schema, "examples")
    lines = []
    if title is not None:
        lines += [title, None]
    if description is not None and not _has(schema, "oneOf"):
        lines.append(description)
    if isinstance(examples, list) and examples:
        lines.append("Examples:")
        lines += [f'- "{example}"' for example in examples if isinstance(example, str)]
    return "".join(f"{indent}//\n" if line is None else f"{indent}// {line}\n" for line in lines)


def _one_of_property(schema: Any, variants: list[Any], head: str, indent: str) -> str:
    """Writes a oneOf property: its description above its name, unless the first variant repeats
    it.
    """
    description = _text(schema, "description")
    first = _text(variants[0], "description") if variants else None
    described = description is not None and description != first
    above = [description if described else None, _default(schema, bare_enum=True)]
    lines = [f"{indent}// {comment}\n" for comment in above if comment is not None]
    lines.append(f"{head}\n")
    for place, variant in enumerate(variants):
        own = _text(variant, "description")
        if own == description or (place == 0 and described):
            own = None
        comments = _trailing([own, _default(variant, bare_enum=True)])
        lines.append(f"{indent} | {_nullable_type(variant, indent + '   ')}{comments}\n")
    lines.append(f"{indent},\n")
    return "".join(lines)


def _nullable_type(schema: Any, indent: str) -> str:
    text = schema_type(schema, indent)
    return f"{text} | null" if _get(schema, "nullable") is True and "null" not in text else text


def _trailing(comments: Sequence[str | None]) -> str:
    shown = [comment for comment in comments if comment is not None]
    return f" // {' '.join(shown)}" if shown else ""


def _default(schema: Any, *, bare_enum: bool) -> str | None:
    """Writes `default: …`; with `bare_enum` the default of a string enum stands without quotes."""
    if not _has(schema, "default"):
        return None
    value = schema["default"]
    if isinstance(value, str) and not _enum(schema):
        return f'default: "{value}"'
    if isinstance(value, str) and bare_enum:
        return f"default: {value}"
    return f"default: {_json(value)}"


def _json(value: Any) -> str:
    """Writes compact JSON with floats as serde_json writes them: exponents differ from Python's."""
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_json(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _float(value: float) -> str:
    if not math.isfinite(value):
        return "null"
    text = repr(value)
    small = re.fullmatch(r"(-?)(\d)(?:\.(\d+))?e-05", text)
    if small:  # the shortest digits are the same; only at 1e-5 the choice of notation differs
        return f"{small[1]}0.0000{small[2]}{small[3] or ''}"
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else text


def _get(schema: Any, key: str) -> Any:
    return schema.get(key) if isinstance(schema, Mapping) else None


def _has(schema: Any, key: str) -> bool:
    return isinstance(schema, Mapping) and key in schema


def _text(schema: Any, key: str) -> str | None:
    value = _get(schema, key)
    return value if isinstance(value, str) else None


def _enum(schema: Any) -> list[Any]:
    value = _get(schema, "enum")
    return value if isinstance(value, list) else []
