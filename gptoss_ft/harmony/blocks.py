"""The text of the system message and of developer messages.

Source: the Harmony response format (OpenAI), as openai-harmony 0.0.8 writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_ft.harmony.builtin import BUILTIN_NAMESPACES
from gptoss_ft.harmony.messages import ToolSpec
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.tools import FUNCTIONS, Namespace, tools_text


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
    top = [
        options.identity,
        options.knowledge_cutoff and f"Knowledge cutoff: {options.knowledge_cutoff}",
        options.date and f"Current date: {options.date}",
    ]
    namespaces = [BUILTIN_NAMESPACES[name] for name in sorted(set(builtin_tools))]
    channels = (
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )
    if has_functions:
        channels += f"\nCalls to these tools must go to the commentary channel: '{FUNCTIONS}'."
    sections = [
        "\n".join(line for line in top if line),
        f"Reasoning: {effort}",
        tools_text(namespaces) if namespaces else "",
        channels,
    ]
    return "\n\n".join(section for section in sections if section)


def developer_text(instructions: str, tools: str) -> str:
    """Writes the content of a developer message; either part may be empty."""
    sections = [f"# Instructions\n\n{instructions}" if instructions else "", tools]
    return "\n\n".join(section for section in sections if section)


def functions_text(tools: Sequence[ToolSpec]) -> str:
    """Writes the `# Tools` section that declares functions; empty for none."""
    return tools_text([Namespace(FUNCTIONS, "", tuple(tools))]) if tools else ""
