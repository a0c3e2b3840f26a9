"""The parts of a chat before it is rendered, whatever format it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
BUILTIN_TOOLS = ("browser", "python")


class Header(NamedTuple):
    """The header of one Harmony message, given in full.

    Attributes:
        author: the role, `role:name`, or the name of a tool.
        channel: empty for none.
        recipient: empty for none.
        content_type: as it stands after the channel, such as `json`; empty for none.
    """

    author: str
    channel: str = ""
    recipient: str = ""
    content_type: str = ""


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool.

    Attributes:
        name: of a function, without its namespace; of a builtin tool, the recipient in full, such
            as `python` or `browser.search`.
        arguments: the text exactly as it will be rendered, JSON but for `python`.
        id: what the result refers to; not rendered.
        builtin: whether the tool is `python` or one of `browser`'s.
        header: where the row gives another than the renderer's.
    """

    name: str
    arguments: str
    id: str = ""
    builtin: bool = False
    header: Header | None = None


class Message(NamedTuple):
    """One message of a chat.

    Attributes:
        role: one of `ROLES`.
        content: the text; of an assistant message with calls, the preamble shown to the user.
        thinking: the analysis of an assistant message; empty for none.
        tool_calls: the calls of an assistant message, in order.
        name: of a tool result, the tool that gave it, as in `ToolCall`.
        weight: factor on the loss of everything this message contributes; only assistant messages.
        builtin: of a tool result, whether a builtin tool gave it.
        header: where the row gives another than the renderer's; `content` is then all the text of
            one Harmony message with this header.
    """

    role: str
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    weight: float = 1.0
    builtin: bool = False
    header: Header | None = None


@dataclass(frozen=True)
class ToolSpec:
    """A function the model may call; `parameters` is its JSON schema, None for no parameters."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


class Namespace(NamedTuple):
    """Tools that are declared together; without any, the description alone says how to call it."""

    name: str
    description: str
    tools: tuple[ToolSpec, ...]


@dataclass(frozen=True)
class SystemLines:
    """The system message of one row, in place of the one that the renderer's options describe.

    A line that is None is not written, nor is the effort of a conversation that names none.

    Attributes:
        identity: the first line.
        knowledge_cutoff: year and month.
        date: the current date.
        channels: the valid ones; empty for no such line.
        channel_required: whether every message must name its channel.
        namespaces: tools beside the builtin ones, and other declarations of those.
    """

    identity: str | None = None
    knowledge_cutoff: str | None = None
    date: str | None = None
    channels: tuple[str, ...] = ()
    channel_required: bool = True
    namespaces: tuple[Namespace, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A chat.

    Attributes:
        messages: in order.
        tools: the functions that the model may call.
        effort: the reasoning effort, if the row sets one.
        builtin_tools: any of `BUILTIN_TOOLS`.
        system: the system message, if the row gives one: its lines, or its text.
        functions_elsewhere: whether a developer message that is given as text declares functions.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    effort: str | None = None
    builtin_tools: tuple[str, ...] = ()
    system: SystemLines | str | None = None
    functions_elsewhere: bool = False


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, each a run of assistant messages, tool rounds included.

    `tied` says that the row gives both the same score.
    """

    prompt: Conversation
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tied: bool = False


@dataclass(frozen=True)
class Feedback:
    """One completion of a prompt, and whether it is a good one (KTO)."""

    prompt: Conversation
    completion: tuple[Message, ...]
    label: bool


@dataclass(frozen=True)
class Document:
    """Plain text for continued pretraining.

    Attributes:
        text: all of it.
        untrained: characters start..stop of the text that are context only, in order; where such a
            span begins or ends, a token does.
    """

    text: str
    untrained: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class HarmonyText:
    """A conversation as raw Harmony text, names of special tokens and all."""

    text: str


Example = Conversation | Preference | Feedback | Document | HarmonyText
