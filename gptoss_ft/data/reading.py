"""One row of any source to an example: its columns, then its format, then what stands beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.assemble.parts import AssembledRow
from gptoss_ft.data.formats import PARSERS
from gptoss_ft.data.formats.common import RowState
from gptoss_ft.data.formats.dialects.declared_text import with_tools
from gptoss_ft.data.formats.media import check_media
from gptoss_ft.data.layouts.beside import with_beside
from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.layouts.rows import canonical_row
from gptoss_ft.harmony.messages import Example

AS_FOUND = Reading()


class ReadRow(NamedTuple):
    """One row, read.

    Attributes:
        format: the one that it was read in.
        example: what it says.
        notes: what the user is told of it, counted; see `RowState.notes`.
        columns: how each of its columns was read.
    """

    format: str
    example: Example
    notes: Counter[str]
    columns: tuple[str, ...]


def read_row(
    row: Mapping[str, Any], where: str, reading: Reading = AS_FOUND, *, needs_answer: bool = True
) -> ReadRow:
    """Reads one row.

    Args:
        row: the decoded JSON object, or the columns of a table; null counts as absent.
        where: `file:line`, put before the field in every problem.
        reading: what the user says about its format and columns.
        needs_answer: refuse a conversation that the assistant does not answer; turn it off for
            prompts.

    Raises:
        DataError: with every problem of the row, or because it fits no format.
    """
    state = RowState(where, reading.ignore, said_format=bool(reading.format))
    if isinstance(row, AssembledRow):
        state.notes.update(row.notes)
        state.problems += row.problems
        state.check()
    row = check_media(row, state)
    state.check()
    name, canonical, lines = canonical_row(row, reading, state)
    if not name:
        state.check()
    canonical = with_tools(canonical, row, state)
    example = PARSERS[name](canonical, state, needs_answer=needs_answer)
    if "system" in canonical or "thinking" in canonical:
        example = with_beside(example, canonical.get("system"), canonical.get("thinking"), state)
        state.check()
    return ReadRow(name, example, state.notes, lines)


def parse(
    row: Mapping[str, Any], where: str, format_name: str = "", *, needs_answer: bool = True
) -> Example:
    """Reads one row to its example, in the named format; see `read_row`."""
    return read_row(row, where, Reading(format_name), needs_answer=needs_answer).example
