"""The text of the system message and of developer messages.

Source: the Harmony response format (OpenAI), as openai-harmony 0.0.8 writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_ft.harmony.builtin import BUILTIN_NAMESPACES
from gptoss_ft.harmony.messages import Conversation, Namespace, SystemLines, ToolSpec
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.tools import FUNCTIONS, tools_text

CHANNELS = ("analysis", "commentary", "final")


def system_text(
    options: RenderOptions, effort: str, has_functions: bool, builtin_tools: Sequence[str] = ()
) -> str:
    """Writes the content of Harmony's system message.

    Args:
        options: the lines that are the same in every row.
        effort: low, medium or high.
        has_functions: whether the developer message declares functions.
        builtin_tools: any of `BUILTIN_TOOLS`; written in the order of their names.
    """
    lines = SystemLines(
        options.identity or None, options.knowledge_cutoff or None, options.date or None, CHANNELS
    )
    return _lines_text(lines, effort, has_functions, builtin_tools)


def given_system_text(conversation: Conversation) -> str:
    """Writes the system message that a row itself gives."""
    lines = conversation.system
    if lines is None or isinstance(lines, str):
        return lines or ""
    has_functions = bool(conversation.tools) or conversation.functions_elsewhere
    return _lines_text(lines, conversation.effort, has_functions, conversation.builtin_tools)


def _lines_text(
    lines: SystemLines, effort: str | None, has_functions: bool, builtin_tools: Sequence[str]
) -> str:
    given = [
        lines.identity,
        _line("Knowledge cutoff", lines.knowledge_cutoff),
        _line("Current date", lines.date),
    ]
    top = [line for line in given if line is not None]
    namespaces = {name: BUILTIN_NAMESPACES[name] for name in builtin_tools}
    namespaces |= {namespace.name: namespace for namespace in lines.namespaces}
    # A row may give an empty identity, and then the first section is written, and empty.
    sections = ["\n".join(top)] if top else []
    sections += [f"Reasoning: {effort}"] if effort is not None else []
    sections += (
        [tools_text([namespaces[name] for name in sorted(namespaces)])] if namespaces else []
    )
    sections += [_channels_text(lines, has_functions)] if lines.channels else []
    return "\n\n".join(sections)


def _line(name: str, value: str | None) -> str | None:
    return None if value is None else f"{name}: {value}"


def _channels_text(lines: SystemLines, has_functions: bool) -> str:
    text = f"# Valid channels: {', '.join(lines.channels)}."
    if lines.channel_required:
        text += " Channel must be included for every message."
    if has_functions:
        text += f"\nCalls to these tools must go to the commentary channel: '{FUNCTIONS}'."
    return text


def developer_text(instructions: str, tools: str) -> str:
    """Writes the content of a developer message; either part may be empty."""
    sections = [f"# Instructions\n\n{instructions}" if instructions else "", tools]
    return "\n\n".join(section for section in sections if section)


def functions_text(tools: Sequence[ToolSpec]) -> str:
    """Writes the `# Tools` section that declares functions; empty for none."""
    return tools_text([Namespace(FUNCTIONS, "", tuple(tools))]) if tools else ""
