"""Preference pairs and rated completions as Arrow rows, in the same chunks as conversations.

A pair is one prompt and two completions. The prompt is a prefix of both by construction: it is
rendered once, through `<|start|>assistant`, and each completion goes on from there. Every token of
a completion has a weight, by which its log-probability counts in the comparison, and a channel, by
which it is reported. The target at each position is the id that stands there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
import pyarrow as pa

from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.rated import TIED
from gptoss_ft.data.rows import ParsedRow, RowKind, short_enough
from gptoss_ft.data.shorten import shortened
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Example,
    Feedback,
    Message,
    Preference,
)
from gptoss_ft.harmony.options import CHANNELS as SAMPLED_CHANNELS
from gptoss_ft.harmony.render import Renderer, Row

# Codes of the columns named `…_channels`. `none` is what the model does not sample: padding, and
# tool results within a completion.
CHANNELS = ("none", *SAMPLED_CHANNELS)

_IDS, _WEIGHTS, _CODES = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.int8())
_COUNTS = {"prompt_length": pa.int32(), "length": pa.int32(), "example": pa.int32()}
# `length` counts prompt, chosen and rejected: the tokens of a row in which both share the prompt.
# `digest` is equal for equal pairs, and `reverse` is the digest of the pair the other way round;
# `group` is equal for rows with the same prompt, which stay on one side of a split.
PAIR_SCHEMA = pa.schema(
    {
        "prompt_ids": _IDS,
        "chosen_ids": _IDS,
        "rejected_ids": _IDS,
        "chosen_weights": _WEIGHTS,
        "rejected_weights": _WEIGHTS,
        "chosen_channels": _CODES,
        "rejected_channels": _CODES,
        **_COUNTS,
        "digest": pa.uint64(),
        "group": pa.uint64(),
        "reverse": pa.uint64(),
    }
)
RATED_SCHEMA = pa.schema(
    {
        "prompt_ids": _IDS,
        "completion_ids": _IDS,
        "completion_weights": _WEIGHTS,
        "completion_channels": _CODES,
        "label": pa.bool_(),
        **_COUNTS,
        "digest": pa.uint64(),
        "group": pa.uint64(),
    }
)
SAME = "pairs whose completions are the same"
SAME_COMPARED = "ties: the two completions differ only where the weight is 0"
UNWEIGHTED = "rows with a completion in which every token has weight 0"
SPLIT = "pairs read as two rated completions each"

Kept = TypeVar("Kept", "Pair", "Rated")


@dataclass(frozen=True)
class Completion:
    """The tokens to sample after a prompt; arrays of equal length.

    Attributes:
        ids: int32.
        weights: float32; 0 where a token does not count.
        channels: int8, indices into `CHANNELS`.
    """

    ids: np.ndarray
    weights: np.ndarray
    channels: np.ndarray

    def counted(self) -> np.ndarray:
        """Returns the ids that count."""
        return self.ids[self.weights > 0]


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, the better one first; `prompt` is int32."""

    prompt: np.ndarray
    chosen: Completion
    rejected: Completion

    @property
    def length(self) -> int:
        """Tokens of a row in which both completions share the prompt."""
        return len(self.prompt) + len(self.chosen.ids) + len(self.rejected.ids)


@dataclass(frozen=True)
class Rated:
    """A completion of a prompt and whether it is a good one; `prompt` is int32."""

    prompt: np.ndarray
    completion: Completion
    label: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion.ids)


def pair_rows(
    parsed: ParsedRow, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Pair]:
    """Renders the pair of an example unless it is left out, and counts it.

    Raises:
        DataError: the example is no pair, or it is too long and that is to be an error.
    """
    example = parsed.example
    if not isinstance(example, Preference):
        raise DataError(_not_a_pair(example, parsed.where))
    if example.tied:
        counts.dropped[TIED] += 1
        return []

    def render(prompt: Conversation) -> list[Pair]:
        (asked, chosen), (_, rejected) = _rendered(
            renderer, prompt, (example.chosen, example.rejected)
        )
        return [Pair(asked, chosen, rejected)]

    kept = _kept(parsed, example.prompt, render, options, counts)
    for pair in kept:
        if np.array_equal(pair.chosen.ids, pair.rejected.ids):
            counts.dropped[SAME] += 1
            return []
        if np.array_equal(pair.chosen.counted(), pair.rejected.counted()):
            counts.dropped[SAME_COMPARED] += 1
            return []
        _count(pair, {"chosen": pair.chosen, "rejected": pair.rejected}, counts)
    return kept


def rated_rows(
    parsed: ParsedRow, renderer: Renderer, options: DataOptions, counts: Counts
) -> list[Rated]:
    """Renders the rated completions of an example, one of a rating or two of a pair, and counts
    them.

    Raises:
        DataError: the example is neither, or it is too long and that is to be an error.
    """
    example = parsed.example
    if isinstance(example, Preference):
        if example.tied:
            counts.dropped[TIED] += 1
            return []
        if example.chosen == example.rejected:
            counts.dropped[SAME] += 1
            return []
        counts.changed[SPLIT] += 1
        completions = [(example.chosen, True), (example.rejected, False)]
    elif isinstance(example, Feedback):
        completions = [(example.completion, example.label)]
    else:
        raise DataError(_not_rated(example, parsed))

    def render(prompt: Conversation) -> list[Rated]:
        rows = _rendered(renderer, prompt, [messages for messages, _ in completions])
        labels = [label for _, label in completions]
        return [Rated(*row, label) for row, label in zip(rows, labels, strict=True)]

    kept = _kept(parsed, example.prompt, render, options, counts)
    for rated in kept:
        _count(rated, {"good" if rated.label else "bad": rated.completion}, counts)
    return kept


def _rendered(
    renderer: Renderer, prompt: Conversation, completions: Sequence[Sequence[Message]]
) -> list[tuple[np.ndarray, Completion]]:
    """Renders prompt and completion of each row."""
    return [_split(row) for row in renderer.completions(prompt, completions)]


def _split(row: Row) -> tuple[np.ndarray, Completion]:
    """Splits a rendered row at the point where the model begins to sample."""
    ids = np.frombuffer(b"".join(row.pieces), dtype=np.int32)
    codes = [
        CHANNELS.index(message.channel) if sampled else 0
        for message, sampled in zip(row.messages, row.sampled, strict=True)
    ]
    channels = np.repeat(np.array(codes, dtype=np.int8), [len(piece) for piece in row.pieces])
    weights = np.zeros(len(ids), dtype=np.float32)
    for start, stop, weight, _, label in row.trained:
        # A final that does not end the row is read as `<|end|>`, which the model never samples.
        if label is None or label == ids[start]:
            weights[start:stop] = weight
    first = next(i for i, sampled in enumerate(row.sampled) if sampled)
    start = sum(map(len, row.pieces[:first])) + row.messages[first].header
    return ids[:start], Completion(ids[start:], weights[start:], channels[start:])


def _kept(
    parsed: ParsedRow,
    prompt: Conversation,
    render: Callable[[Conversation], list[Kept]],
    options: DataOptions,
    counts: Counts,
) -> list[Kept]:
    """Returns the rows of an example that are short enough and have something that counts."""
    rows = render(prompt)
    if options.on_too_long == "truncate" and not _fits(rows, options):
        shorter = shortened(prompt, render, lambda found: _fits(found, options))
        if shorter:
            counts.changed[f"prompts shortened to max_length={options.max_length}"] += 1
        rows = shorter or rows
    kept = short_enough(rows, parsed.where, options, counts)
    weighted = [row for row in kept if all(side.weights.any() for side in _completions(row))]
    if len(weighted) < len(kept):
        counts.dropped[UNWEIGHTED] += len(kept) - len(weighted)
    return weighted


def _fits(rows: Iterable[Pair | Rated], options: DataOptions) -> bool:
    return all(row.length <= options.max_length for row in rows)


def _completions(row: Pair | Rated) -> tuple[Completion, ...]:
    return (row.chosen, row.rejected) if isinstance(row, Pair) else (row.completion,)


def _count(row: Pair | Rated, sides: dict[str, Completion], counts: Counts) -> None:
    """Counts a row that is kept, and the tokens of each side that count, by channel."""
    counts.rows += 1
    counts.tokens += row.length
    for side, completion in sides.items():
        tokens = np.bincount(completion.channels[completion.weights > 0], minlength=len(CHANNELS))
        for channel, number in zip(CHANNELS, tokens.tolist(), strict=True):
            if number:
                counts.trained[f"{side} {channel}"] += number


def _not_a_pair(example: Example, where: str) -> Problem:
    columns = "write prompt, chosen and rejected"
    if isinstance(example, Feedback):
        mend = f"train it with dpo=kto_20b, or {columns}"
        return Problem("this row is a rated completion, not a pair", where, mend=mend)
    mend = f"train it with a recipe of sft=NAME, or {columns}"
    return Problem(f"this row is {_name(example)}, not a preference pair", where, mend=mend)


def _not_rated(example: Example, parsed: ParsedRow) -> Problem:
    if parsed.format == "prompt_completion":
        mend = 'write "label": true for a good completion, else false'
        return Problem("the row has no `label`", parsed.where, "prompt and completion", mend)
    mend = "train it with a recipe of sft=NAME, or write prompt, completion and label"
    return Problem(f"this row is {_name(example)}, not a rated completion", parsed.where, mend=mend)


def _name(example: Example) -> str:
    return "plain text" if isinstance(example, Document) else "a conversation"


def _pair_batch(rows: list[Pair], examples: list[int]) -> pa.RecordBatch:
    sides = {
        f"{name}_{part}": [getattr(getattr(row, name), part) for row in rows]
        for part in ("ids", "weights", "channels")
        for name in ("chosen", "rejected")
    }
    prompts, chosen, rejected = (
        [row.prompt for row in rows],
        *(sides[f"{name}_ids"] for name in ("chosen", "rejected")),
    )
    columns = {
        **_lists(PAIR_SCHEMA, {"prompt_ids": prompts, **sides}),
        **_numbers(rows, examples),
        "digest": [_digest(*parts) for parts in zip(prompts, chosen, rejected, strict=True)],
        "group": [_digest(prompt) for prompt in prompts],
        "reverse": [_digest(*parts) for parts in zip(prompts, rejected, chosen, strict=True)],
    }
    return pa.RecordBatch.from_pydict(columns, schema=PAIR_SCHEMA)


def _rated_batch(rows: list[Rated], examples: list[int]) -> pa.RecordBatch:
    parts = {
        f"completion_{part}": [getattr(row.completion, part) for row in rows]
        for part in ("ids", "weights", "channels")
    }
    columns = {
        **_lists(RATED_SCHEMA, {"prompt_ids": [row.prompt for row in rows], **parts}),
        "label": [row.label for row in rows],
        **_numbers(rows, examples),
        "digest": _rated_digests(rows, examples),
        "group": [_digest(row.prompt) for row in rows],
    }
    return pa.RecordBatch.from_pydict(columns, schema=RATED_SCHEMA)


def _lists(schema: pa.Schema, columns: dict[str, list[np.ndarray]]) -> dict[str, pa.Array]:
    """Builds columns of lists from an array per row."""
    return {
        name: list_array(
            np.concatenate([np.empty(0, schema.field(name).type.value_type.to_pandas_dtype()), *v]),
            np.fromiter(map(len, v), np.int64, len(v)),
        )
        for name, v in columns.items()
    }


def list_array(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Lists end to end, and how long each is, as an Arrow array."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _numbers(rows: Sequence[Pair | Rated], examples: list[int]) -> dict[str, list[int]]:
    return {
        "prompt_length": [len(row.prompt) for row in rows],
        "length": [row.length for row in rows],
        "example": examples,
    }


def _digest(*parts: np.ndarray) -> int:
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(4, "little"))
        state.update(part.tobytes())
    return int.from_bytes(state.digest(), "little")


def _rated_digests(rows: list[Rated], examples: list[int]) -> list[int]:
    """Computes one number per row, the same for all rows of an example."""
    digests: list[int] = []
    for _, group in groupby(range(len(rows)), key=examples.__getitem__):
        members = [rows[i] for i in group]
        parts = [
            part
            for row in members
            for part in (row.prompt, row.completion.ids, np.array([row.label], dtype=np.int32))
        ]
        digests += [_digest(*parts)] * len(members)
    return digests


PAIRS = RowKind("pairs", PAIR_SCHEMA, pair_rows, _pair_batch)
RATINGS = RowKind("ratings", RATED_SCHEMA, rated_rows, _rated_batch)
