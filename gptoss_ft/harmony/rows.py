"""Encoded messages to training rows: which run is sampled, what it is shown, what is trained.

The unit of training is the sampling action: a run of assistant messages that ends at a final or a
tool call. Its prompt is the history, without what stands in the analysis channel before the last
earlier final, plus `<|start|>assistant`; its target is everything after, through `<|return|>` or
`<|call|>`. Actions whose prompt starts with another action's prompt and target share a row.

What history drops goes by the channel alone, as in openai-harmony: calls of builtin tools and
their results stand in the analysis channel and go with the rest of it. openai-harmony drops up to
the *first* final and only where a final came last, so that a third turn would see the analysis of
the second and a tool loop that of the turn before; dropping up to the last final is what the
format asks for in words, and what comes out when each turn's analysis is dropped as it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gptoss_ft.harmony.options import CHANNELS
from gptoss_ft.harmony.vocabulary import END, RETURN

IGNORE = -100


class Segment(NamedTuple):
    """Positions start..stop of a row that belong to one part of one message, with their weight.

    Attributes:
        channel: of an assistant message one of `CHANNELS`, of a document `text`, else the role.
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


class Encoded(NamedTuple):
    """One Harmony message, encoded.

    Attributes:
        channel: as in `Segment`.
        opening: `<|start|>` and the author.
        header: the rest of the header, through `<|message|>`.
        closing: how history shows its end, `<|end|>` or `<|call|>`.
        in_analysis: whether it stands in the analysis channel, whoever wrote it.
        weight: of header and content when trained.
        end_weight: of the closing token when trained.
    """

    channel: str
    opening: list[int]
    header: list[int]
    content: list[int]
    closing: int = END
    in_analysis: bool = False
    weight: float = 0.0
    end_weight: float = 0.0


class Span(NamedTuple):
    """Indices of the first and last message of an action, and of the last final before it or -1."""

    first: int
    last: int
    boundary: int


def find_spans(messages: Sequence[Encoded]) -> list[Span]:
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
            spans.append(Span(first, i, boundary))
            first = -1
    return spans


def last_final(messages: Sequence[Encoded], stop: int) -> int:
    """Index of the last final before `stop`, or -1."""
    return max((i for i in range(stop) if messages[i].channel == "final"), default=-1)


def trains(messages: Sequence[Encoded], span: Span) -> bool:
    """Whether anything of the action has a weight above 0."""
    return any(_trained(message) for message in messages[span.first : span.last + 1])


def _trained(message: Encoded) -> bool:
    return message.weight > 0 or message.end_weight > 0


def group_spans(messages: Sequence[Encoded], spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Runs of actions that fit one row: none of them drops analysis that another one shows."""
    group: list[Span] = []
    for span in spans:
        if group:
            shown = range(group[-1].boundary + 1, min(span.boundary, group[-1].last + 1))
            if any(messages[i].in_analysis for i in shown):
                yield group
                group = []
        group.append(span)
    if group:
        yield group


def _kept(messages: Sequence[Encoded], stop: int, boundary: int) -> Iterator[int]:
    """Indices before `stop`, without what stands in the analysis channel before `boundary`."""
    for i in range(stop):
        if i > boundary or not messages[i].in_analysis:
            yield i


def history_ids(messages: Sequence[Encoded], stop: int, boundary: int) -> list[int]:
    """The messages before `stop` as a prompt shows them."""
    ids: list[int] = []
    for i in _kept(messages, stop, boundary):
        message = messages[i]
        ids += message.opening
        ids += message.header
        ids += message.content
        ids.append(message.closing)
    return ids


def build_row(messages: Sequence[Encoded], spans: Sequence[Span]) -> Row:
    """Everything through the end of the last action; only the actions of `spans` are trained."""
    writer = _Writer()
    trained = {i: span for span in spans for i in range(span.first, span.last + 1)}
    stop = spans[-1].last
    for i in _kept(messages, stop + 1, spans[-1].boundary):
        message, span = messages[i], trained.get(i)
        if span is None:
            writer.write_untrained(message)
            continue
        # The first `<|start|>assistant` of an action is prompt; later ones the model samples.
        opening_weight = message.weight if i > span.first else 0.0
        writer.write(message.channel, "header", message.opening, opening_weight)
        writer.write(message.channel, "header", message.header, message.weight)
        writer.write(message.channel, "content", message.content, message.weight)
        label = RETURN if message.channel == "final" else message.closing
        shown = label if i == stop else message.closing
        writer.write(message.channel, "end", [shown], message.end_weight, [label])
    return writer.row(*_count_finals(messages, spans))


def _count_finals(messages: Sequence[Encoded], spans: Sequence[Span]) -> tuple[int, int]:
    """Trained finals, and those of them without analysis in the same action."""
    finals = [
        s for s in spans if messages[s.last].channel == "final" and _trained(messages[s.last])
    ]
    bare = [
        s for s in finals if all(m.channel != "analysis" for m in messages[s.first : s.last + 1])
    ]
    return len(finals), len(bare)


def document_row(content: list[int], end: int) -> Row:
    """Plain text and the token that ends it, all of it trained."""
    writer = _Writer()
    writer.write("text", "content", content, 1.0)
    writer.write("text", "end", [end], 1.0)
    return writer.row(0, 0)


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

    def write_untrained(self, message: Encoded) -> None:
        """A whole message of the prompt."""
        channel, start = message.channel, len(self.input_ids)
        content = start + len(message.opening) + len(message.header)
        end = content + len(message.content)
        self.input_ids += message.opening
        self.input_ids += message.header
        self.input_ids += message.content
        self.input_ids.append(message.closing)
        self.labels += [IGNORE] * (end + 1 - start)
        self.loss_weights += [0.0] * (end + 1 - start)
        self.segments += (
            Segment(channel, "header", start, content, 0.0),
            Segment(channel, "content", content, end, 0.0),
            Segment(channel, "end", end, end + 1, 0.0),
        )

    def row(self, finals: int, bare_finals: int) -> Row:
        return Row(
            self.input_ids, self.labels, self.loss_weights, self.segments, finals, bare_finals
        )
