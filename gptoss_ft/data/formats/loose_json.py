"""JSON as people and models write it: several values in one text, Python's own notation.

Everything is parsed, nothing is run.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

# Made once: `json.dumps` builds an encoder for every call.
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,;]*")
# Glaive's function calls: JSON whose arguments are JSON again, in single quotes.
_QUOTED = re.compile(r"""(["']arguments["']\s*:\s*)'(\{.*\})'\s*(?=[,}])""", re.DOTALL)
_OPENING = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}
_NOT_READ = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)


def dumped(value: Any) -> str | None:
    """Dumps compact JSON, the way the model itself writes it; None for what JSON cannot hold."""
    try:
        return COMPACT.encode(value)
    except (TypeError, ValueError, RecursionError):
        return None


def json_value(text: str) -> Any:
    """Reads one JSON value; ValueError for everything else."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def values(text: str) -> list[Any] | None:
    """Reads the objects and lists that a text consists of, in JSON or as Python writes them; None
    if it is anything else.
    """
    text = text.strip()
    if not text or text[0] not in "{[":
        return None
    found = _json_values(text)
    if found is None:
        literal = python_value(text)
        found = None if literal is None else [literal]
    if found is None and _QUOTED.search(text):
        found = _json_values(_QUOTED.sub(lambda m: m[1] + json.dumps(m[2]), text))
    return found


def _json_values(text: str) -> list[Any] | None:
    found, place = [], 0
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict | list):
            return None
        found.append(value)
        between = _BETWEEN.match(text, place)
        place = between.end() if between else place
    return found


def python_value(text: str) -> Any:
    """Reads a Python literal as the JSON value it stands for; None for everything else."""
    try:
        return json.loads(COMPACT.encode(ast.literal_eval(text)))
    except _NOT_READ:
        return None


def embedded(text: str) -> list[tuple[int, int, Any]]:
    """Finds the JSON objects and lists in a text: begin, end and value of each."""
    found, place = [], 0
    for opening in re.finditer(r"""\[\s*\{\s*"|\{\s*\"""", text):
        if opening.start() < place:
            continue
        try:
            value, place = _DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            continue
        found.append((opening.start(), place, value))
    return found


def elements(text: str) -> list[str] | None:
    """Cuts a JSON list into the texts of its elements, each as it is written, strings without their
    quotes; None if it is no list.
    """
    text = text.strip()
    if text[:1] != "[":
        return None
    found: list[str] = []
    place = 1
    while True:
        between = _BETWEEN.match(text, place)
        place = between.end() if between else place
        if text[place : place + 1] == "]":
            return found if place + 1 == len(text) else None
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        found.append(value if isinstance(value, str) else text[place:end])
        place = end


def split_outside(text: str, separator: str) -> list[str]:
    """Splits at a character where it stands outside of quotes and brackets."""
    parts, begin, place = [], 0, 0
    closing: list[str] = []
    while place < len(text):
        char = text[place]
        if char in "\"'":
            place = _end_of_quote(text, place)
        elif closing and char == closing[-1]:
            closing.pop()
        elif char in _OPENING:
            closing.append(_OPENING[char])
        elif char == separator and not closing:
            parts.append(text[begin:place])
            begin = place + 1
        place += 1
    return [*parts, text[begin:]]


def _end_of_quote(text: str, place: int) -> int:
    quote = text[place]
    place += 1
    while place < len(text) and text[place] != quote:
        place += 2 if text[place] == "\\" else 1
    return place


def called_functions(text: str) -> list[tuple[str, list[tuple[str, Any]]]] | None:
    """Reads calls in Python's notation, `f(a=1), g()` or a list of such, names as they stand.

    Returns each name with its arguments, the name of one given by its position empty; None for any
    other text.
    """
    text = text.strip()
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1].strip()
    text = text.removesuffix(",")
    found = []
    for part in split_outside(text, ","):
        name, opened, rest = part.strip().partition("(")
        if not (opened and rest.endswith(")") and _NAME.fullmatch(name.strip())):
            return None
        arguments = _arguments(rest[:-1])
        if arguments is None:
            return None
        found.append((name.strip(), arguments))
    return found


_NAME = re.compile(r"[^\W\d][\w.\-/: ]*")
_KEY = re.compile(r"\s*([^\W\d][\w.\- ]*?)\s*=(?!=)\s*(.*)\Z", re.DOTALL)


def _arguments(text: str) -> list[tuple[str, Any]] | None:
    found = []
    for part in split_outside(text, ","):
        if not part.strip():
            continue
        key = _KEY.match(part)
        name, given = (key[1], key[2].strip()) if key else ("", part.strip())
        value = _WORDS.get(given, ...)
        if value is ... and given != "None":
            value = python_value(given)
            if value is None:
                try:
                    value = json_value(given)
                except ValueError:
                    return None
        found.append((name, None if value is ... else value))
    return found
