"""Selection of rendered rows: duplicates, held-out rows, weights of sources."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import DataError, Problem


@dataclass(frozen=True)
class Table:
    """Facts about the rows of all sources, one entry per row, sources one after the other.

    Attributes:
        source: index of the row's source.
        example: number of the row's example, counted over all sources.
        digest: equal for examples that say the same.
    """

    source: np.ndarray
    example: np.ndarray
    digest: np.ndarray


@dataclass(frozen=True)
class Mix:
    """Row indices, repeated where a source counts more than once.

    Attributes:
        train: int64 `[rows]`.
        validation: int64 `[rows]`; empty when nothing is held out.
        duplicates: examples that say what an earlier one said.
    """

    train: np.ndarray
    validation: np.ndarray
    duplicates: int


def mix(table: Table, options: DataOptions) -> Mix:
    """Chooses rows; whole examples go to one side.

    Raises:
        DataError: too few examples to hold some out.
    """
    kept, duplicates = _unique(table, drop=options.duplicates == "drop")
    generator = np.random.default_rng(options.seed)
    held_out = _held_out(np.unique(table.example[kept]), options, generator)
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


def _held_out(
    examples: np.ndarray, options: DataOptions, generator: np.random.Generator
) -> np.ndarray:
    """Draws the examples to validate on; at least one stays on either side."""
    wanted = options.validation_count or round(len(examples) * options.validation_split)
    if not (options.validation_count or options.validation_split):
        return examples[:0]
    if len(examples) < 2 or options.validation_count >= len(examples):
        name = "validation_count" if options.validation_count else "validation_split"
        raise DataError(
            Problem(
                "too few conversations to hold some out",
                f"data.{name}",
                f"{len(examples)} conversations, {wanted} to hold out",
                f"add conversations, or lower data.{name}",
            )
        )
    return generator.choice(examples, min(max(1, wanted), len(examples) - 1), replace=False)


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
