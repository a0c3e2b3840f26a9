"""One chunk of raw rows to one Arrow batch of training rows: the work that runs in parallel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gptoss_ft.data.options import DataOptions, SourceOptions
from gptoss_ft.data.read import Chunk, decode, read_source
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.formats import detect, parse
from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Example,
    Feedback,
    HarmonyText,
    Preference,
)
from gptoss_ft.harmony.render import Renderer, Row

# What the model is trained on; the other columns are for splitting and counting.
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "loss_weights": pa.list_(pa.float32()),
        "length": pa.int32(),
        "example": pa.int32(),
        "digest": pa.uint64(),
        "is_document": pa.bool_(),
    }
)


class ParsedRow(NamedTuple):
    """An example, the format it was read from, and its place."""

    where: str
    format: str
    example: Example


@dataclass
class ChunkResult:
    """What became of a chunk.

    Attributes:
        batch: rows in the columns of `SCHEMA`; `example` counts the chunk's examples from 0.
        examples: number of examples in the chunk, kept or not.
        counts: sums over the chunk.
        problems: of its bad rows.
        done: as in the chunk.
    """

    batch: pa.RecordBatch
    examples: int
    counts: Counts
    problems: list[Problem]
    done: int


@dataclass
class _Columns:
    """The rows of a chunk while it is rendered."""

    rows: list[Row] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    is_document: list[bool] = field(default_factory=list)


def parse_chunk(
    chunk: Chunk, format_name: str, problems: list[Problem], *, needs_answer: bool = True
) -> Iterator[ParsedRow]:
    """The good rows of a chunk, of the given or detected format.

    Problems of the other rows are added to `problems`.
    """
    for number, row in chunk.rows:
        where = f"{chunk.path}:{number}"
        try:
            mapping = decode(row, where)
            name = format_name or detect(mapping) or ""
            yield ParsedRow(where, name, parse(mapping, where, name, needs_answer=needs_answer))
        except DataError as error:
            problems += error.problems


def read_examples(
    source: SourceOptions, problems: list[Problem], hub: bool = False, *, needs_answer: bool = True
) -> Iterator[ParsedRow]:
    """The good rows of a source, one after the other; problems of the others go to `problems`.

    Raises:
        DataError: files that cannot be read.
    """
    for chunk in read_source(source, hub):
        yield from parse_chunk(chunk, source.format, problems, needs_answer=needs_answer)


def render_chunk(
    chunk: Chunk, format_name: str, renderer: Renderer, options: DataOptions
) -> ChunkResult:
    """Parses, checks and renders the rows of a chunk for supervised fine-tuning."""
    counts, columns, problems = Counts(), _Columns(), list[Problem]()
    examples = 0
    for parsed in parse_chunk(chunk, format_name, problems):
        counts.formats[parsed.format] += 1
        try:
            rows = _training_rows(parsed, renderer, options, counts)
        except DataError as error:
            problems += error.problems
            continue
        digest = _digest(rows)
        columns.rows += rows
        columns.examples += [examples] * len(rows)
        columns.digests += [digest] * len(rows)
        columns.is_document += [isinstance(parsed.example, Document)] * len(rows)
        examples += 1
    return ChunkResult(_batch(columns), examples, counts, problems, chunk.done)


def _training_rows(
    parsed: ParsedRow, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Row]:
    """The rows of an example that are kept, counted."""
    example = parsed.example
    if isinstance(example, Preference | Feedback):
        kind = "a preference pair" if isinstance(example, Preference) else "a rated answer"
        mend = "train it with a recipe of dpo=NAME, or give conversations to sft="
        raise DataError(
            Problem(f"this row is {kind}, which sft does not train", parsed.where, mend=mend)
        )
    if isinstance(example, Document):
        rows = list(_pieces(renderer.render_document(example), options.max_length, counts))
        effort = ""
    elif isinstance(example, HarmonyText):
        rows, effort = renderer.render_harmony(example, parsed.where), "unknown"
    else:
        example = _with_effort(example, renderer, options, counts)
        rows = _render(example, renderer, options, counts)
        effort = example.effort or options.render.effort
    if options.without_analysis == "drop" and any(row.bare_finals for row in rows):
        counts.dropped["conversations with a trained final without analysis"] += 1
        return []
    kept = list(_short_enough(rows, parsed.where, options, counts))
    for row in kept:
        counts.count(row, effort)
    return kept


def _with_effort(
    conversation: Conversation, renderer: Renderer, options: DataOptions, counts: Counts
) -> Conversation:
    """The conversation with effort low if that is asked for where a final has no analysis."""
    if options.without_analysis != "low" or conversation.effort is not None:
        return conversation
    if not any(row.bare_finals for row in renderer.render(conversation)):
        return conversation
    counts.changed["conversations without analysis before a final, now at effort low"] += 1
    return replace(conversation, effort="low")


def _render(
    conversation: Conversation, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Row]:
    """The rows of a conversation, after leaving out its oldest turns if that is asked for."""
    rows = renderer.render(conversation)
    if not rows:
        # The parser refuses rows without an answer, so what is left here was weighted away.
        counts.dropped["conversations in which every trained message has weight 0"] += 1
    if options.on_too_long != "truncate":
        return rows
    shortened = conversation
    while any(len(row.input_ids) > options.max_length for row in rows):
        shorter = without_oldest_turn(shortened)
        if shorter is None:
            return rows
        shortened, rows = shorter, renderer.render(shorter)
    if shortened is not conversation:
        counts.changed[f"conversations shortened to max_length={options.max_length}"] += 1
    return rows


def without_oldest_turn(conversation: Conversation) -> Conversation | None:
    """Without the first question and everything up to the next; None when there is only one.

    System and developer messages stay.
    """
    messages = conversation.messages
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    # A run of user messages is one question.
    starts = [i for i in asked if i == 0 or messages[i - 1].role != "user"]
    if len(starts) < 2:
        return None
    kept = tuple(
        message
        for i, message in enumerate(messages)
        if i >= starts[1] or message.role in ("system", "developer")
    )
    return replace(conversation, messages=kept)


def _short_enough(
    rows: list[Row], where: str, options: DataOptions, counts: Counts
) -> Iterator[Row]:
    problems = []
    for row in rows:
        length = len(row.input_ids)
        if length <= options.max_length:
            yield row
        elif options.on_too_long == "error":
            mend = "raise data.max_length, shorten the row, or set data.on_too_long=drop"
            problems.append(Problem("the row is too long", where, f"{length} tokens", mend))
        else:
            counts.dropped[f"rows longer than max_length={options.max_length}"] += 1
    if problems:
        raise DataError(problems)


def _pieces(row: Row, max_length: int, counts: Counts) -> Iterator[Row]:
    """A document cut into rows of at most `max_length`; the first token of a row is not trained."""
    if len(row.input_ids) > max_length:
        counts.changed[f"documents cut into pieces of max_length={max_length}"] += 1
    for start in range(0, len(row.input_ids), max_length):
        stop = min(start + max_length, len(row.input_ids))
        part = slice(start, stop)
        segments = [
            segment._replace(
                start=max(segment.start, start) - start, stop=min(segment.stop, stop) - start
            )
            for segment in row.segments
            if segment.start < stop and segment.stop > start
        ]
        yield replace(
            row,
            input_ids=row.input_ids[part],
            labels=row.labels[part],
            loss_weights=row.loss_weights[part],
            segments=segments,
        )


def _digest(rows: list[Row]) -> int:
    """Equal for examples whose rows hold the same tokens and labels."""
    state = hashlib.blake2b(digest_size=8)
    for row in rows:
        state.update(np.asarray(row.input_ids, dtype=np.int32).tobytes())
        state.update(np.asarray(row.labels, dtype=np.int32).tobytes())
    return int.from_bytes(state.digest(), "little")


def _batch(columns: _Columns) -> pa.RecordBatch:
    lengths = np.fromiter((len(row.input_ids) for row in columns.rows), np.int32, len(columns.rows))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)

    def lists(name: str, dtype: type[np.generic]) -> pa.ListArray:
        flat = np.empty(int(offsets[-1]), dtype=dtype)
        for row, start, stop in zip(columns.rows, offsets[:-1], offsets[1:], strict=True):
            flat[start:stop] = getattr(row, name)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))

    return pa.RecordBatch.from_arrays(
        [
            lists("input_ids", np.int32),
            lists("labels", np.int32),
            lists("loss_weights", np.float32),
            pa.array(lengths),
            pa.array(columns.examples, pa.int32()),
            pa.array(columns.digests, pa.uint64()),
            pa.array(columns.is_document, pa.bool_()),
        ],
        schema=SCHEMA,
    )
