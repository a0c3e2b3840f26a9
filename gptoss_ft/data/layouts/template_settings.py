"""`chat_template_kwargs`: settings that a chat template was given, and those that say something.

SmolLM keeps its system prompt there, and its tools. What the templates of other models are switched
by is no text of the conversation, and is named as not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    check_keys,
    decoded,
    is_empty,
    shell_list,
)

COLUMN = "chat_template_kwargs"
SYSTEMS = ("custom_instructions", "system_prompt", "system_message", "system")
TOOLS = ("tools", "xml_tools")
# Read of the row itself by every format.
SETTINGS = ("reasoning_effort", "builtin_tools")
SWITCHES = (
    "enable_thinking", "thinking", "add_generation_prompt", "continue_final_message",
    "add_vision_id", "preserve_thinking", "clear_thinking", "reasoning_mode",
)  # fmt: skip
KNOWN = frozenset((*SYSTEMS, *TOOLS, *SETTINGS))


def read_template_settings(raw: Any, state: RowState) -> list[tuple[str, str, Any]]:
    """Reads what the settings say beside an effort and the builtin tools.

    Args:
        raw: the column.
        state: of the row.

    Returns:
        What each is read as, `system` or `tools`; where it stands; and itself.
    """
    settings = decoded(raw)
    if not isinstance(settings, OBJECTS):
        if not is_empty(settings):
            mend = f"write an object, or say {shell_list('data.ignore', [COLUMN])}"
            state.refuse("the settings of the template are not an object", COLUMN, raw, mend)
        return []
    check_keys(_without_switches(settings, state), KNOWN, COLUMN, state, of=COLUMN)
    return [
        (slot, f"{COLUMN}.{name}", settings[name])
        for slot, names in (("system", SYSTEMS), ("tools", TOOLS))
        for name in names
        if not is_empty(settings.get(name)) and name not in state.ignore
    ]


def _without_switches(settings: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Notes the switches, which are words or flags; a text under their names is left."""
    left = {}
    for name, value in settings.items():
        if name in SWITCHES and (isinstance(value, bool) or str(value).isalpha()):
            state.note(f"key `{name}` of {COLUMN} not read: a mode of another model")
        else:
            left[name] = value
    return left
