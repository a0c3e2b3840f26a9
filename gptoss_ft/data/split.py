"""Draw of the examples to hold out: by what they hold, so that equal ones stay on one side."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import DataError, Problem


def held_out_examples(groups: np.ndarray, options: DataOptions) -> np.ndarray:
    """Draws the examples to validate on; at least one stays on either side.

    Whole groups are drawn, in an order that follows from the seed and from what they hold. So rows
    that are added leave the others where they are, but for the few at the border.

    Args:
        groups: a number for each example, equal for those that must not be on both sides.
        options: how many to draw.

    Returns:
        bool for each example.

    Raises:
        DataError: there is no second group.
    """
    if not (options.validation_count or options.validation_split):
        return np.zeros(len(groups), dtype=bool)
    wanted = options.validation_count or round(len(groups) * options.validation_split)
    # By a hash table, which is several times as fast as sorting them.
    encoded = pa.array(groups).dictionary_encode()
    keys, group = encoded.dictionary.to_numpy(), encoded.indices.to_numpy()
    sizes = np.bincount(group)
    if len(keys) < 2 or options.validation_count >= len(groups):
        raise DataError(_too_few(len(groups), len(keys), wanted, options))
    order = np.argsort(shuffling(keys, options.seed), kind="stable")
    drawn = np.zeros(len(keys), dtype=bool)
    drawn[order[_taken(sizes[order], min(max(1, wanted), len(groups) - 1))]] = True
    return drawn[group]


def _taken(sizes: np.ndarray, wanted: int) -> np.ndarray:
    """Chooses groups in their order, as many as hold `wanted` examples in all, or somewhat fewer.

    Groups that are larger than that are passed over, and what the last one would exceed is made up
    of groups of one. If every group is larger, the smallest is chosen, though that is more.
    """
    small = np.flatnonzero(sizes <= wanted)
    if not len(small):
        return np.array([np.argmin(sizes)])
    total = np.cumsum(sizes[small])
    count = int(np.searchsorted(total, wanted, side="right"))
    rest = wanted - (int(total[count - 1]) if count else 0)
    single = small[count:][sizes[small[count:]] == 1]
    return np.concatenate([small[:count], single[:rest]])


def shuffling(keys: np.ndarray, seed: int) -> np.ndarray:
    """Returns a number for each key, by which they are sorted in an order of this seed: the
    finaliser of SplitMix64, which changes half of the bits when one bit of a key changes.
    """
    state = keys.astype(np.uint64) ^ _mixed(np.array([seed % 2**64], dtype=np.uint64))
    return _mixed(state)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _too_few(examples: int, groups: int, wanted: int, options: DataOptions) -> Problem:
    name = "validation_count" if options.validation_count else "validation_split"
    different = f", {groups} different" if groups < examples else ""
    return Problem(
        "too few conversations to hold some out",
        f"data.{name}",
        f"{examples} conversations{different}, {wanted} to hold out",
        f"add conversations, or lower data.{name}",
    )
