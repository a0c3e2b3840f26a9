"""Selection of rendered rows: duplicates, held-out rows, weights of sources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.split import held_out_examples


@dataclass(frozen=True)
class Table:
    """Facts about the rows of all sources, one entry per row, sources one after the other.

    Attributes:
        source: index of the row's source.
        example: number of the row's example, counted over all sources.
        digest: equal for examples that say the same.
        group: equal for examples that must not be on both sides of a split.
    """

    source: np.ndarray
    example: np.ndarray
    digest: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class Mix:
    """Row indices, repeated where a source counts more than once.

    Attributes:
        train: int64 `[rows]`.
        validation: int64 `[rows]`; empty when nothing is held out.
        duplicates: examples that say what an earlier one said.
        withheld: rows to train on that were left out because they are held out, by reason.
    """

    train: np.ndarray
    validation: np.ndarray
    duplicates: int
    withheld: Mapping[str, int] = field(default_factory=dict)


def mix(table: Table, options: DataOptions) -> Mix:
    """Chooses rows; whole examples go to one side.

    Raises:
        DataError: too few different examples to hold some out.
    """
    kept, duplicates = _unique(table, drop=options.duplicates == "drop")
    generator = np.random.default_rng(options.seed)
    examples, first_row = np.unique(table.example[kept], return_index=True)
    held_out = examples[held_out_examples(table.group[kept][first_row], options)]
    is_held_out = _members(table.example[kept], held_out)
    trained = kept[~is_held_out]
    parts = [
        _weighted(table, trained[table.source[trained] == index], source.weight, generator)
        for index, source in enumerate(options.training_sources)
    ]
    return Mix(np.concatenate(parts), kept[is_held_out], duplicates)


def _unique(table: Table, drop: bool) -> tuple[np.ndarray, int]:
    """Returns the indices of the rows to keep, and the number of examples that repeat an earlier
    one.
    """
    examples, first_row = np.unique(table.example, return_index=True)
    _, first = np.unique(table.digest[first_row], return_index=True)
    duplicates = len(examples) - len(first)
    rows = np.arange(len(table.example))
    return (rows[_members(table.example, examples[first])] if drop else rows), duplicates


def _members(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns whether each value is among the chosen ones, bool; by a table, as both may be
    many.
    """
    if not len(chosen):
        return np.zeros(len(values), dtype=bool)
    return np.isin(values, chosen, kind="table")


def _weighted(
    table: Table, rows: np.ndarray, weight: float, generator: np.random.Generator
) -> np.ndarray:
    """Repeats the rows of a source `floor(weight)` times, and a drawn share of them once more."""
    whole = math.floor(weight)
    if weight == whole:
        return np.tile(rows, whole)
    examples = np.unique(table.example[rows])
    extra = generator.choice(examples, round(len(examples) * (weight - whole)), replace=False)
    return np.concatenate([np.tile(rows, whole), rows[_members(table.example[rows], extra)]])
