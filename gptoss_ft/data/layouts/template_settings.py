"""Settings that a row gives its chat template (`chat_template_kwargs`), as columns of their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import RowState, is_empty, shell_list, template_settings

COLUMN = "chat_template_kwargs"
# Settings that say what columns do, and those columns: under these names they are compared with
# others that the row may have.
COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "custom_instructions": "custom_instructions",
        "system": "custom_instructions",
        "system_prompt": "custom_instructions",
        "system_message": "custom_instructions",
        "tools": "available_tools",
        "xml_tools": "available_tools",
    }
)
# Read by the formats, or no more than ways to sample.
KNOWN = frozenset(("reasoning_effort", "builtin_tools"))
_MODES = """
    enable_thinking thinking add_generation_prompt continue_final_message date_string
    clear_thinking preserve_thinking thinking_budget tokenize
"""
MODES = frozenset(_MODES.split())


def with_settings(row: Mapping[str, Any], state: RowState) -> Mapping[str, Any]:
    """Adds the columns that template settings stand for; refuses settings that nothing reads."""
    settings = template_settings(row)
    if not settings or COLUMN in state.ignore:
        return row
    added: dict[str, Any] = {}
    for name, value in settings.items():
        if is_empty(value) or value is False or name in KNOWN or name in MODES:
            continue
        if name in state.ignore:
            state.note(f"`{COLUMN}.{name}` ignored, as data.ignore says")
        elif name in COLUMNS and COLUMNS[name] not in added and is_empty(row.get(COLUMNS[name])):
            added[COLUMNS[name]] = value
        elif added.get(COLUMNS.get(name, "")) != value:
            what = f"this setting of the chat template is not read: `{name}`"
            mend = f"say {shell_list('data.ignore', [name])} to train without it"
            state.refuse(what, f"{COLUMN}.{name}", value, mend)
    return {**row, **added} if added else row
