"""Rows that are both held out and trained on: counted, left out of training, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gptoss_ft.data.mix import Mix
from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import DataError, Problem

WITHHELD = "rows to train on that are also held out (data.duplicates=drop)"


def overlap(digests: np.ndarray, chosen: Mix) -> int:
    """Counts the rows held out that are also trained on.

    Args:
        digests: a number for each row there is, equal for examples that say the same.
        chosen: the rows of both sides.
    """
    return int(_among(digests[chosen.validation], digests[chosen.train]).sum())


def _among(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Finds the values that are among the chosen ones, bool; by a hash table, as both may be
    many.
    """
    found = pc.is_in(pa.array(values), value_set=pa.array(chosen))
    return found.to_numpy(zero_copy_only=False)


def without_held_out(digests: np.ndarray, chosen: Mix) -> Mix:
    """Leaves out of training what is held out, and counts it; arguments as in `overlap`."""
    both = _among(digests[chosen.train], digests[chosen.validation])
    withheld = {WITHHELD: int(both.sum())} if both.any() else {}
    return replace(chosen, train=chosen.train[~both], withheld=withheld)


def check_overlap(digests: np.ndarray, chosen: Mix, options: DataOptions) -> None:
    """Refuses validation rows that are all trained on; arguments as in `overlap`.

    Raises:
        DataError: with the settings that hold out others.
    """
    held_out = chosen.validation
    if not len(held_out) or overlap(digests, chosen) < len(held_out):
        return
    trained = digests[chosen.train]
    some_are_left = not _among(trained, digests[held_out]).all()
    if options.duplicates == "drop" and some_are_left:
        return
    key = "data.validation_path" if options.validation_path else "data.validation"
    mend = f"say data.validation_split=0.05 in place of {key}"
    if some_are_left:
        mend = f"say data.duplicates=drop, which leaves them out of training; or {mend}"
    source = options.validation_source
    what = "every validation row is also trained on, so the validation loss would say nothing"
    found = f"{len(held_out)} rows of {source.path if source else ''}"
    raise DataError(Problem(what, key, found, mend))
