"""Conversations of openai-harmony, generated: every kind of message that the format knows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import openai_harmony as oh
from chats import LOOK_ALIKES, PIECES

Role = oh.Role
CHANNELS = ("analysis", "commentary", "final")
BUILTIN_CALLS = ("python", "browser.search", "browser.open", "browser.find")
CONTENT_TYPES = ("<|constrain|>json", "<|constrain|>json", "json", None)
SCHEMAS = (
    None,
    {"type": "object", "properties": {}},
    {
        "type": "object",
        "properties": {
            "port": {"type": "string", "description": "Where.\nA harbour."},
            "unit": {"type": "string", "enum": ["m", "ft"], "default": "m"},
            "days": {"type": "array", "items": {"type": "integer"}},
            "deep": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}},
        },
        "required": ["port"],
    },
)


class Generator:
    """Draws conversations, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def text(self, low: int = 1) -> str:
        count = self.random.randint(low, 8)
        return "".join(self.random.choice((*PIECES, *LOOK_ALIKES)) for _ in range(count))

    def conversation(self) -> oh.Conversation:
        functions = [f"f{number}" for number in range(self.random.randint(0, 3))]
        messages = [self.system()] if self.chance(0.7) else []
        messages += self.developers(functions)
        for _ in range(self.random.randint(1, 4)):
            messages += self.turn(functions)
        if self.chance(0.1):
            messages += [self.user(), *self.round(functions)][:-1]
            while messages[-1].author.role != Role.ASSISTANT or not messages[-1].recipient:
                messages.pop()
        return oh.Conversation.from_messages(messages)

    def system(self) -> oh.Message:
        content = oh.SystemContent.new()
        content.reasoning_effort = self.random.choice([*oh.ReasoningEffort, None])
        if self.chance(0.5):
            content.conversation_start_date = self.random.choice(("2025-06-28", "28 June"))
        if self.chance(0.3):
            content.model_identity = self.random.choice((None, "", "You are Faro.", self.text()))
        if self.chance(0.3):
            content.knowledge_cutoff = self.random.choice((None, "2025-01", ""))
        if self.chance(0.2):
            required = self.chance(0.5)
            names = self.random.choice((["final"], ["analysis", "final"], []))
            content.channel_config = self.random.choice(
                (None, oh.ChannelConfig(valid_channels=names, channel_required=required))
            )
        if self.chance(0.3):
            content.with_python_tool()
        if self.chance(0.3):
            content.with_browser_tool()
        if self.chance(0.1):
            content.with_tools(self.namespace("container", ["exec"]))
        if self.chance(0.1):
            content.with_tools(oh.ToolNamespaceConfig(name="python", description="Runs.", tools=[]))
        return oh.Message.from_role_and_content(Role.SYSTEM, content)

    def namespace(self, name: str, tools: list[str]) -> oh.ToolNamespaceConfig:
        described = self.text() if self.chance(0.3) and name != "functions" else None
        specs = [
            oh.ToolDescription.new(tool, self.text(0), self.random.choice(SCHEMAS))
            for tool in tools
        ]
        return oh.ToolNamespaceConfig(name=name, description=described, tools=specs)

    def developers(self, functions: list[str]) -> Iterator[oh.Message]:
        if functions or self.chance(0.6):
            content = oh.DeveloperContent.new()
            if self.chance(0.7):
                content.with_instructions(self.text())
            if functions:
                content.with_tools(self.namespace("functions", functions))
            if self.chance(0.1):
                content.with_tools(self.namespace("mcp", ["read"]))
            yield oh.Message.from_role_and_content(Role.DEVELOPER, content)
        if self.chance(0.1):
            content = oh.DeveloperContent.new().with_instructions(self.text())
            yield oh.Message.from_role_and_content(Role.DEVELOPER, content)
        if self.chance(0.05):
            yield oh.Message.from_role_and_content(Role.DEVELOPER, self.text())

    def user(self) -> oh.Message:
        message = oh.Message.from_role_and_content(Role.USER, self.text(0))
        if self.chance(0.1):
            message.author.name = "ana"
        return message

    def said(self, channel: str, text: str) -> oh.Message:
        return oh.Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)

    def turn(self, functions: list[str]) -> Iterator[oh.Message]:
        yield self.user()
        for _ in range(self.random.choice((0, 0, 1, 2))):
            yield from self.round(functions)
        for _ in range(self.random.choice((0, 1, 1, 2))):
            yield self.said("analysis", self.text(self.random.randint(0, 1)))
        if self.chance(0.2):
            yield self.said("commentary", self.text())
            if self.chance(0.5):
                yield self.said("analysis", self.text())
        yield self.said("final", self.text())

    def round(self, functions: list[str]) -> Iterator[oh.Message]:
        """Thinking and preambles in any order, calls, and the results of all of them."""
        for channel in self.random.choices(("analysis", "commentary"), k=self.random.randint(0, 3)):
            yield self.said(channel, self.text())
        count = self.random.choice((1, 1, 1, 2, 3))
        calls = [self.call(functions) for _ in range(count)]
        for call in calls:
            yield call
            if self.chance(0.1):
                yield self.said("analysis", self.text())
                yield self.call(functions)
        yield from (self.result(call) for call in self.random.sample(calls, count))

    def call(self, functions: list[str]) -> oh.Message:
        if functions and self.chance(0.6):
            text = json.dumps({"port": self.text()}, indent=self.random.choice((None, 1)))
            call = self.said("commentary", text)
            call.recipient = f"functions.{self.random.choice(functions)}"
            call.content_type = self.random.choice(CONTENT_TYPES)
            if self.chance(0.05):
                call.channel = "analysis"
            return call
        call = self.said("analysis", self.text())
        call.recipient = self.random.choice(BUILTIN_CALLS)
        call.content_type = self.random.choice(("code", "code", None, "<|constrain|>code"))
        if self.chance(0.1):
            call.channel = "commentary"
        return call

    def result(self, call: oh.Message) -> oh.Message:
        author = oh.Author.new(Role.TOOL, call.recipient)
        result = oh.Message.from_author_and_content(author, self.text(0))
        result.channel = self.random.choice((call.channel, call.channel, None))
        result.recipient = self.random.choice(("assistant", "assistant", None))
        return result
