"""Conversations to token ids, labels and loss weights, in one pass.

A conversation becomes a list of Harmony messages whose pieces are encoded once; `rows` says which
of them are trained and what each sampling action is shown.

Source: the Harmony response format (OpenAI); ids equal openai-harmony's.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.blocks import developer_text, functions_text, given_system_text, system_text
from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    HarmonyText,
    Header,
    Message,
    ToolCall,
    ToolSpec,
)
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.raw import RawMessage, read_raw
from gptoss_ft.harmony.segments import (
    IGNORE,
    ActionSpan,
    Encoded,
    Head,
    Row,
    Segment,
    build_row,
    document_rows,
    encoded,
    find_spans,
    group_spans,
    history_ids,
    last_final,
    trains,
)
from gptoss_ft.harmony.tools import FUNCTIONS
from gptoss_ft.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    CONTEXT_TOKENS,
    END,
    ENDOFTEXT,
    MESSAGE,
    START,
    Vocabulary,
)

__all__ = ["IGNORE", "Action", "RenderOptions", "Renderer", "Row", "Segment"]

SHARED_TEXTS = 512
# What the header of a function call says of its arguments, by `RenderOptions.constrain`.
CONTENT_TYPES = {"token": "<|constrain|>json", "text": "json", "none": ""}


@dataclass(frozen=True)
class Action:
    """One sampling action: what the model is shown, and what it is to sample with which weights."""

    prompt_ids: list[int]
    target_ids: list[int]
    target_weights: list[float]


class Renderer:
    """Renders examples with one vocabulary and one set of options.

    Texts that rows share (system block, developer and tool block, headers) are encoded once.
    """

    def __init__(self, vocabulary: Vocabulary, options: RenderOptions) -> None:
        self.vocabulary = vocabulary
        self.options = options
        self._shared = lru_cache(maxsize=SHARED_TEXTS)(vocabulary.encode)
        self._block = lru_cache(maxsize=SHARED_TEXTS)(self._encode_block)
        self._system = lru_cache(maxsize=SHARED_TEXTS)(self._encode_system)
        self._opening = lru_cache(maxsize=SHARED_TEXTS)(self._encode_opening)
        self._plain_head = lru_cache(maxsize=SHARED_TEXTS)(self._head)
        self._said_heads = {
            channel: self._head("assistant", self._channel(channel))
            for channel in ("analysis", "commentary", "final")
        }
        self._functions = lru_cache(maxsize=SHARED_TEXTS)(_functions_text)

    def render(self, conversation: Conversation) -> list[Row]:
        """Renders the training rows; none when every message that could be trained has weight 0."""
        return self._rows(self._encode(conversation))

    def render_harmony(self, example: HarmonyText, where: str) -> list[Row]:
        """Renders the training rows of a conversation given as raw Harmony text.

        The names of the special tokens become the special tokens; everything else is encoded as it
        stands, so the style options and the system message's lines do not apply. What is trained
        is what `render` trains; every message weighs 1. Empty when every channel weighs 0.

        Args:
            example: the text.
            where: `file:line`, put before the character's offset in every problem.

        Raises:
            DataError: with every problem of the text, each with its offset, counted from 0; or
                nothing in it can be trained.
        """
        messages = [self._spelled(message) for message in read_raw(example.text, where)]
        return self._rows(messages)

    def render_document(self, document: Document, max_length: int = CONTEXT_TOKENS) -> list[Row]:
        """Renders plain text as ordinary tokens and `<|endoftext|>`, trained but for the spans that
        the document takes out.

        Args:
            document: the text.
            max_length: tokens of a row; longer texts go on in the next one.
        """
        pieces = [(self.vocabulary.encode(text), weight) for text, weight in _pieces(document)]
        return document_rows(pieces, ENDOFTEXT, max_length)

    def completion(self, prompt: Conversation, completion: Sequence[Message]) -> Row:
        """Renders the row of one completion; see `completions`."""
        (row,) = self.completions(prompt, [completion])
        return row

    def completions(
        self, prompt: Conversation, completions: Iterable[Sequence[Message]]
    ) -> list[Row]:
        """Renders a row for each completion, which trains the completion and nothing of the prompt.

        Every row begins with `prompt(prompt)`, through `<|start|>assistant`, whatever the
        completion is. Its actions all stand in this row: analysis of the completion is kept also
        where a later action of the same completion would no longer see it. The token that closes a
        message weighs what the message's channel does, so that a channel of weight 0 is out of the
        comparison of two completions altogether.

        Raises:
            DataError: a completion holds neither an answer nor a call.
        """
        asked = self._encode(prompt)
        return [self._completion(asked, completion) for completion in completions]

    def _completion(self, asked: list[Encoded], completion: Sequence[Message]) -> Row:
        said = self._encode_messages(completion, "")
        messages = asked + [message._replace(end_weight=message.weight) for message in said]
        first, boundary = len(asked), last_final(asked, len(asked))
        spans = [
            ActionSpan(max(span.first, first), span.last, boundary)
            for span in find_spans(messages)
            if span.last >= first
        ]
        if not spans:
            what = "the completion holds neither an answer nor a tool call"
            raise DataError(Problem(what, mend="give the assistant's message a content"))
        return build_row(messages, spans)

    def actions(self, conversation: Conversation) -> list[Action]:
        """Returns each sampling action that `turns` chooses, on its own, whatever its weight."""
        messages = self._encode(conversation)
        opening = self._opening("assistant")
        actions = []
        for span in self._chosen(messages):
            row = build_row(messages, [span])
            prompt = [*history_ids(messages, span.first, span.boundary), *opening]
            at = len(prompt)
            actions.append(Action(prompt, row.input_ids[at:], row.loss_weights[at:]))
        return actions

    def prompt(self, conversation: Conversation) -> list[int]:
        """Renders ids for inference: the history as the next action sees it, then
        `<|start|>assistant`.
        """
        messages = self._encode(conversation)
        stop = len(messages)
        history = history_ids(messages, stop, last_final(messages, stop))
        return [*history, *self._opening("assistant")]

    def _rows(self, messages: list[Encoded]) -> list[Row]:
        spans = [span for span in self._chosen(messages) if trains(messages, span)]
        return [build_row(messages, group) for group in group_spans(messages, spans)]

    def _chosen(self, messages: list[Encoded]) -> list[ActionSpan]:
        spans = find_spans(messages)
        if self.options.turns == "all" or not spans:
            return spans
        before = range(spans[-1].first)
        asked = max((i for i in before if messages[i].channel == "user"), default=-1)
        return [span for span in spans if span.first > asked]

    def _encode(self, conversation: Conversation) -> list[Encoded]:
        """Encodes the Harmony messages of a conversation, system block first."""
        if conversation.system is None:
            effort = conversation.effort or self.options.effort
            has_functions = bool(conversation.tools) or conversation.functions_elsewhere
            system = self._system(effort, has_functions, conversation.builtin_tools)
        else:
            system = self._block("system", given_system_text(conversation))
        tools = self._functions(_tools_key(conversation.tools)) if conversation.tools else ""
        return [system, *self._encode_messages(conversation.messages, tools)]

    def _encode_system(
        self, effort: str, has_functions: bool, builtin_tools: tuple[str, ...]
    ) -> Encoded:
        text = system_text(self.options, effort, has_functions, builtin_tools)
        return self._encode_block("system", text)

    def _encode_messages(self, messages: Sequence[Message], tools: str) -> list[Encoded]:
        """Encodes the messages of a chat; `tools` go into the first developer message."""
        found: list[Encoded] = []
        instructions: list[str] = []
        for message in messages:
            if message.role in ("system", "developer") and message.header is None:
                instructions.append(message.content)
                continue
            if instructions or tools:
                found += self._developer(instructions, tools)
                instructions, tools = [], ""
            found += self._turn(message)
        return found + self._developer(instructions, tools)

    def _developer(self, instructions: list[str], tools: str) -> list[Encoded]:
        """Encodes a run of system and developer messages as one message; none when there is no
        text.
        """
        if not instructions and not tools:
            return []
        text = developer_text("\n\n".join(part for part in instructions if part), tools)
        return [self._block("developer", text)] if text else []

    def _turn(self, message: Message) -> list[Encoded]:
        """Encodes one chat message; an assistant's becomes analysis, preamble or final, and
        calls.
        """
        if message.role == "tool" and message.header is None:
            return [self._result(message)]
        if message.role != "assistant" and message.header is None:
            return [self._encode_block(message.role, message.content)]
        found = []
        if message.thinking:
            found.append(self._said("analysis", message.thinking, message.weight))
        if message.header is not None:
            return [*found, self._headed(message, message.header)]
        if message.content:
            channel = "commentary" if message.tool_calls else "final"
            found.append(self._said(channel, message.content, message.weight))
        return found + [self._called(call, message.weight) for call in message.tool_calls]

    def _encode_block(self, role: str, text: str) -> Encoded:
        return encoded(role, self._plain_head(role), self.vocabulary.encode(text))

    def _headed(self, message: Message, header: Header) -> Encoded:
        """Encodes a message whose header is given in full."""
        assistant = message.role == "assistant"
        kind = header.channel if assistant else message.role
        return encoded(
            kind,
            self._head(header.author, self._given_header(header, recipient_first=True)),
            self.vocabulary.encode(message.content),
            in_analysis=header.channel == "analysis",
            weight=message.weight * self.options.weights.get(kind, 1.0) if assistant else 0.0,
            end_weight=message.weight if assistant else 0.0,
        )

    def _given_header(self, header: Header, *, recipient_first: bool) -> list[int]:
        """Encodes what stands between the author and the content."""
        to = self._shared(f" to={header.recipient}") if header.recipient else ()
        channel = self._channel(header.channel) if header.channel else []
        ids = [*to, *channel] if recipient_first else [*channel, *to]
        if header.content_type:
            before, constrain, after = f" {header.content_type}".partition("<|constrain|>")
            ids += self._shared(before)
            ids += [CONSTRAIN, *self._shared(after)] if constrain else []
        return ids

    def _result(self, message: Message) -> Encoded:
        """Encodes a tool's result in the channel in which such a tool is called."""
        author = message.name if message.builtin else f"{FUNCTIONS}.{message.name}"
        header = [*self._shared(" to=assistant"), *self._channel(_call_channel(message.builtin))]
        return encoded(
            "tool",
            self._head(author, header),
            self.vocabulary.encode(message.content),
            in_analysis=message.builtin,
        )

    def _said(self, channel: str, text: str, weight: float) -> Encoded:
        return encoded(
            channel,
            self._said_heads[channel],
            self.vocabulary.encode(text),
            in_analysis=channel == "analysis",
            weight=weight * self.options.weights.get(channel, 1.0),
            end_weight=weight,
        )

    def _called(self, call: ToolCall, weight: float) -> Encoded:
        header = call.header or self._call_header(call)
        recipient_first = self.options.tool_call_header == "role"
        return encoded(
            "tool_call",
            self._head(header.author, self._given_header(header, recipient_first=recipient_first)),
            self.vocabulary.encode(call.arguments),
            CALL,
            in_analysis=header.channel == "analysis",
            weight=weight * self.options.weights.get("tool_call", 1.0),
            end_weight=weight,
        )

    def _call_header(self, call: ToolCall) -> Header:
        """Returns the header of a call in the chosen style."""
        if call.builtin:
            return Header("assistant", "analysis", call.name, "code")
        content_type = CONTENT_TYPES[self.options.constrain]
        return Header("assistant", "commentary", f"{FUNCTIONS}.{call.name}", content_type)

    def _spelled(self, message: RawMessage) -> Encoded:
        header: list[int] = []
        for piece in message.header:
            header += [piece] if isinstance(piece, int) else self._shared(piece)
        return encoded(
            message.kind,
            self._head(message.author, header),
            self.vocabulary.encode(message.content),
            CALL if message.kind == "tool_call" else END,
            in_analysis=message.in_analysis,
            weight=self.options.weights.get(message.kind, 1.0) if message.sampled else 0.0,
            end_weight=1.0 if message.sampled else 0.0,
        )

    def _encode_opening(self, author: str) -> array[int]:
        return array("i", [START, *self._shared(author)])

    def _head(self, author: str, header: Sequence[int] = ()) -> Head:
        opening = self._opening(author)
        return Head(array("i", [*opening, *header, MESSAGE]), len(opening))

    def _channel(self, channel: str) -> list[int]:
        return [CHANNEL, *self._shared(channel)]


def _pieces(document: Document) -> list[tuple[str, float]]:
    """Cuts a document where what is trained begins and ends."""
    pieces, at = [], 0
    for start, stop in document.untrained:
        pieces += [(document.text[at:start], 1.0), (document.text[start:stop], 0.0)]
        at = stop
    rest = document.text[at:]
    return [(text, weight) for text, weight in [*pieces, (rest, 1.0)] if text]


def _call_channel(builtin: bool) -> str:
    """Returns the channel of calls and their results: commentary for functions, analysis for
    builtin tools.
    """
    return "analysis" if builtin else "commentary"


def _tools_key(tools: Sequence[ToolSpec]) -> str:
    """Dumps the tools as JSON: equal for rows with equal tools, and far quicker than declaring
    them.
    """
    specs = [(tool.name, tool.description, tool.parameters) for tool in tools]
    return json.dumps(specs, default=dict)


def _functions_text(key: str) -> str:
    return functions_text([ToolSpec(*spec) for spec in json.loads(key)])
