"""The parts of a column that a path of `data.columns` passes by.

A column that a path begins with is read in part. The rest of it is treated as columns are: it
carries nothing to train, is ignored because the user says so, or is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded, note_harmless, shell_list
from gptoss_ft.data.formats.harmless import is_harmless
from gptoss_ft.data.layouts.columns import paths_of
from gptoss_ft.data.layouts.nested import is_hollow

Steps = tuple[str, ...]


def check_siblings(
    row: Mapping[str, Any], columns: tuple[tuple[str, str], ...], state: RowState
) -> None:
    """Refuses what `data.columns` passes by within the columns that it reads a part of.

    Args:
        row: as it was read from the file.
        columns: what is read, and the column, path or template it comes from.
        state: of the row.
    """
    for head, paths in _by_column(columns):
        if head in row and not any(".".join((head, *steps)) in row for steps in paths if steps):
            _check(row[head], head, paths, state)


@lru_cache(maxsize=256)
def _by_column(
    columns: tuple[tuple[str, str], ...],
) -> tuple[tuple[str, frozenset[Steps]], ...]:
    """Returns the columns that paths begin with, and how the paths go on."""
    found: dict[str, set[Steps]] = {}
    for _, source in columns:
        for path in paths_of(source):
            head, *steps = path.split(".")
            found.setdefault(head, set()).add(tuple(steps))
    return tuple((head, frozenset(paths)) for head, paths in found.items() if () not in paths)


def _check(raw: Any, place: str, paths: Collection[Steps], state: RowState) -> None:
    """Looks at one object or list that paths go through."""
    value = decoded(raw)
    if () in paths or place in state.ignore:
        return
    if isinstance(value, list):
        read = {_index(steps[0], len(value)) for steps in paths}
        left = [item for i, item in enumerate(value) if i not in read and not is_hollow(item)]
        _settle("", left[:1], f"the other elements of `{place}`", place, state)
        items = [(i, str(i), item) for i, item in enumerate(value) if i in read]
    elif isinstance(value, OBJECTS):
        read_names = {steps[0] for steps in paths}
        for name, item in value.items():
            if name not in read_names and not is_hollow(item):
                what = f"the key `{name}` of `{place}`"
                _settle(str(name), [item], what, f"{place}.{name}", state)
        items = [(name, str(name), item) for name, item in value.items() if name in read_names]
    else:
        return
    for key, name, item in items:
        inner = [steps[1:] for steps in paths if _leads(steps[0], key, value)]
        _check(item, f"{place}.{name}", inner, state)


def _index(step: str, length: int) -> int | None:
    if not step.lstrip("-").isdecimal():
        return None
    place = int(step)
    return place + length if place < 0 else place


def _leads(step: str, key: Any, value: Any) -> bool:
    return (_index(step, len(value)) if isinstance(value, list) else step) == key


def _settle(name: str, left: list[Any], what: str, place: str, state: RowState) -> None:
    """Notes or refuses something that is not read."""
    if not left:
        return
    if place in state.ignore:
        state.note(f"{what} ignored, as data.ignore says")
    elif name and is_harmless(name):
        note_harmless(place, left[0], "columns", state)
    else:
        mend = f"name it in data.columns, or say {shell_list('data.ignore', [place])} to "
        mend += "train without it"
        state.refuse(f"data.columns passes by {what}", place, left[0], mend)
