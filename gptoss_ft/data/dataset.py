"""Data files to training rows: read, check, render, split, count, fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets

from gptoss_ft.data.read import read_jsonl
from gptoss_ft.errors import ConfigError, DataError, Problem
from gptoss_ft.harmony.conversation import parse_openai_chat
from gptoss_ft.harmony.messages import Conversation
from gptoss_ft.harmony.options import CHANNELS, RenderOptions
from gptoss_ft.harmony.render import Renderer, Row
from gptoss_ft.harmony.vocabulary import CONTEXT_TOKENS, Vocabulary

ON_TOO_LONG = ("drop", "error")
FEATURES = datasets.Features(
    {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "labels": datasets.Sequence(datasets.Value("int32")),
        "loss_weights": datasets.Sequence(datasets.Value("float32")),
    }
)


@dataclass
class DataOptions:
    """Where the conversations are and how they become rows (config group `data`).

    Attributes:
        path: JSONL file of OpenAI chat rows.
        validation_path: a second such file, held out; None for none.
        validation_split: share of the conversations of `path` to hold out instead, 0 for none.
        max_length: longest row in tokens.
        on_too_long: what happens to longer rows: drop (counted) or error.
        seed: of the split.
        render: see `RenderOptions`.
    """

    path: str = ""
    validation_path: str | None = None
    validation_split: float = 0.0
    max_length: int = 4096
    on_too_long: str = "drop"
    seed: int = 0
    render: RenderOptions = field(default_factory=RenderOptions)

    def problems(self, key: str) -> list[Problem]:
        """Values out of range and contradictions; `key` is the config prefix, such as `data`."""
        problems = []
        if not self.path:
            mend = "write data.path=FILE.jsonl"
            problems.append(Problem("no data file given", f"{key}.path", mend=mend))
        if not (math.isfinite(self.validation_split) and 0 <= self.validation_split < 1):
            mend = "write a share from 0 to below 1, such as 0.1"
            found = str(self.validation_split)
            problems.append(Problem("out of range", f"{key}.validation_split", found, mend))
        elif self.validation_split and self.validation_path:
            mend = "give one of validation_path and validation_split"
            where = f"{key}.validation_split"
            problems.append(Problem("two sources of validation rows", where, mend=mend))
        if not 1 <= self.max_length <= CONTEXT_TOKENS:
            mend = f"write a number of tokens from 1 to {CONTEXT_TOKENS}"
            found = str(self.max_length)
            problems.append(Problem("out of range", f"{key}.max_length", found, mend))
        if self.on_too_long not in ON_TOO_LONG:
            mend = f"write one of {', '.join(ON_TOO_LONG)}"
            found = repr(self.on_too_long)
            problems.append(Problem("unknown choice", f"{key}.on_too_long", found, mend))
        return problems + self.render.problems(f"{key}.render")


@dataclass
class DataSummary:
    """What was read and what is trained; tokens count rows of training and validation together.

    Attributes:
        conversations: conversations read.
        rows: rows kept.
        validation_rows: those of them held out.
        tokens: tokens in the rows kept.
        trained_tokens: tokens with a weight above 0.
        channel_tokens: the same per channel.
        dropped: number of conversations or rows left out, by reason.
        finals: trained finals.
        bare_finals: trained finals without analysis in the same action.
        longest: tokens in the longest row kept.
    """

    conversations: int = 0
    rows: int = 0
    validation_rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    channel_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHANNELS, 0))
    dropped: dict[str, int] = field(default_factory=dict)
    finals: int = 0
    bare_finals: int = 0
    longest: int = 0

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        lines = [
            f"{self.conversations:,} conversations, {self.rows:,} rows"
            f" ({self.validation_rows:,} held out), longest {self.longest:,} tokens",
            f"{self.tokens:,} tokens, {self.trained_tokens:,} trained ({share:.0%}): "
            + ", ".join(f"{name} {count:,}" for name, count in self.channel_tokens.items()),
        ]
        lines += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        if self.bare_finals:
            lines.append(
                f"{self.bare_finals:,} of {self.finals:,} trained finals have no analysis before"
                " them: they teach the model to answer without reasoning"
            )
        return lines


@dataclass(frozen=True)
class PreparedData:
    """Rows ready for training.

    Attributes:
        train: columns input_ids and labels (int32), loss_weights (float32), equally long per row;
            labels stand at the position of the token they name, -100 where nothing is trained.
        validation: the same columns, or None.
        summary: counts.
        fingerprint: sha256 over the files' bytes, the options and the vocabulary.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    summary: DataSummary
    fingerprint: str


class ReadRow(NamedTuple):
    """A conversation and the line it stands on."""

    where: str
    conversation: Conversation


@dataclass(frozen=True)
class ReadData:
    """Conversations that are sound, not rendered yet.

    Attributes:
        train, validation: in the order of the files, or of the split.
    """

    train: list[ReadRow]
    validation: list[ReadRow]


def read_data(options: DataOptions) -> ReadData:
    """Reads, checks and splits the data files.

    Raises:
        ConfigError: options out of range.
        DataError: every bad row of all files.
    """
    problems = options.problems("data")
    if problems:
        raise ConfigError(problems)
    train, validation = _read_files(options)
    return ReadData(*(_split(train, options) if options.validation_split else (train, validation)))


def render_data(read: ReadData, options: DataOptions, vocabulary: Vocabulary) -> PreparedData:
    """Renders what was read.

    Raises:
        DataError: rows that are too long, if they are to be refused, or no row left to train on.
    """
    train, validation = read.train, read.validation
    renderer = Renderer(vocabulary, options.render)
    summary = DataSummary(conversations=len(train) + len(validation))
    too_long: list[Problem] = []
    train_rows = _render(train, renderer, options, summary, too_long)
    validation_rows = _render(validation, renderer, options, summary, too_long)
    if too_long:
        raise DataError(too_long)
    summary.validation_rows = len(validation_rows)
    _check_rows_left(options, train_rows, validation_rows, bool(validation), summary)
    return PreparedData(
        _dataset(train_rows),
        _dataset(validation_rows) if validation else None,
        summary,
        _fingerprint(options, vocabulary),
    )


def _read_files(options: DataOptions) -> tuple[list[ReadRow], list[ReadRow]]:
    problems: list[Problem] = []
    train = _read(Path(options.path), problems)
    held_out = Path(options.validation_path) if options.validation_path else None
    validation = _read(held_out, problems) if held_out else []
    if problems:
        raise DataError(problems)
    return train, validation


def _read(path: Path, problems: list[Problem]) -> list[ReadRow]:
    """The conversations of one file; the problems of all its rows are added to `problems`."""
    found: list[ReadRow] = []
    mine: list[Problem] = []
    try:
        for number, row in read_jsonl(path):
            where = f"{path}:{number}"
            try:
                found.append(ReadRow(where, parse_openai_chat(row, where)))
            except DataError as error:
                mine += error.problems
    except DataError as error:
        mine += error.problems
    problems += mine
    return found


def _split(read: list[ReadRow], options: DataOptions) -> tuple[list[ReadRow], list[ReadRow]]:
    """Hold out whole conversations; at least one stays on either side."""
    if len(read) < 2:
        mend = "add conversations, or set data.validation_split=0"
        what = "one conversation cannot be split into training and validation"
        raise DataError(Problem(what, options.path, mend=mend))
    count = min(max(1, round(len(read) * options.validation_split)), len(read) - 1)
    held_out = set(random.Random(options.seed).sample(range(len(read)), count))
    train = [item for i, item in enumerate(read) if i not in held_out]
    return train, [read[i] for i in sorted(held_out)]


def _render(
    read: Iterable[ReadRow],
    renderer: Renderer,
    options: DataOptions,
    summary: DataSummary,
    too_long: list[Problem],
) -> list[Row]:
    kept: list[Row] = []
    dropped = Counter(summary.dropped)
    limit = options.max_length
    for where, conversation in read:
        rows = renderer.render(conversation)
        if not rows:
            # The parser refuses rows without an answer, so what is left here was weighted away.
            dropped["conversations in which every trained message has weight 0"] += 1
        for row in rows:
            length = len(row.input_ids)
            if length <= limit:
                kept.append(row)
                _count(row, summary)
            elif options.on_too_long == "drop":
                dropped[f"rows longer than max_length={limit}"] += 1
            else:
                mend = "raise data.max_length, shorten the row, or set data.on_too_long=drop"
                too_long.append(Problem("the row is too long", where, f"{length} tokens", mend))
    summary.dropped = dict(dropped)
    return kept


def _count(row: Row, summary: DataSummary) -> None:
    summary.rows += 1
    summary.tokens += len(row.input_ids)
    summary.longest = max(summary.longest, len(row.input_ids))
    summary.finals += row.finals
    summary.bare_finals += row.bare_finals
    for segment in row.segments:
        if segment.weight > 0:
            summary.trained_tokens += segment.stop - segment.start
            summary.channel_tokens[segment.channel] += segment.stop - segment.start


def _check_rows_left(
    options: DataOptions,
    train: Sequence[Row],
    validation: Sequence[Row],
    holds_out: bool,
    summary: DataSummary,
) -> None:
    reasons = "; ".join(f"{count} {reason}" for reason, count in summary.dropped.items())
    mend = "raise data.max_length, or give the messages a weight"
    sides = [("train on", train), ("validate on", validation)] if holds_out else []
    problems = [
        Problem(f"no row is left to {use}", options.path, f"dropped {reasons}", mend)
        for use, rows in sides or [("train on", train)]
        if not rows
    ]
    if problems:
        raise DataError(problems)


def _dataset(rows: Sequence[Row]) -> datasets.Dataset:
    """In memory: nothing is written to the cache folder of `datasets`."""
    columns = {name: [getattr(row, name) for row in rows] for name in FEATURES}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _fingerprint(options: DataOptions, vocabulary: Vocabulary) -> str:
    """Depends on what the files hold, not on where they are."""
    settings = asdict(options)
    for name in ("path", "validation_path"):
        path = settings[name]
        settings[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    settings["vocabulary"] = vocabulary.identity
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
