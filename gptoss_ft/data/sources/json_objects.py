"""One JSON object in a file: a row, or lists of rows under names, or a table's columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_ft.data.formats.common import is_empty, quote
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.data.sources.file_types import stem_of
from gptoss_ft.data.sources.splits import check_split, choose_splits, meaning, others_note
from gptoss_ft.errors import DataError, Problem

Row = tuple[int, Mapping[str, Any]]

# Names that lists of rows have in exports and in the files of other trainers.
_LIST_NAMES = """
    data rows examples dataset records instances samples entries items results list documents runs
    traces
"""
_LISTS = frozenset(_LIST_NAMES.split())
# Lists of this name may be those of one conversation's turns; of rows, which hold lists of turns.
_CONVERSATIONS = frozenset(("conversations", "chats", "dialogs", "dialogues", "threads"))
# What may stand beside such a list: it says what the file is, not what its rows are.
_ABOUT = """
    version name description type total count has_more first_id last_id page limit next next_page
    next_cursor cursor offset schema features num_rows_total num_rows_per_page partial size
    success error errors truncated object created_at updated_at exported_at date author license
    source url homepage citation metadata meta info language dataset_name
"""
_BESIDE = frozenset(_ABOUT.split())
# One of them is in every message, whatever product wrote it, and in no row.
_AUTHOR = frozenset(("role", "from", "author", "speaker", "sender"))
# A message that says of which conversation it is may be a row; see `assemble.turns`.
_OF_CONVERSATION = frozenset(("conversation_id", "thread_id", "session_id", "chat_id"))
_LOOKED_AT = 8


def object_rows(
    value: Mapping[str, Any], file: Path, split: str
) -> tuple[Iterable[Row], list[str]]:
    """Finds the rows in the only object of a file.

    Args:
        value: the object.
        file: for problems.
        split: which of its lists to read; empty for the one to train on.

    Returns:
        numbered rows, and notes on what is not read.

    Raises:
        DataError: it holds several lists, or columns in place of rows.
    """
    lists = [name for name, item in value.items() if _is_rows(item)]
    if _is_container(value, lists, split):
        return _listed_rows(value, lists, file, split)
    if _is_pandas_split(value):
        rows = [dict(zip(value["columns"], cells, strict=True)) for cells in value["data"]]
        return enumerate(rows, start=1), []
    if all(name.isdigit() and isinstance(row, dict) for name, row in value.items()):
        return enumerate(value.values(), start=1), []  # pandas with orient="index"
    if _is_pandas_columns(value):
        keys = next(iter(value.values()))
        rows = [{name: column[key] for name, column in value.items()} for key in keys]
        return enumerate(rows, start=1), []
    if _is_columns(value):
        code = "import json; d = json.load(open(0)); "
        code += "[print(json.dumps(dict(zip(d, row)))) for row in zip(*d.values())]"
        turned = file.with_suffix(".rows.jsonl")
        mend = f"python -c {shlex.quote(code)} < {shlex.quote(str(file))} > "
        what = "the file holds columns, not rows"
        raise DataError(
            Problem(what, str(file), quote(list(value)), mend + shlex.quote(str(turned)))
        )
    check_split(split, stem_of(file), str(file))
    return [(1, value)], []


def are_messages(items: Sequence[Any]) -> bool:
    """Returns whether a list is that of a conversation's messages."""
    return bool(items) and all(
        isinstance(item, dict) and not _AUTHOR.isdisjoint(item) for item in items
    )


def _is_rows(item: Any) -> bool:
    """Returns whether a value is a list of objects that are not messages."""
    if not (isinstance(item, list) and item):
        return False
    some = item[:_LOOKED_AT]
    return all(isinstance(row, dict) for row in some) and not any(
        _AUTHOR.intersection(row) and _OF_CONVERSATION.isdisjoint(row) for row in some
    )


def _is_container(value: Mapping[str, Any], lists: Sequence[str], split: str) -> bool:
    if split and split in lists:
        return True
    if not lists or not all(_names_rows(name, value[name]) for name in lists):
        return False
    return not any(_tells_of_the_rows(name, value[name]) for name in value if name not in lists)


def _names_rows(name: str, items: Sequence[Mapping[str, Any]]) -> bool:
    if fold(name) in _CONVERSATIONS:
        return all(any(isinstance(part, list) for part in row.values()) for row in items[:1])
    return fold(name) in _LISTS or bool(meaning(name))


def _tells_of_the_rows(name: str, item: Any) -> bool:
    known = fold(name) in _BESIDE or meaning(name)
    return not (known or is_empty(item))


def _listed_rows(
    value: Mapping[str, Any], lists: Sequence[str], file: Path, split: str
) -> tuple[Iterable[Row], list[str]]:
    if len(lists) == 1 and not split:
        # A list called `test` is not trained on unless it is asked for.
        chosen = choose_splits(lists, "", str(file)) if meaning(lists[0]) else [lists[0]]
    else:
        chosen = choose_splits(lists, split, str(file))
    beside = [name for name in value if name not in lists and not is_empty(value[name])]
    notes = others_note(lists, chosen)
    if beside:
        notes.append(f"keys of {file.name} beside its rows not read: {', '.join(beside)}")
    rows = [row for name in chosen for row in value[name]]
    return enumerate(map(_served, rows), start=1), notes


def _served(row: Any) -> Any:
    """Unwraps a row as the Hub's dataset server wraps it."""
    if isinstance(row, dict) and row.keys() >= {"row_idx", "row", "truncated_cells"}:
        return row["row"] if not row["truncated_cells"] else row
    return row


def _is_pandas_split(value: Mapping[str, Any]) -> bool:
    """Returns whether pandas wrote the object with `orient="split"`."""
    names = value.get("columns")
    return (
        value.keys() <= {"columns", "index", "data"}
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(value.get("data"), list)
        and all(isinstance(row, list) and len(row) == len(names) for row in value["data"])
    )


def _is_pandas_columns(value: Mapping[str, Any]) -> bool:
    """Returns whether pandas wrote the object with `orient="columns"`, its default."""
    columns = list(value.values())
    if not columns or not all(isinstance(column, dict) for column in columns):
        return False
    keys = columns[0].keys()
    return bool(keys) and all(
        key.isdigit() and all(key in column for column in columns) for key in keys
    )


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Returns whether the object holds equally long columns of texts."""
    columns = list(value.values())
    return (
        len(columns) > 1
        and all(isinstance(column, list) and column for column in columns)
        and len({len(column) for column in columns}) == 1
        and not any(isinstance(cell, dict) for column in columns for cell in column)
        and any(isinstance(cell, str) for column in columns for cell in column)
    )
