"""Ways of laying out rows that no format reads as they stand: exports of products, rated pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import RowState


class Layout(NamedTuple):
    """One way of laying out rows.

    Attributes:
        name: as the user sees it.
        fits: tells cheaply, by names and shape, whether a row is laid out so.
        convert: writes the row in the columns of a format; problems go into the state.
        reads: names the columns that `convert` knows.
        passes: names those of them that say nothing to train, and are not read.
    """

    name: str
    fits: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], RowState], dict[str, Any]]
    reads: Callable[[Mapping[str, Any]], Collection[str]]
    passes: frozenset[str] = frozenset()
