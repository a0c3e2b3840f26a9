"""Names of functions, as they can stand in the header of a Harmony message."""

from __future__ import annotations

import re
from typing import Any

from gptoss_ft.data.formats.common import RowState

BLANK_NOTE = "names of tools with blanks: written with `_`"
_BLANKS = re.compile(r"\s+")


def function_name(raw: Any, key: str, owner: str, state: RowState) -> str | None:
    """Reads a name: one word, nothing that ends the header; blanks become `_`, which is noted.

    Args:
        raw: as it was written, with or without the namespace `functions`.
        key: where it stands.
        owner: whose name it is, for problems.
        state: of the row.
    """
    if raw is None or raw == "":
        state.refuse(f"{owner} has no name", key, mend="write the name of the function")
    elif not isinstance(raw, str) or not is_word(plain_name(raw)):
        state.refuse("not a function name", key, raw, "use letters, digits, `_`, `-` and `.`")
    else:
        name = plain_name(raw)
        if name != raw and name != raw.removeprefix("functions."):
            state.note(BLANK_NOTE)
        return name
    return None


def plain_name(raw: str) -> str:
    """Returns a name without its namespace, blanks written as `_`."""
    return _BLANKS.sub("_", raw.removeprefix("functions.").strip())


def is_word(name: str) -> bool:
    """Returns whether a header can hold the name."""
    return bool(name) and not any(
        c.isspace() or c in "<>|" or "\ud800" <= c <= "\udfff" for c in name
    )
