"""One chunk of raw rows to one Arrow batch of training rows: the work that runs in parallel."""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from gptoss_ft.data.assemble import assembled
from gptoss_ft.data.bad import BadRow, Report
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.options import DataOptions, SourceOptions
from gptoss_ft.data.rated import good_side
from gptoss_ft.data.reading import read_row
from gptoss_ft.data.shorten import shortened
from gptoss_ft.data.sources.read import RowChunk, decode, read_source
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Example,
    Feedback,
    HarmonyText,
    Preference,
)
from gptoss_ft.harmony.render import IGNORE, Renderer, Row

# What the model is trained on; the other columns are for splitting and counting.
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "loss_weights": pa.list_(pa.float32()),
        "length": pa.int32(),
        "example": pa.int32(),
        "digest": pa.uint64(),
    }
)


class HasLength(Protocol):
    """A row whose tokens can be counted."""

    @property
    def length(self) -> int: ...


Sized = TypeVar("Sized", bound=HasLength)

NO_NOTES: Mapping[str, int] = MappingProxyType({})


class ParsedRow(NamedTuple):
    """An example, its place and format, the notes to the user, and how each column was read."""

    where: str
    format: str
    example: Example
    notes: Mapping[str, int] = NO_NOTES
    columns: tuple[str, ...] = ()


@dataclass
class RowChunkResult:
    """The result of a chunk.

    Attributes:
        batch: rows in the columns of their kind; `example` counts the chunk's examples from 0.
        examples: number of examples in the chunk, kept or not.
        counts: sums over the chunk.
        bad: its bad rows, in order.
        done: as in the chunk.
    """

    batch: pa.RecordBatch
    examples: int
    counts: Counts
    bad: list[BadRow]
    done: int


@dataclass(frozen=True)
class RowKind:
    """A kind of rows that examples become: conversations, preference pairs, rated completions.

    Attributes:
        name: part of the fingerprint of rendered rows.
        schema: of the batches; `example` and `digest` are among the columns.
        rows: the rows of an example that are kept, counted; raises DataError for examples that
            such rows cannot be made of. A function of a module, so that processes can name it.
        batch: rows and the number of each row's example as one batch.
    """

    name: str
    schema: pa.Schema
    rows: Callable[[ParsedRow, Renderer, DataOptions, Counts], list[Any]]
    batch: Callable[[list[Any], list[int]], pa.RecordBatch]


def parse_chunk(
    chunk: RowChunk, reading: Reading, report: Report, *, needs_answer: bool = True
) -> Iterator[ParsedRow]:
    """Parses the rows of a chunk as the source says and yields the good ones; the others are
    reported.
    """
    notes = Counter(chunk.notes)
    for number, raw in chunk.rows:
        where, row = f"{chunk.path}:{number}", raw
        try:
            row = decode(raw, where)
            read = read_row(row, where, reading, needs_answer=needs_answer)
        except DataError as error:
            report(BadRow(where, error.problems, row))
        else:
            said = read.notes + notes if notes else read.notes  # the source's, with its first row
            yield ParsedRow(where, read.format, read.example, said, read.columns)
            notes.clear()


def read_rows(
    source: SourceOptions, report: Report, hub: bool = False, *, needs_answer: bool = True
) -> Iterator[ParsedRow]:
    """Yields the good rows of a source, one after the other; the others are reported.

    Raises:
        DataError: files that cannot be read.
    """
    reading = source.reading
    for chunk in assembled(read_source(source, hub), reading):
        yield from parse_chunk(chunk, reading, report, needs_answer=needs_answer)


def read_examples(
    source: SourceOptions, problems: list[Problem], hub: bool = False, *, needs_answer: bool = True
) -> Iterator[ParsedRow]:
    """Yields the rows of `read_rows`; what is wrong with the bad ones goes to `problems`."""
    yield from read_rows(
        source, lambda bad: problems.extend(bad.problems), hub, needs_answer=needs_answer
    )


def render_chunk(
    chunk: RowChunk, reading: Reading, kind: RowKind, renderer: Renderer, options: DataOptions
) -> RowChunkResult:
    """Parses, checks and renders the rows of a chunk."""
    with _collector_paused():
        return _render_chunk(chunk, reading, kind, renderer, options)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pauses the garbage collector: rows are many small objects without cycles, and looking for
    cycles among them costs a fifth.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _render_chunk(
    chunk: RowChunk, reading: Reading, kind: RowKind, renderer: Renderer, options: DataOptions
) -> RowChunkResult:
    counts, bad = Counts(), list[BadRow]()
    rows, numbers = list[Any](), list[int]()
    examples = 0
    columns = Counter[tuple[str, ...]]()
    # All are parsed before one is rendered: the tables of the tokenizer and the code of the parser
    # would push each other out of the cache at every row.
    for parsed in list(parse_chunk(chunk, reading, bad.append)):
        try:
            kept = kind.rows(parsed, renderer, options, counts)
        except DataError as error:
            bad.append(BadRow(parsed.where, error.problems, _row_at(chunk, parsed.where)))
            continue
        counts.formats[parsed.format] += 1
        if parsed.notes:
            counts.notes.update(parsed.notes)
        columns[parsed.columns] += 1
        rows += kept
        numbers += [examples] * len(kept)
        examples += 1
    counts.count_columns(columns)
    if bad:
        places = {f"{chunk.path}:{number}": i for i, (number, _) in enumerate(chunk.rows)}
        bad.sort(key=lambda row: places[row.where])
    return RowChunkResult(kind.batch(rows, numbers), examples, counts, bad, chunk.done)


def _row_at(chunk: RowChunk, where: str) -> bytes | Mapping[str, Any]:
    """Returns the row of a chunk that stands at `where`, decoded."""
    row = next(row for number, row in chunk.rows if f"{chunk.path}:{number}" == where)
    return decode(row, where)


def _training_rows(
    parsed: ParsedRow, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Row]:
    """Renders the rows of an example that are kept, and counts them."""
    example = parsed.example
    if isinstance(example, Preference | Feedback):
        good = good_side(example, parsed.where, options, counts)
        if good is None:
            return []
        example = good
    if isinstance(example, Document):
        rows, effort = _document(example, renderer, options, counts), ""
    elif isinstance(example, HarmonyText):
        rows, effort = renderer.render_harmony(example, parsed.where), "unknown"
    else:
        example = _with_effort(example, renderer, options, counts)
        rows = _render(example, renderer, options, counts)
        effort = example.effort or options.render.effort
    if options.without_analysis == "drop" and any(row.bare_finals for row in rows):
        counts.dropped["conversations with a trained final without analysis"] += 1
        return []
    kept = short_enough(rows, parsed.where, options, counts)
    for row in kept:
        counts.count(row, effort)
    return kept


def _document(
    document: Document, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Row]:
    """Renders a document as rows of at most `max_length`."""
    rows = renderer.render_document(document, options.max_length)
    if len(rows) > 1:
        counts.changed[f"documents cut into pieces of max_length={options.max_length}"] += 1
    return rows


def _with_effort(
    conversation: Conversation, renderer: Renderer, options: DataOptions, counts: Counts
) -> Conversation:
    """Sets effort low, if that is asked for, where a final has no analysis."""
    if options.without_analysis != "low" or conversation.effort is not None:
        return conversation
    if not any(row.bare_finals for row in renderer.render(conversation)):
        return conversation
    counts.changed["conversations without analysis before a final, now at effort low"] += 1
    return replace(conversation, effort="low")


def _render(
    conversation: Conversation, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Row]:
    """Renders a conversation, leaving out its oldest turns if that is asked for."""
    rows = renderer.render(conversation)
    if not rows:
        # The parser refuses rows without an answer, so what is left here was weighted away.
        counts.dropped["conversations in which every trained message has weight 0"] += 1
    too_long = any(row.length > options.max_length for row in rows)
    if options.on_too_long != "truncate" or not too_long:
        return rows
    shorter = shortened(
        conversation,
        renderer.render,
        lambda found: all(row.length <= options.max_length for row in found),
    )
    if shorter:
        counts.changed[f"conversations shortened to max_length={options.max_length}"] += 1
    return shorter or rows


def short_enough(
    rows: Sequence[Sized], where: str, options: DataOptions, counts: Counts
) -> list[Sized]:
    """Keeps the rows of at most `max_length`; the others are counted, or refused if that is asked
    for.
    """
    kept, problems = [], []
    for row in rows:
        if row.length <= options.max_length:
            kept.append(row)
        elif options.on_too_long == "error":
            mend = "raise data.max_length, shorten the row, or set data.on_too_long=drop"
            found = f"{row.length} tokens"
            problems.append(Problem("the row is too long", where, found, mend))
        else:
            counts.dropped[f"rows longer than max_length={options.max_length}"] += 1
    if problems:
        raise DataError(problems)
    return kept


def _batch(rows: list[Row], examples: list[int]) -> pa.RecordBatch:
    lengths = np.fromiter((row.length for row in rows), np.int32, len(rows))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    # Joining buffers copies memory; converting lists of ids would be the larger part of it all.
    joined = b"".join([piece for row in rows for piece in row.pieces])
    ids = np.frombuffer(joined, dtype=np.int32)
    labels, weights = _labels_and_weights(rows, offsets, ids)
    lists = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
        for values in (ids, labels, weights)
    ]
    digests = _digests(examples, offsets, ids, labels)
    return pa.RecordBatch.from_arrays(
        [
            *lists,
            pa.array(lengths),
            pa.array(examples, pa.int32()),
            pa.array(digests, pa.uint64()),
        ],
        schema=SCHEMA,
    )


def _labels_and_weights(
    rows: list[Row], offsets: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes `Row.labels` and `Row.loss_weights` for all rows end to end."""
    spans = [
        (offset + start, offset + stop, weight, IGNORE if label is None else label)
        for row, offset in zip(rows, offsets.tolist(), strict=False)
        for start, stop, weight, _, label in row.trained
    ]
    table = np.array(spans, dtype=np.float64).reshape(-1, 4)
    bounds = table[:, :2].astype(np.int64)
    lengths = np.diff(bounds.ravel(), prepend=0, append=len(ids))  # gap, span, …, span, gap
    values = np.zeros(len(lengths), dtype=np.float32)
    values[1::2] = table[:, 2]
    weights = np.repeat(values, lengths)
    labels = np.where(weights > 0, ids, np.int32(IGNORE))
    renamed = table[:, 3] != IGNORE
    labels[bounds[renamed, 0]] = table[renamed, 3]
    return labels, weights


def _digests(
    examples: list[int], offsets: np.ndarray, ids: np.ndarray, labels: np.ndarray
) -> list[int]:
    """Computes one number per row, equal for examples whose rows hold the same tokens and
    labels.
    """
    # Which label a trained token has follows from the tokens, so the labels are one bit each here.
    trained = labels != IGNORE
    digests: dict[int, int] = {}
    for example, rows in groupby(range(len(examples)), key=examples.__getitem__):
        members = list(rows)
        place = slice(int(offsets[members[0]]), int(offsets[members[-1] + 1]))
        state = hashlib.sha256(ids[place].data)
        state.update(np.packbits(trained[place]).data)
        digests[example] = int.from_bytes(state.digest()[:8], "little")
    return [digests[example] for example in examples]


CONVERSATIONS = RowKind("sft", SCHEMA, _training_rows, _batch)
