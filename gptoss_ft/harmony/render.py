"""Conversations to token ids, labels and loss weights, in one pass.

A conversation becomes a list of Harmony messages whose pieces are encoded once. The unit of
training is the sampling action: a run of assistant messages that ends at a final or a tool call.
Its prompt is the history, all analysis before the last earlier final dropped, plus
`<|start|>assistant`; its target is everything after, through `<|return|>` or `<|call|>`. Actions
whose prompt starts with another action's prompt and target share a row.

Source: the Harmony response format (OpenAI); ids equal openai-harmony's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gptoss_ft.harmony.messages import Conversation, Message, ToolCall
from gptoss_ft.harmony.options import CHANNELS, RenderOptions
from gptoss_ft.harmony.tools import NAMESPACE, tools_text
from gptoss_ft.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    Vocabulary,
)

__all__ = ["Action", "RenderOptions", "Renderer", "Row", "Segment"]

IGNORE = -100
SHARED_TEXTS = 512


class Segment(NamedTuple):
    """Positions start..stop of a row that belong to one part of one message, with their weight.

    Attributes:
        channel: of an assistant message one of `CHANNELS`, else its role.
        part: `header` (through `<|message|>`), `content` or `end`.
        weight: 0 where the positions are not trained.
    """

    channel: str
    part: str
    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Row:
    """One training row; three lists of equal length.

    Attributes:
        input_ids: what the model reads.
        labels: the token to be predicted at the same position (the model shifts), -100 where
            nothing is trained. Differs from input_ids where a final ends in the middle of the row:
            it is read as `<|end|>`, as every later prompt shows it, and trained as `<|return|>`.
        loss_weights: weight of each label, 0.0 where nothing is trained.
        segments: what the positions are, in order and without gaps.
        finals: trained finals in the row.
        bare_finals: those of them without analysis in the same action.
    """

    input_ids: list[int]
    labels: list[int]
    loss_weights: list[float]
    segments: list[Segment]
    finals: int
    bare_finals: int


@dataclass(frozen=True)
class Action:
    """One sampling action: what the model is shown, and what it is to sample with which weights."""

    prompt_ids: list[int]
    target_ids: list[int]
    target_weights: list[float]


@dataclass(frozen=True)
class _Encoded:
    """One Harmony message, encoded.

    Attributes:
        channel: as in `Segment`.
        opening: `<|start|>` and the author.
        header: the rest of the header, through `<|message|>`.
        closing: how history shows its end, `<|end|>` or `<|call|>`.
        weight: of header and content when trained.
        end_weight: of the closing token when trained.
    """

    channel: str
    opening: list[int]
    header: list[int]
    content: list[int]
    closing: int = END
    weight: float = 0.0
    end_weight: float = 0.0


class _Span(NamedTuple):
    """Indices of the first and last message of an action, and of the last final before it or -1."""

    first: int
    last: int
    boundary: int


class Renderer:
    """Renders conversations with one vocabulary and one set of options.

    Texts that rows share (system block, developer and tool block, headers) are encoded once.
    """

    def __init__(self, vocabulary: Vocabulary, options: RenderOptions) -> None:
        self.vocabulary = vocabulary
        self.options = options
        self._shared = lru_cache(maxsize=SHARED_TEXTS)(vocabulary.encode)

    def render(self, conversation: Conversation) -> list[Row]:
        """The training rows; empty when every message that could be trained weighs 0."""
        messages = self._encode(conversation)
        spans = [
            span
            for span in self._chosen(messages)
            if any(_trains(message) for message in messages[span.first : span.last + 1])
        ]
        return [_row(messages, group) for group in _groups(messages, spans)]

    def actions(self, conversation: Conversation) -> list[Action]:
        """The sampling actions that `turns` chooses, each on its own, whatever they weigh."""
        messages = self._encode(conversation)
        opening = self._opening("assistant")
        actions = []
        for span in self._chosen(messages):
            row = _row(messages, [span])
            prompt = _history(messages, span.first, span.boundary) + opening
            at = len(prompt)
            actions.append(Action(prompt, row.input_ids[at:], row.loss_weights[at:]))
        return actions

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids for inference: the history as the next action sees it, then `<|start|>assistant`."""
        messages = self._encode(conversation)
        stop = len(messages)
        return _history(messages, stop, _last_final(messages, stop)) + self._opening("assistant")

    def _chosen(self, messages: list[_Encoded]) -> list[_Span]:
        spans = _spans(messages)
        if self.options.turns == "all" or not spans:
            return spans
        before = range(spans[-1].first)
        asked = max((i for i in before if messages[i].channel == "user"), default=-1)
        return [span for span in spans if span.first > asked]

    def _encode(self, conversation: Conversation) -> list[_Encoded]:
        """The Harmony messages of a conversation, system block first."""
        encoded = [self._system(conversation)]
        instructions: list[str] = []
        tools = tools_text(conversation.tools) if conversation.tools else ""
        for message in conversation.messages:
            if message.role in ("system", "developer"):
                instructions.append(message.content)
                continue
            encoded += self._developer(instructions, tools)
            instructions, tools = [], ""
            encoded += self._turn(message)
        return encoded + self._developer(instructions, tools)

    def _system(self, conversation: Conversation) -> _Encoded:
        text = system_text(
            self.options, conversation.effort or self.options.effort, bool(conversation.tools)
        )
        return self._whole("system", self._shared(text))

    def _developer(self, instructions: list[str], tools: str) -> list[_Encoded]:
        """One message for a run of system and developer messages; none when there is no text."""
        text = developer_text("\n\n".join(part for part in instructions if part), tools)
        return [self._whole("developer", self._shared(text))] if text else []

    def _turn(self, message: Message) -> Iterator[_Encoded]:
        """One chat message; an assistant's becomes analysis, preamble or final, and calls."""
        encode = self.vocabulary.encode
        if message.role == "tool":
            author = self._opening(f"{NAMESPACE}.{message.name}")
            header = [*self._shared(" to=assistant"), *self._channel("commentary"), MESSAGE]
            yield _Encoded("tool", author, header, encode(message.content))
        elif message.role != "assistant":
            yield self._whole(message.role, encode(message.content))
        else:
            if message.thinking:
                yield self._said("analysis", message.thinking, message.weight)
            if message.content:
                channel = "commentary" if message.tool_calls else "final"
                yield self._said(channel, message.content, message.weight)
            for call in message.tool_calls:
                yield self._called(call, message.weight)

    def _whole(self, role: str, content: list[int]) -> _Encoded:
        return _Encoded(role, self._opening(role), [MESSAGE], content)

    def _said(self, channel: str, text: str, weight: float) -> _Encoded:
        return _Encoded(
            channel,
            self._opening("assistant"),
            [*self._channel(channel), MESSAGE],
            self.vocabulary.encode(text),
            weight=weight * self.options.weights.get(channel, 1.0),
            end_weight=weight,
        )

    def _called(self, call: ToolCall, weight: float) -> _Encoded:
        header = [*self._shared(f" to={NAMESPACE}.{call.name}"), *self._channel("commentary")]
        header += [*self._shared(" "), CONSTRAIN, *self._shared("json"), MESSAGE]
        return _Encoded(
            "tool_call",
            self._opening("assistant"),
            header,
            self.vocabulary.encode(call.arguments),
            CALL,
            weight=weight * self.options.weights.get("tool_call", 1.0),
            end_weight=weight,
        )

    def _opening(self, author: str) -> list[int]:
        return [START, *self._shared(author)]

    def _channel(self, channel: str) -> list[int]:
        return [CHANNEL, *self._shared(channel)]


def system_text(options: RenderOptions, effort: str, has_tools: bool) -> str:
    """The content of Harmony's system message."""
    top = [
        options.identity,
        options.knowledge_cutoff and f"Knowledge cutoff: {options.knowledge_cutoff}",
        options.date and f"Current date: {options.date}",
    ]
    channels = (
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )
    if has_tools:
        channels += f"\nCalls to these tools must go to the commentary channel: '{NAMESPACE}'."
    sections = ["\n".join(line for line in top if line), f"Reasoning: {effort}", channels]
    return "\n\n".join(section for section in sections if section)


def developer_text(instructions: str, tools: str) -> str:
    """The content of a developer message; either part may be empty."""
    sections = [f"# Instructions\n\n{instructions}" if instructions else "", tools]
    return "\n\n".join(section for section in sections if section)


def _spans(messages: list[_Encoded]) -> list[_Span]:
    """The actions in order; messages of an assistant that nothing closes belong to none."""
    spans = []
    first, final = -1, -1
    boundary = -1
    for i, message in enumerate(messages):
        if message.channel not in CHANNELS:
            first = -1
            continue
        if first < 0:
            first, boundary = i, final
        if message.channel == "final":
            final = i
        if message.channel in ("final", "tool_call"):
            spans.append(_Span(first, i, boundary))
            first = -1
    return spans


def _last_final(messages: list[_Encoded], stop: int) -> int:
    return max((i for i in range(stop) if messages[i].channel == "final"), default=-1)


def _trains(message: _Encoded) -> bool:
    return message.weight > 0 or message.end_weight > 0


def _groups(messages: list[_Encoded], spans: list[_Span]) -> Iterator[list[_Span]]:
    """Runs of actions that fit one row: none of them drops analysis that another one shows."""
    group: list[_Span] = []
    for span in spans:
        if group:
            shown = range(group[-1].boundary + 1, min(span.boundary, group[-1].last + 1))
            if any(messages[i].channel == "analysis" for i in shown):
                yield group
                group = []
        group.append(span)
    if group:
        yield group


def _kept(messages: list[_Encoded], stop: int, boundary: int) -> Iterator[int]:
    """Indices before `stop`, without the analysis before `boundary`."""
    for i in range(stop):
        if i > boundary or messages[i].channel != "analysis":
            yield i


def _history(messages: list[_Encoded], stop: int, boundary: int) -> list[int]:
    ids: list[int] = []
    for i in _kept(messages, stop, boundary):
        message = messages[i]
        ids += [*message.opening, *message.header, *message.content, message.closing]
    return ids


def _row(messages: list[_Encoded], spans: list[_Span]) -> Row:
    """Everything through the end of the last action; only the actions of `spans` are trained."""
    writer = _Writer()
    trained = {i: span for span in spans for i in range(span.first, span.last + 1)}
    stop = spans[-1].last
    for i in _kept(messages, stop + 1, spans[-1].boundary):
        message, span = messages[i], trained.get(i)
        # The first `<|start|>assistant` of an action is prompt; later ones the model samples.
        inner = span is not None and i > span.first
        weight = message.weight if span is not None else 0.0
        end_weight = message.end_weight if span is not None else 0.0
        writer.write(message.channel, "header", message.opening, weight if inner else 0.0)
        writer.write(message.channel, "header", message.header, weight)
        writer.write(message.channel, "content", message.content, weight)
        label = RETURN if message.channel == "final" else message.closing
        shown = label if i == stop else message.closing
        writer.write(message.channel, "end", [shown], end_weight, [label])
    finals = [s for s in spans if messages[s.last].channel == "final" and _trains(messages[s.last])]
    bare = [
        s for s in finals if all(m.channel != "analysis" for m in messages[s.first : s.last + 1])
    ]
    return Row(
        writer.input_ids,
        writer.labels,
        writer.loss_weights,
        writer.segments,
        len(finals),
        len(bare),
    )


class _Writer:
    """Collects the three lists and the segments of one row."""

    def __init__(self) -> None:
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.loss_weights: list[float] = []
        self.segments: list[Segment] = []

    def write(
        self,
        channel: str,
        part: str,
        ids: list[int],
        weight: float,
        labels: list[int] | None = None,
    ) -> None:
        start = len(self.input_ids)
        self.input_ids += ids
        self.labels += (labels or ids) if weight > 0 else [IGNORE] * len(ids)
        self.loss_weights += [weight if weight > 0 else 0.0] * len(ids)
        self.segments.append(Segment(channel, part, start, len(self.input_ids), weight))
