"""What a chat is made of before it is rendered, whatever format it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")


@dataclass(frozen=True)
class ToolCall:
    """One call of a function: `arguments` is the JSON text exactly as it will be rendered."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    Attributes:
        role: one of `ROLES`.
        content: the text; of an assistant message with calls, the preamble shown to the user.
        thinking: the analysis of an assistant message; empty for none.
        tool_calls: the calls of an assistant message, in order.
        name: of a tool result, the function that gave it.
        weight: factor on the loss of everything this message contributes; only assistant messages.
    """

    role: str
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class ToolSpec:
    """A function the model may call; `parameters` is its JSON schema, None for no parameters."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Conversation:
    """A chat, its function tools, and the reasoning effort if the row sets one."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    effort: str | None = None
