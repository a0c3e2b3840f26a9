"""`data.columns`: where a row keeps what a format reads, as names, paths and templates."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from gptoss_ft.data.formats.common import decoded

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


def is_template(source: str) -> bool:
    """Returns whether a value of `data.columns` is a template rather than a column or a path."""
    return "{" in source


def value_of(source: str, row: Mapping[str, Any]) -> Any:
    """Looks up what `source` names in a row.

    Args:
        source: a column, a path such as `response.choices.0.message`, or a template such as
            `{instruction}\\n\\n{context}`, in which a backslash and n are a newline, `{{` and `}}`
            braces, and empty fields leave no white space at the ends.
        row: its columns.

    Returns:
        The value, null where there is none; of a template the text, null where all of its fields
        are.
    """
    if not is_template(source):
        return _at(source, row)
    values = {path: _at(path, row) for path in fields_of(source)}
    if all(value is None for value in values.values()):
        return None
    text = _FIELD.sub(lambda match: _written(match, values), source.replace("\\n", "\n"))
    return text if all(value not in (None, "") for value in values.values()) else text.strip()


def columns_of(source: str) -> tuple[str, ...]:
    """Returns the columns that a value of `data.columns` reads, of a path its first word."""
    return tuple(
        name for path in paths_of(source) for name in dict.fromkeys((path, path.split(".")[0]))
    )


def paths_of(source: str) -> tuple[str, ...]:
    """Returns the paths of a template, or the path itself."""
    return fields_of(source) if is_template(source) else (source,)


@lru_cache(maxsize=256)
def fields_of(template: str) -> tuple[str, ...]:
    """Returns the paths between the braces of a template, in order."""
    return tuple(_fields(template))


def _fields(template: str) -> Iterator[str]:
    for match in _FIELD.finditer(template):
        if match[1] is not None:
            yield match[1].strip()


def _written(match: re.Match[str], values: Mapping[str, Any]) -> str:
    if match[1] is None:
        return match[0][0]
    value = values[match[1].strip()]
    return "" if value is None else value if isinstance(value, str) else str(value)


def _at(path: str, row: Mapping[str, Any]) -> Any:
    """Follows a path through objects, lists and JSON texts; a column of that very name comes
    first.
    """
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        value = decoded(value)
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.lstrip("-").isdecimal():
            place = int(step)
            value = value[place] if -len(value) <= place < len(value) else None
        else:
            return None
    return value
