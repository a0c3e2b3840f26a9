"""Content of a preview before it is drawn: rows cut into messages, messages into pieces.

A piece is a run of tokens that are trained alike, or one special token. The texts of a row's pieces
join to exactly the row's text: where a boundary falls inside a character, or inside characters that
are drawn as one, all of it belongs to the piece in which it begins.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import NamedTuple

import regex

from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Example,
    Feedback,
    HarmonyText,
    Preference,
)
from gptoss_ft.harmony.options import CHANNELS
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.segments import IGNORE, Row, Segment
from gptoss_ft.harmony.vocabulary import (
    FIRST_SPECIAL,
    SPECIAL_NAMES,
    START,
    VOCABULARY_ROWS,
    Vocabulary,
)

KINDS = ("sft", "preference", "kto", "text")
# Letters that cannot be seen, move a cursor or turn the text around: to be shown by name. Joiners
# and direction marks are not among them; scripts and emoji need them where they stand.
UNSEEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u00ad\\u061c\\u200b\\u2028\\u2029\\u202a-\\u202e\\u2060-\\u2064"
    "\\u2066-\\u2069\\ufeff\\ufff9-\\ufffb]"
)
# Text that spells a special token; ordinary tokens, to be told apart from the real ones.
LOOK_ALIKE = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_CLUSTER = regex.compile(r"\X")


def factor(weight: float) -> str:
    """Formats a weight."""
    return f"\N{MULTIPLICATION SIGN}{weight:g}"


@dataclass(frozen=True)
class TextPiece:
    """A run of tokens of one message that are trained alike.

    Attributes:
        text: what the model reads; of a special token its name. Empty where every character that
            these tokens write began in the piece before.
        kind: `special` for one special token, `header` for other text before `<|message|>`, else
            `text`.
        channel: as in `Segment`.
        part: as in `Segment`.
        weight: of the loss on these tokens, 0 where they are not trained.
        trained: whether these tokens are labels.
        tokens: how many there are.
        learnt: what is trained in place of `text` where the two differ, else empty.
    """

    text: str
    kind: str
    channel: str
    part: str
    weight: float
    trained: bool
    tokens: int
    learnt: str = ""


@dataclass(frozen=True)
class MessageBlock:
    """One Harmony message, or a document.

    Attributes:
        channel: as in `Segment`; `assistant` for the bare opening that ends a prompt.
        pieces: in order.
        action: number of the trained sampling action that it belongs to, from 1; 0 for none.
    """

    channel: str
    pieces: tuple[TextPiece, ...]
    action: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the message."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def trained(self) -> int:
        """Those of them that are trained."""
        return sum(piece.tokens for piece in self.pieces if piece.trained)


@dataclass(frozen=True)
class Panel:
    """Messages that stand together: a row, the prompt that two rows share, or one of the two.

    Attributes:
        name: `row`, `prompt`, `chosen` or `rejected`.
        title: what to write above; empty for nothing.
        blocks: in order.
    """

    name: str
    title: str
    blocks: tuple[MessageBlock, ...]

    @cached_property
    def tokens(self) -> int:
        """Tokens of all messages."""
        return sum(block.tokens for block in self.blocks)

    @cached_property
    def channels(self) -> Counter[str]:
        """Trained tokens per channel."""
        count: Counter[str] = Counter()
        for block in self.blocks:
            count[block.channel] += block.trained
        return +count


@dataclass(frozen=True)
class PreviewRow:
    """One example of a data file as it will be trained.

    Attributes:
        where: `file:line`.
        format: name of the format that it was read as.
        kind: one of `KINDS`.
        rows: its training rows; of a preference two, the chosen and the rejected one.
        note: what a reader should know about it; empty for nothing.
        label: of `kto`, whether the completion is a good one.
        columns: how each column was read.
        notes: what else the user is told of the row, counted.
    """

    where: str
    format: str
    kind: str
    rows: Sequence[Row]
    note: str = ""
    label: bool | None = None
    columns: tuple[str, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


def preview_row(
    where: str, example: Example, renderer: Renderer, format_name: str = ""
) -> PreviewRow:
    """Renders one example for showing.

    Raises:
        DataError: a `HarmonyText` that is not Harmony.
    """
    rows: list[Row]
    kind, label = "sft", None
    if isinstance(example, Preference):
        kind = "preference"
        rows = renderer.completions(example.prompt, (example.chosen, example.rejected))
    elif isinstance(example, Feedback):
        kind, label = "kto", example.label
        rows = [renderer.completion(example.prompt, example.completion)]
    elif isinstance(example, Document):
        kind, rows = "text", renderer.render_document(example)
    elif isinstance(example, HarmonyText):
        rows = renderer.render_harmony(example, where)
    else:
        rows = renderer.render(example)
    return PreviewRow(where, format_name, kind, rows, _note(example, rows), label)


def _note(example: Example, rows: Sequence[Row]) -> str:
    notes = []
    if not rows:
        notes.append("nothing here is trained")
    if isinstance(example, Conversation) and len(rows) > 1:
        notes.append(
            f"makes {len(rows)} rows: an answer's analysis is gone when the next turn is sampled"
        )
    bare = sum(row.bare_finals for row in rows)
    if bare and isinstance(example, Conversation | HarmonyText):
        notes.append(f"{bare} trained {'finals' if bare > 1 else 'final'} without analysis")
    return "; ".join(notes)


def panels(row: PreviewRow, vocabulary: Vocabulary) -> list[Panel]:
    """Returns the panels of one example, in reading order."""
    if row.kind == "preference":
        chosen, rejected = row.rows
        cut = _prompt_length(chosen, rejected)
        shared = blocks(chosen, vocabulary, 0, cut)
        return [
            Panel("prompt", "shared prompt", _opened(shared)),
            Panel("chosen", "chosen", blocks(chosen, vocabulary, cut)),
            Panel("rejected", "rejected", blocks(rejected, vocabulary, cut)),
        ]
    count = len(row.rows)
    return [
        Panel("row", f"row {i} of {count}" if count > 1 else "", blocks(one, vocabulary))
        for i, one in enumerate(row.rows, start=1)
    ]


def _opened(shared: tuple[MessageBlock, ...]) -> tuple[MessageBlock, ...]:
    """Returns the blocks of a prompt; its last one is only an opening and belongs to no channel
    yet.
    """
    last = shared[-1:]
    if last and all(piece.part == "header" for piece in last[0].pieces):
        return (*shared[:-1], replace(last[0], channel="assistant"))
    return shared


def _prompt_length(chosen: Row, rejected: Row) -> int:
    """Counts the tokens of the prompt that the two rows share, through the last
    `<|start|>assistant`.

    Completions may begin alike, so what both rows have in common can be more than the prompt.
    """
    shorter = min(len(chosen.input_ids), len(rejected.input_ids))
    first = next(
        (
            at
            for at in range(shorter)
            if chosen.input_ids[at] != rejected.input_ids[at]
            or (chosen.labels[at], rejected.labels[at]) != (IGNORE, IGNORE)
        ),
        shorter,
    )
    openings = [
        segment.stop
        for segment in chosen.segments
        if segment.stop <= first and chosen.input_ids[segment.start] == START
    ]
    return openings[-1] if openings else first


def blocks(
    row: Row, vocabulary: Vocabulary, start: int = 0, stop: int | None = None
) -> tuple[MessageBlock, ...]:
    """Returns the messages of a row, or of its positions start..stop."""
    messages: list[list[TextPiece]] = []
    for piece in pieces(row, vocabulary, start, stop):
        opens = piece.kind == "special" and piece.text == SPECIAL_NAMES[START]
        if opens or not messages:
            messages.append([])
        messages[-1].append(piece)
    return tuple(
        _numbered([MessageBlock(message[-1].channel, tuple(message)) for message in messages])
    )


def _numbered(found: list[MessageBlock]) -> Iterator[MessageBlock]:
    """Yields the blocks with the numbers of their actions.

    An action is a run of assistant messages that ends at a final or a call. The ones that nothing
    is trained of are history and get no number.
    """
    number = 0
    action: list[MessageBlock] = []
    for i, block in enumerate(found):
        if block.channel not in CHANNELS:
            yield block
            continue
        action.append(block)
        last = i + 1 == len(found) or found[i + 1].channel not in CHANNELS
        if last or block.channel in ("final", "tool_call"):
            trained = any(member.trained for member in action)
            number += trained
            yield from (replace(member, action=number if trained else 0) for member in action)
            action = []


def weighed(pieces: Iterable[TextPiece]) -> Iterator[tuple[TextPiece, str]]:
    """Yields each piece with the weight to write before it, where that is not 1 and was not just
    written.
    """
    written = 1.0
    for piece in pieces:
        shown = ""
        if piece.trained and piece.weight != written:
            written = piece.weight
            shown = factor(piece.weight)
        yield piece, shown


class _Run(NamedTuple):
    """Positions start..stop of a row that one piece shows."""

    start: int
    stop: int
    special: bool
    segment: Segment
    weight: float
    trained: bool
    learnt: int | None


def pieces(
    row: Row, vocabulary: Vocabulary, start: int = 0, stop: int | None = None
) -> list[TextPiece]:
    """Returns the pieces of a row, or of its positions start..stop; their texts join to its whole
    text.
    """
    found: list[TextPiece] = []
    runs = _runs(row, start, len(row.input_ids) if stop is None else stop)
    for special, stretch in groupby(runs, key=lambda run: run.special):
        members = list(stretch)
        if special:
            texts = [vocabulary.decode(row.input_ids[run.start : run.stop]) for run in members]
        else:
            texts = _texts(row.input_ids, members, vocabulary)
        found += (_piece(run, text, vocabulary) for run, text in zip(members, texts, strict=True))
    return found


def _piece(run: _Run, text: str, vocabulary: Vocabulary) -> TextPiece:
    kind = "header" if run.segment.part == "header" else "text"
    return TextPiece(
        text,
        "special" if run.special else kind,
        run.segment.channel,
        run.segment.part,
        run.weight,
        run.trained,
        run.stop - run.start,
        "" if run.learnt is None else vocabulary.decode([run.learnt]),
    )


def _runs(row: Row, start: int, stop: int) -> Iterator[_Run]:
    """Yields consecutive runs; a special token, and a token with another label, is a run by
    itself.
    """

    def is_special(at: int) -> bool:
        return FIRST_SPECIAL <= row.input_ids[at] < VOCABULARY_ROWS

    def style(at: int) -> tuple[int, bool, float]:
        alone = is_special(at) or row.labels[at] not in (IGNORE, row.input_ids[at])
        return (at if alone else -1, row.labels[at] != IGNORE, row.loss_weights[at])

    for segment in row.segments:
        inside = range(max(start, segment.start), min(stop, segment.stop))
        for (_, trained, weight), positions in groupby(inside, key=style):
            first, *rest = positions
            label = row.labels[first]
            yield _Run(
                first,
                first + 1 + len(rest),
                is_special(first),
                segment,
                weight,
                trained,
                label if label not in (IGNORE, row.input_ids[first]) else None,
            )


def _texts(ids: list[int], runs: list[_Run], vocabulary: Vocabulary) -> list[str]:
    """Decodes neighbouring runs of ordinary tokens, cut only between whole characters."""
    start = runs[0].start
    whole = vocabulary.decode(ids[start : runs[-1].stop])
    if len(runs) == 1:
        return [whole]
    ends = [match.end() for match in _CLUSTER.finditer(whole)]
    cuts = [0]
    clean, before = start, 0  # a token, and the letters before it, that no character spans
    for run in runs[:-1]:
        shown = vocabulary.decode(ids[clean : run.stop])
        at = before + len(shown)
        if not whole.startswith(shown, before):
            # The bytes of a character are cut: `shown` ends in U+FFFD. It began in this run.
            pairs = enumerate(zip(shown, whole[before:at], strict=False))
            at = before + 1 + next((i for i, (left, right) in pairs if left != right), 0)
        elif not shown.endswith("\N{REPLACEMENT CHARACTER}"):
            clean, before = run.stop, at
        cuts.append(ends[bisect_left(ends, at)] if at else 0)
    return [whole[left:right] for left, right in pairwise([*cuts, len(whole)])]
