"""Conversations in the form of openai-harmony's `Conversation.to_dict`.

Source: the Harmony response format (OpenAI), as openai-harmony 0.0.8 stores it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptoss_ft.harmony.builtin import BUILTIN_NAMESPACES
from gptoss_ft.harmony.messages import (
    Conversation,
    Header,
    Message,
    Namespace,
    SystemLines,
    ToolCall,
    ToolSpec,
)
from gptoss_ft.harmony.tools import FUNCTIONS


def to_dict(conversation: Conversation) -> dict[str, Any]:
    """Writes a conversation as openai-harmony stores it; read again as `messages`, it renders as
    before.

    Without a system message of its own it gets none, and the renderer writes one on reading; then
    the effort and the builtin tools stand beside the messages. Weights other than 1 stand in the
    messages, where openai-harmony does not look.
    """
    row: dict[str, Any] = {"messages": list(_messages(conversation))}
    if conversation.system is None:
        row |= {"reasoning_effort": conversation.effort} if conversation.effort else {}
        builtin = list(conversation.builtin_tools)
        row |= {"builtin_tools": builtin} if builtin else {}
    return row


def _messages(conversation: Conversation) -> Iterator[dict[str, Any]]:
    if conversation.system is not None:
        yield _message(Header("system"), _system(conversation, conversation.system))
    tools = conversation.tools
    pending: list[str] = []
    for message in conversation.messages:
        if message.role in ("system", "developer") and message.header is None:
            pending.append(message.content)
            continue
        yield from _developer(pending, tools)
        pending, tools = [], ()
        yield from _turn(message)
    yield from _developer(pending, tools)


def _developer(instructions: Sequence[str], tools: Sequence[ToolSpec]) -> Iterator[dict[str, Any]]:
    """Writes a run of instructions, which the renderer joins, as one message."""
    text = "\n\n".join(part for part in instructions if part)
    if not text and not tools:
        return
    content: dict[str, Any] = {"instructions": text} if text else {}
    if tools:
        content["tools"] = {FUNCTIONS: _namespace(Namespace(FUNCTIONS, "", tuple(tools)))}
    yield _message(Header("developer"), {**content, "type": "developer_content"})


def _system(conversation: Conversation, given: SystemLines | str) -> dict[str, Any]:
    if isinstance(given, str):
        return _text(given)
    spaces = {name: BUILTIN_NAMESPACES[name] for name in conversation.builtin_tools}
    spaces |= {space.name: space for space in given.namespaces}
    content = {
        "model_identity": given.identity,
        "reasoning_effort": conversation.effort and conversation.effort.capitalize(),
        "conversation_start_date": given.date,
        "knowledge_cutoff": given.knowledge_cutoff,
        "channel_config": given.channels
        and {
            "valid_channels": list(given.channels),
            "channel_required": given.channel_required,
        },
        "tools": {name: _namespace(space) for name, space in spaces.items()},
    }
    # An empty line is written, one that is None is not.
    kept = {key: value for key, value in content.items() if value or value == ""}
    return {**kept, "type": "system_content"}


def _namespace(space: Namespace) -> dict[str, Any]:
    described = {"description": space.description} if space.description else {}
    return {"name": space.name, **described, "tools": [_tool(tool) for tool in space.tools]}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    parameters = {} if tool.parameters is None else {"parameters": tool.parameters}
    return {"name": tool.name, "description": tool.description, **parameters}


def _turn(message: Message) -> Iterator[dict[str, Any]]:
    """Writes a message of a chat; an assistant's becomes analysis, preamble or final, and calls."""
    weight = message.weight
    if message.thinking:
        yield _message(Header("assistant", "analysis"), _text(message.thinking), weight)
    if message.header is not None:
        yield _message(message.header, _text(message.content), weight, message.role)
    elif message.role == "tool":
        yield _message(_result_header(message), _text(message.content), role="tool")
    elif message.role != "assistant":
        yield _message(Header(message.role), _text(message.content))
    else:
        if message.content:
            channel = "commentary" if message.tool_calls else "final"
            yield _message(Header("assistant", channel), _text(message.content), weight)
        for call in message.tool_calls:
            yield _message(_call_header(call), _text(call.arguments), weight)


def _result_header(message: Message) -> Header:
    if message.builtin:
        return Header(message.name, "analysis", "assistant")
    return Header(f"{FUNCTIONS}.{message.name}", "commentary", "assistant")


def _call_header(call: ToolCall) -> Header:
    if call.header is not None:
        return call.header
    if call.builtin:
        return Header("assistant", "analysis", call.name, "code")
    return Header("assistant", "commentary", f"{FUNCTIONS}.{call.name}", "<|constrain|>json")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _message(
    header: Header, content: Mapping[str, Any], weight: float = 1.0, role: str = ""
) -> dict[str, Any]:
    author, _, name = header.author.partition(":")
    if role == "tool":
        author, name = role, header.author
    fields = {
        "channel": header.channel,
        "recipient": header.recipient,
        "content_type": header.content_type,
        "weight": None if weight == 1 else weight,
    }
    given = {key: value for key, value in fields.items() if value not in ("", None)}
    return {"role": author, "name": name or None, "content": [dict(content)], **given}
