"""JSON texts to values, within limits: what Python's reader cannot hold is a ValueError.

Rows are quoted, copied and written again by functions that call themselves, so nesting is limited
well below the depth at which Python gives up.
"""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"
TOO_LONG = "an integer has thousands of digits"
_DECODER = json.JSONDecoder()


def load_json(text: str) -> Any:
    """Decodes a JSON text.

    Raises:
        ValueError: the text is not JSON (then a JSONDecodeError, which says where), or exceeds a
            limit.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _explained(error) from error
    _check_depth(value, text, 0, len(text))
    return value


def load_json_at(text: str, start: int) -> tuple[Any, int]:
    """Decodes the value that begins at `start`; returns it and where it ends.

    Raises:
        ValueError: as `load_json` does.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise _explained(error) from error
    _check_depth(value, text, start, end)
    return value, end


def _explained(error: Exception) -> ValueError:
    if isinstance(error, json.JSONDecodeError):
        return error
    # The only other error for a text is the interpreter's limit on the digits of integers.
    return ValueError(TOO_DEEP if isinstance(error, RecursionError) else TOO_LONG)


def _check_depth(value: Any, text: str, start: int, end: int) -> None:
    """Raises ValueError for a value nested too deeply, decoded from `text[start:end]`.

    Texts with fewer opening brackets than the limit, which are nearly all, cost two counts.
    """
    if text.count("[", start, end) + text.count("{", start, end) <= MAX_DEPTH:
        return
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(TOO_DEEP)
