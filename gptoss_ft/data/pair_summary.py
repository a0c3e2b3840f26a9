"""Summary of preference data: what was read, is compared, and was left out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gptoss_ft.data.summary import Counts, RowSummary, listed, percentiles


@dataclass
class PairSummary(RowSummary):
    """Numbers of pairs or rated completions.

    Attributes:
        examples: pairs or rated completions read.
        noun: what a row is, in the plural.
        good: of rated rows to train on, those with a good completion; None for pairs.
        compared: tokens with a weight above 0, by side and channel.
    """

    examples: int = 0
    noun: str = "pairs"
    good: int | None = None
    compared: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Formats the summary for the terminal."""
        lines = [
            self._read_line(f"{self.examples:,} examples", self.noun),
            f"{self.tokens:,} tokens, of which are compared: {listed(self.compared)}",
            self._length_line(),
        ]
        if self.good is not None:
            bad = self.train_rows - self.good
            lines.append(f"to train on: {self.good:,} good completions, {bad:,} bad ones")
        return [*lines, *self._fate_lines()]


def summarise_pairs(counts: Counts, lengths: np.ndarray, noun: str) -> PairSummary:
    """Summarises rendered rows before they are split and mixed.

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
        notes=dict(counts.notes.most_common()),
        columns=dict(counts.columns),
        bad=dict(counts.bad.most_common()),
        first_bad=dict(counts.first_bad),
        lengths=percentiles(lengths),
    )
