"""What was read for preference tuning, what is compared, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gptoss_ft.data.summary import Counts, percentiles


@dataclass
class PairSummary:
    """Numbers of pairs or rated completions; tokens count training and validation rows together.

    Attributes:
        examples: pairs or rated completions read.
        formats: the same by format.
        noun: what a row is, in the plural.
        rows: rows kept, before weights and packing.
        train_rows, validation_rows: rows of the two datasets, after weights and before packing.
        packed_rows, packed_validation_rows: the same after packing, 0 without it.
        packed_share: share of the packed training rows' `max_length` that is tokens.
        good: of rated rows to train on, those with a good completion; None for pairs.
        tokens: tokens in the rows kept, prompts once.
        compared: tokens with a weight above 0, by side and channel.
        dropped, changed: rows left out or changed, by what happened to them.
        duplicates: examples that say what an earlier one said.
        lengths: percentiles of the row lengths in tokens.
        cached: whether the rows were rendered before.
    """

    examples: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    noun: str = "pairs"
    rows: int = 0
    train_rows: int = 0
    validation_rows: int = 0
    packed_rows: int = 0
    packed_validation_rows: int = 0
    packed_share: float = 0.0
    good: int | None = None
    tokens: int = 0
    compared: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    cached: bool = False

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        formats = ", ".join(f"{name} {count:,}" for name, count in self.formats.items())
        lines = [
            f"{self.examples:,} examples ({formats}), {self.rows:,} {self.noun}: "
            f"{self.train_rows:,} to train on, {self.validation_rows:,} held out"
            + (" (rendered before)" if self.cached else ""),
            f"{self.tokens:,} tokens, of which are compared: "
            + ", ".join(f"{name} {count:,}" for name, count in self.compared.items()),
            "row lengths in tokens: "
            + ", ".join(f"{name} {length:,}" for name, length in self.lengths.items()),
        ]
        if self.good is not None:
            bad = self.train_rows - self.good
            lines.append(f"to train on: {self.good:,} good completions, {bad:,} bad ones")
        if self.packed_rows:
            held_out = self.packed_validation_rows
            lines.append(
                f"packed into {self.packed_rows:,} rows to train on, {self.packed_share:.1%} full"
                + (f", and {held_out:,} held out" if held_out else "")
            )
        lines += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        lines += [f"changed {count:,}: {what}" for what, count in self.changed.items()]
        if self.duplicates:
            lines.append(f"{self.duplicates:,} duplicates (data.duplicates=drop leaves them out)")
        return lines


def summarise_pairs(counts: Counts, lengths: np.ndarray, noun: str) -> PairSummary:
    """The summary of rendered rows, before they are split and mixed.

    Args:
        counts: sums over all sources.
        lengths: tokens of every row kept.
        noun: what a row is, in the plural.
    """
    return PairSummary(
        examples=counts.formats.total(),
        formats=dict(counts.formats.most_common()),
        noun=noun,
        rows=counts.rows,
        tokens=counts.tokens,
        compared=dict(sorted(counts.trained.items())),
        dropped=dict(counts.dropped),
        changed=dict(counts.changed),
        lengths=percentiles(lengths),
    )
