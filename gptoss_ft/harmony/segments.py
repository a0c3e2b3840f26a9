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

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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


class Encoded(NamedTuple):
    """One Harmony message, encoded.

    Attributes:
        channel: as in `Segment`.
        ids: all of it as history shows it, 32-bit; one array for all the rows that it stands in.
        header: where the rest of the header begins, after `<|start|>` and the author.
        content: where its content begins.
        in_analysis: whether it stands in the analysis channel, whoever wrote it.
        weight: of header and content when trained.
        end_weight: of the closing token when trained.
    """

    channel: str
    ids: array[int]
    header: int
    content: int
    in_analysis: bool = False
    weight: float = 0.0
    end_weight: float = 0.0


class Head(NamedTuple):
    """The part of a message before its content.

    Attributes:
        ids: `<|start|>`, the author and the rest of the header, through `<|message|>`.
        header: where the rest of the header begins.
    """

    ids: array[int]
    header: int


def encoded(
    channel: str,
    head: Head,
    content: array[int],
    closing: int = END,
    *,
    in_analysis: bool = False,
    weight: float = 0.0,
    end_weight: float = 0.0,
) -> Encoded:
    """Builds a message from its pieces; history shows its end as `closing`, `<|end|>` or
    `<|call|>`.
    """
    ids = head.ids + content
    ids.append(closing)
    return Encoded(channel, ids, head.header, len(head.ids), in_analysis, weight, end_weight)


class Trained(NamedTuple):
    """Positions start..stop of a row that are trained with one weight.

    `label` is what a single closing token is trained as; None where labels are the ids.
    """

    start: int
    stop: int
    weight: float
    channel: str
    label: int | None = None


@dataclass(eq=False)
class Row:
    """One training row.

    Ids, labels, weights and segments are worked out when they are asked for, because the data
    pipeline fills whole columns from `pieces` and `trained` at once.

    Attributes:
        messages: what stands in it.
        pieces: their ids as this row shows them.
        sampled: of each message, whether the model samples none of it (0), all but its opening (1)
            or all of it (2).
        trained: what is trained, in order.
        finals: trained finals in the row.
        bare_finals: those of them without analysis in the same action.
        length: number of tokens.
    """

    messages: list[Encoded]
    pieces: list[array[int]]
    sampled: list[int]
    trained: list[Trained]
    finals: int = 0
    bare_finals: int = 0
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = sum(map(len, self.pieces))

    def __len__(self) -> int:
        """Returns the number of tokens."""
        return self.length

    def __eq__(self, other: object) -> bool:
        """Returns whether both rows read and train the same tokens."""
        if not isinstance(other, Row):
            return NotImplemented
        mine, theirs = (
            (row.input_ids, row.trained, row.segments, row.finals, row.bare_finals)
            for row in (self, other)
        )
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    @cached_property
    def input_ids(self) -> list[int]:
        """The ids that the model reads."""
        return [token for piece in self.pieces for token in piece]

    @cached_property
    def labels(self) -> list[int]:
        """The token to be predicted at the same position (the model shifts), -100 for none.

        Differs from `input_ids` where a final ends in the middle of the row: it is read as
        `<|end|>`, as every later prompt shows it, and trained as `<|return|>`.
        """
        labels = [IGNORE] * len(self)
        for start, stop, _, _, label in self.trained:
            labels[start:stop] = self.input_ids[start:stop] if label is None else [label]
        return labels

    @cached_property
    def loss_weights(self) -> list[float]:
        """Weight of each label, 0.0 where nothing is trained."""
        weights = [0.0] * len(self)
        for start, stop, weight, _, _ in self.trained:
            weights[start:stop] = [weight] * (stop - start)
        return weights

    @cached_property
    def segments(self) -> list[Segment]:
        """The parts of the row, in order and without gaps."""
        segments, start = [], 0
        for message, sampled in zip(self.messages, self.sampled, strict=True):
            weight = message.weight if sampled else 0.0
            end = start + len(message.ids) - 1
            for part, first, stop, its_weight in (
                ("header", start, start + message.header, weight if sampled == 2 else 0.0),
                ("header", start + message.header, start + message.content, weight),
                ("content", start + message.content, end, weight),
                ("end", end, end + 1, message.end_weight if sampled else 0.0),
            ):
                if first < stop:
                    segments.append(Segment(message.channel, part, first, stop, its_weight))
            start = end + 1
        return segments


class ActionSpan(NamedTuple):
    """Indices of the first and last message of an action, and of the last final before it or -1."""

    first: int
    last: int
    boundary: int


def find_spans(messages: Sequence[Encoded]) -> list[ActionSpan]:
    """Finds the actions in order; assistant messages that nothing closes belong to none."""
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
            spans.append(ActionSpan(first, i, boundary))
            first = -1
    return spans


def last_final(messages: Sequence[Encoded], stop: int) -> int:
    """Returns the index of the last final before `stop`, or -1."""
    return max((i for i in range(stop) if messages[i].channel == "final"), default=-1)


def trains(messages: Sequence[Encoded], span: ActionSpan) -> bool:
    """Returns whether anything of the action has a weight above 0."""
    return any(
        message.weight > 0 or message.end_weight > 0
        for message in messages[span.first : span.last + 1]
    )


def group_spans(
    messages: Sequence[Encoded], spans: Sequence[ActionSpan]
) -> Iterator[list[ActionSpan]]:
    """Runs of actions that fit one row: none of them drops analysis that another one shows."""
    group: list[ActionSpan] = []
    for span in spans:
        if group:
            shown = range(group[-1].boundary + 1, min(span.boundary, group[-1].last + 1))
            if any(messages[i].in_analysis for i in shown):
                yield group
                group = []
        group.append(span)
    if group:
        yield group


def _kept(messages: Sequence[Encoded], stop: int, boundary: int) -> list[int]:
    """Returns the indices before `stop`, dropping what stands in the analysis channel before
    `boundary`.
    """
    return [i for i in range(stop) if i > boundary or not messages[i].in_analysis]


def history_ids(messages: Sequence[Encoded], stop: int, boundary: int) -> list[int]:
    """Returns the ids of the messages before `stop` as a prompt shows them."""
    return [token for i in _kept(messages, stop, boundary) for token in messages[i].ids.tolist()]


def build_row(messages: Sequence[Encoded], spans: Sequence[ActionSpan]) -> Row:
    """Builds the row through the end of the last action; only the actions of `spans` are
    trained.
    """
    stop, boundary = spans[-1].last + 1, spans[-1].boundary
    sampled = [0] * stop
    for first, last, _ in spans:
        # The first `<|start|>assistant` of an action is prompt; later ones the model samples.
        sampled[first : last + 1] = [1] + [2] * (last - first)
    shown = list(messages[:stop])
    if boundary >= 0:
        kept = _kept(messages, stop, boundary)
        shown, sampled = [shown[i] for i in kept], [sampled[i] for i in kept]
    pieces = [message.ids for message in shown]
    pieces[-1] = _ended(shown[-1])
    return Row(
        shown, pieces, sampled, _trained_spans(shown, sampled), *_count_finals(messages, spans)
    )


def _trained_spans(messages: Sequence[Encoded], sampled: Sequence[int]) -> list[Trained]:
    """Returns what is trained of a row's messages, by their weights and how much of them is
    sampled.
    """
    spans: list[Trained] = []
    start = 0
    for message, how in zip(messages, sampled, strict=True):
        stop = start + len(message.ids)
        if how:
            if message.weight > 0:
                first = start if how == 2 else start + message.header
                spans.append(Trained(first, stop - 1, message.weight, message.channel))
            if message.end_weight > 0:
                label = RETURN if message.channel == "final" else None
                spans.append(Trained(stop - 1, stop, message.end_weight, message.channel, label))
        start = stop
    return spans


def _ended(message: Encoded) -> array[int]:
    """Returns the ids of the message that ends a row, in which a final is shown as it is
    trained.
    """
    if message.channel != "final":
        return message.ids
    return message.ids[:-1] + array("i", [RETURN])


def _count_finals(messages: Sequence[Encoded], spans: Sequence[ActionSpan]) -> tuple[int, int]:
    """Counts trained finals, and those of them without analysis in the same action."""
    finals = bare = 0
    for first, last, _ in spans:
        final = messages[last]
        if final.channel == "final" and (final.weight > 0 or final.end_weight > 0):
            finals += 1
            bare += all(message.channel != "analysis" for message in messages[first:last])
    return finals, bare


def document_row(pieces: Sequence[tuple[array[int], float]]) -> Row:
    """Builds a row of plain text from pieces that each have a weight."""
    no_head = Head(array("i"), 0)
    messages = [
        encoded("text", no_head, ids[:-1], ids[-1], weight=weight, end_weight=weight)
        for ids, weight in pieces
    ]
    sampled = [2] * len(messages)
    shown = [message.ids for message in messages]
    return Row(messages, shown, sampled, _trained_spans(messages, sampled))


def document_rows(
    pieces: Sequence[tuple[array[int], float]], end: int, max_length: int
) -> list[Row]:
    """Cuts a document and the token that ends it into rows of at most `max_length`.

    Args:
        pieces: ids and the weight that they are trained with, in order; the end weighs what the
            last one does.
        end: the token.
        max_length: tokens of a row. Rows with nothing to train are left out.
    """
    *before, (last, last_weight) = pieces or [(array("i"), 1.0)]
    ended = [*before, (last + array("i", [end]), last_weight)]
    rows: list[list[tuple[array[int], float]]] = [[]]
    room = max_length
    for ids, weight in ended:
        while ids:
            if not room:
                rows.append([])
                room = max_length
            rows[-1].append((ids[:room], weight))
            ids, room = ids[room:], max(0, room - len(ids))
    return [document_row(row) for row in rows if any(weight > 0 for _, weight in row)]
