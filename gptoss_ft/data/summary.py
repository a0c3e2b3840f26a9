"""Summary of the data: what was read, is trained, and was left out, in numbers and lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptoss_ft.harmony.options import CHANNELS
from gptoss_ft.harmony.render import Row

PERCENTILES = (50, 90, 99, 100)
MAX_CAUSES = 20
_COUNTERS = (
    *("formats", "trained", "dropped", "changed", "bare_finals", "notes", "columns", "bad"),
)


@dataclass
class Counts:
    """Sums over examples; two of them can be added.

    Attributes:
        formats: examples read, by format.
        rows: rows kept.
        tokens: tokens in the rows kept.
        trained: tokens with a weight above 0, by channel.
        dropped: examples or rows left out, by reason.
        changed: examples that were shortened, cut or given another effort, by what was done.
        finals: trained finals.
        bare_finals: trained finals without analysis in the same action, by effort.
        notes: what else the user is told of the rows, by text.
        columns: how columns were read, such as `question → prompt`.
        bad: bad rows left out, by cause; see `data.on_bad`.
        first_bad: the first place of each cause.
    """

    formats: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    tokens: int = 0
    trained: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    finals: int = 0
    bare_finals: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: dict[str, str] = field(default_factory=dict)

    def count_columns(self, read: Mapping[tuple[str, ...], int]) -> None:
        """Counts how columns were read: lines of rows, and how many rows have them."""
        for lines, count in read.items():
            for line in lines:
                self.columns[line] += count

    def add(self, other: Counts) -> None:
        """Adds the sums of `other`."""
        self.rows += other.rows
        self.tokens += other.tokens
        self.finals += other.finals
        self.first_bad = {**other.first_bad, **self.first_bad}
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))

    def count(self, row: Row, effort: str) -> None:
        """Counts a row that is kept; `effort` is that of its conversation, empty for text."""
        self.rows += 1
        self.tokens += row.length
        self.finals += row.finals
        if row.bare_finals:
            self.bare_finals[effort] += row.bare_finals
        for start, stop, _, channel, _ in row.trained:
            self.trained[channel] += stop - start


@dataclass
class RowSummary:
    """Counts of what was read and kept; tokens count training and validation rows together.

    Attributes:
        formats: examples read, by format.
        rows: rows kept, before weights and packing.
        train_rows, validation_rows: rows of the two datasets, after weights and before packing.
        packed_rows, packed_validation_rows: the same after packing, 0 without it.
        packed_share: share of the packed training rows' `max_length` that is tokens.
        tokens: tokens in the rows kept; of pairs, prompts once.
        dropped, changed: examples or rows left out or changed, by what happened to them.
        notes: what else is to be known of the rows that were read, and how often.
        columns: how columns were read, and how often.
        bad: bad rows left out, by cause.
        first_bad: the first place of each cause.
        duplicates: examples that say what an earlier one said.
        validation_overlap: rows held out that are also trained on.
        lengths: percentiles of the row lengths in tokens.
        cached: whether the rows were rendered before.
    """

    formats: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    train_rows: int = 0
    validation_rows: int = 0
    packed_rows: int = 0
    packed_validation_rows: int = 0
    packed_share: float = 0.0
    tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    first_bad: dict[str, str] = field(default_factory=dict)
    duplicates: int = 0
    validation_overlap: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    cached: bool = False

    def _read_line(self, examples: str, rows: str) -> str:
        """Says what was read: how many `examples`, in words, and how many `rows` they became."""
        return (
            f"{examples} ({listed(self.formats)}), {self.rows:,} {rows}: "
            f"{self.train_rows:,} to train on, {self.validation_rows:,} held out"
            + (" (rendered before)" if self.cached else "")
        )

    def _length_line(self) -> str:
        return f"row lengths in tokens: {listed(self.lengths)}"

    def _fate_lines(self) -> list[str]:
        """Says what was packed, left out or changed."""
        lines = [f"columns: {listed(self.columns)}"] if self.columns else []
        if self.packed_rows:
            held_out = self.packed_validation_rows
            lines.append(
                f"packed into {self.packed_rows:,} rows to train on, {self.packed_share:.1%} full"
                + (f", and {held_out:,} held out" if held_out else "")
            )
        lines += bad_lines(self.bad, self.first_bad)
        lines += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        lines += [f"changed {count:,}: {what}" for what, count in self.changed.items()]
        lines += [f"note, {count:,} times: {what}" for what, count in self.notes.items()]
        if self.duplicates:
            lines.append(f"{self.duplicates:,} duplicates (data.duplicates=drop leaves them out)")
        if self.validation_overlap:
            lines.append(
                f"{self.validation_overlap:,} of {self.validation_rows:,} validation rows are also "
                "trained on: data.duplicates=drop leaves them out of training"
            )
        return lines


def bad_lines(bad: Mapping[str, int], first: Mapping[str, str]) -> list[str]:
    """Says how many bad rows were left out, by cause, the most frequent first."""
    causes = Counter(bad).most_common()
    shown = [
        f"dropped {_rows(count)}: {cause} (first: {first[cause]})"
        for cause, count in causes[:MAX_CAUSES]
    ]
    rest = sum(count for _, count in causes[MAX_CAUSES:])
    return [*shown, f"dropped {_rows(rest)} for other causes"] if rest else shown


def _rows(count: int) -> str:
    return f"{count:,} bad row{'' if count == 1 else 's'}"


def listed(numbers: Mapping[str, int]) -> str:
    """Names and numbers, for the middle of a line."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


@dataclass
class DataSummary(RowSummary):
    """Numbers of rows for supervised fine-tuning.

    Attributes:
        conversations: conversations or documents read.
        trained_tokens: tokens with a weight above 0.
        channel_tokens: the same by channel.
        finals: trained finals.
        bare_finals: trained finals without analysis in the same action, by effort.
    """

    conversations: int = 0
    trained_tokens: int = 0
    channel_tokens: dict[str, int] = field(default_factory=dict)
    finals: int = 0
    bare_finals: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Formats the summary for the terminal."""
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        return [
            self._read_line(f"{self.conversations:,} conversations or documents", "rows"),
            f"{self.tokens:,} tokens, {self.trained_tokens:,} trained ({share:.0%}): "
            + listed(self.channel_tokens),
            self._length_line(),
            *self._fate_lines(),
            *self._warnings(),
        ]

    def _warnings(self) -> list[str]:
        bare = {effort: count for effort, count in self.bare_finals.items() if effort != "low"}
        if not bare:
            return []
        count = sum(bare.values())
        efforts = ", ".join(f"{number:,} at effort {effort}" for effort, number in bare.items())
        return [
            f"warning: {count:,} of {self.finals:,} trained finals have no analysis ({efforts}); "
            "the model will unlearn to think at that effort.",
            "  choices: data.without_analysis=low says effort low for such rows; =drop leaves them "
            "out; or mix in rows with analysis (data.sources)",
        ]


def summarise(counts: Counts, lengths: np.ndarray) -> DataSummary:
    """Summarises rendered rows before they are split and mixed.

    Args:
        counts: sums over all sources.
        lengths: tokens of every row kept.
    """
    names = [*CHANNELS, *sorted(counts.trained.keys() - set(CHANNELS))]
    shown = [name for name in names if name in CHANNELS or counts.trained[name]]
    return DataSummary(
        conversations=counts.formats.total(),
        formats=dict(counts.formats.most_common()),
        rows=counts.rows,
        tokens=counts.tokens,
        trained_tokens=counts.trained.total(),
        channel_tokens={name: counts.trained[name] for name in shown},
        dropped=dict(counts.dropped),
        changed=dict(counts.changed),
        notes=dict(counts.notes.most_common()),
        columns=dict(counts.columns),
        bad=dict(counts.bad.most_common()),
        first_bad=dict(counts.first_bad),
        finals=counts.finals,
        bare_finals=dict(counts.bare_finals),
        lengths=percentiles(lengths),
    )


def percentiles(lengths: np.ndarray | Sequence[int]) -> dict[str, int]:
    """Lengths that so many percent of the rows do not exceed; empty when there is no row."""
    if len(lengths) == 0:
        return {}
    values = np.percentile(lengths, PERCENTILES, method="higher")
    names = [f"{p}%" if p < 100 else "longest" for p in PERCENTILES]
    return {name: int(value) for name, value in zip(names, values, strict=True)}
