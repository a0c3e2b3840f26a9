"""A row with whatever columns it has, as a row with the columns of one format.

Every column with content is read, carries nothing to train, is ignored because the user says so, or
is refused: nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded, is_empty
from gptoss_ft.data.formats.harmless import LONG, fold, is_harmless, weight_of
from gptoss_ft.data.formats.ratings import OUTCOMES, read_label
from gptoss_ft.data.layouts import names, ratings
from gptoss_ft.data.layouts.advice import refuse_doubt, refuse_unknown, refuse_unread
from gptoss_ft.data.layouts.columns import paths_of, value_of
from gptoss_ft.data.layouts.layout import Layout
from gptoss_ft.data.layouts.nested import check_nested
from gptoss_ft.data.layouts.plan import (
    LIST_MARK,
    NEEDED,
    Plan,
    Reading,
    plan_of,
)
from gptoss_ft.data.layouts.siblings import check_siblings
from gptoss_ft.data.layouts.table import LAYOUTS
from gptoss_ft.data.layouts.template_settings import COLUMN, read_template_settings

# Formats that a row may seem to have which is laid out in a way of its own.
UNSETTLED = ("", "responses")
# Formats that with a label from `data.columns` are rated answers.
RATED = ("chat", "sharegpt", "alpaca")
# Of these, several may be given as long as they say the same.
MERGED = ("system", "thinking", "tools")
# A text shorter than this stands in many others by chance.
COPY_LENGTH = 20
# What `reasoning` holds as an object: settings of the Responses API.
REASONING_KEYS = frozenset(("effort", "summary", "generate_summary", "enabled", "max_tokens"))
# Columns that these names are expected to be prose in, and only the question or answer once more.
COPIES = frozenset((*names.BESIDE_CONVERSATION, *names.CHECKED_AGAINST, "text"))


class CanonicalRow(NamedTuple):
    """A row in the columns of a format.

    Attributes:
        format: its name.
        row: the columns, under the format's names.
        lines: how each column was read, for the user.
    """

    format: str
    row: Mapping[str, Any]
    lines: tuple[str, ...]


def canonical_row(row: Mapping[str, Any], reading: Reading, state: RowState) -> CanonicalRow:
    """Rewrites a row; problems go into the state.

    Args:
        row: as it was read from the file; null counts as absent.
        reading: what the user says about the source.
        state: of the row.
    """
    plan = plan_of(_signature(row), reading)
    if reading.columns:
        check_siblings(row, reading.columns, state)
        _note_absent(row, reading.columns, state)
    left = [name for name in plan.rest if not is_empty(row[name])]
    unsettled = _is_unsettled(row, plan)
    if plan.simple and not (left or unsettled):
        state.names.update(plan.renamed)
        read = {slot: row[source] for slot, source in plan.moves}
        if plan.quiet:
            _note_weights(plan.quiet, row, state)
        return CanonicalRow(plan.format, read, plan.lines)
    if not reading.columns and (left or unsettled):
        known = _without(row, reading.ignore)
        layout = next((one for one in LAYOUTS if one.fits(known)), None)
        if layout is not None:
            return _laid_out(layout, known, reading, state)
    return _planned(row, plan, left, state)


def _is_unsettled(row: Mapping[str, Any], plan: Plan) -> bool:
    """Returns whether the names of the columns do not settle what a row is."""
    if plan.format == "prompt_completion":
        values = [row.get(source) for _, source in plan.moves]
        return not all(type(value) is str and value[:1] not in ("[", "{") for value in values)
    if plan.format == "chat" and not plan.simple:
        # The answer to these messages may stand in a column as well.
        return any(slot == "thinking" for slot, _ in plan.moves)
    return plan.format in UNSETTLED


def _note_absent(
    row: Mapping[str, Any], columns: tuple[tuple[str, str], ...], state: RowState
) -> None:
    """Notes columns that the user names and that the row does not have."""
    for name in dict.fromkeys(path for _, source in columns for path in paths_of(source)):
        if name not in row and name.split(".")[0] not in row:
            state.note(f"rows without the column `{name}`, which data.columns names")


def _planned(row: Mapping[str, Any], plan: Plan, left: list[str], state: RowState) -> CanonicalRow:
    plan = _without_switches(plan, row, state)
    read = _moved(row, plan, state)
    _note_weights(plan.quiet, row, state)
    if not plan.format:
        refuse = refuse_doubt if plan.doubts else refuse_unknown
        refuse(plan, row, state)
        return CanonicalRow("", read, plan.lines)
    lines = plan.lines
    if NEEDED[plan.format][0] not in read and plan.format != "responses":
        state.unread = tuple(left)  # the parser will name what may be the missing one
    elif left:
        lines += tuple(_settle_rest(left, row, read, plan, state))
    if plan.format in RATED and read.get("label") is not None:
        return CanonicalRow("kto", ratings.convert(read, state), lines)
    return CanonicalRow(plan.format, read, lines)


def _note_weights(quiet: Iterable[str], row: Mapping[str, Any], state: RowState) -> None:
    """Notes columns that hold more than their names promise, and are not read all the same."""
    for name in quiet:
        value = row[name]
        # Short texts and numbers are what most of them hold.
        if isinstance(value, bool | int | float) or fold(name) in COPIES:
            continue
        held = weight_of(value if isinstance(value, str) and len(value) > LONG else decoded(value))
        if held:
            state.note(f"column `{name}` not read: it holds {held}")


def _without(row: Mapping[str, Any], ignored: frozenset[str]) -> Mapping[str, Any]:
    return {key: value for key, value in row.items() if key not in ignored} if ignored else row


def _laid_out(
    layout: Layout, row: Mapping[str, Any], reading: Reading, state: RowState
) -> CanonicalRow:
    """Reads a row that is laid out as an export or a pair, and then as its format."""
    reads = layout.reads(row)
    others = [name for name in row if name not in reads and not is_empty(row[name])]
    left = [name for name in others if not is_harmless(name)]
    converted = layout.convert(row, state)
    if left:
        refuse_unread(left, plan_of((), Reading()), row, state)
    state.check()
    plan = plan_of(_signature(converted), Reading(reading.format))
    _note_weights([name for name in others if name not in left], row, state)
    lines = [
        f"{name}: not read" if name in layout.passes else f"{name}: read as {layout.name}"
        for name in row
        if name in reads and not is_empty(row[name])
    ]
    lines += [f"{name}: not read" for name in others if name not in left]
    read = _planned(converted, plan, [*plan.rest], state)
    return read._replace(lines=tuple(lines))


def _signature(row: Mapping[str, Any]) -> tuple[str, ...]:
    names_ = [name for name, value in row.items() if value is not None]
    for name in ("input", "output"):
        if name in row and _holds_objects(row[name]):
            names_.append(name + LIST_MARK)
    return tuple(names_)


def _holds_objects(value: Any) -> bool:
    """Returns whether a value is a list; as a text only one of objects, others are an answer."""
    if isinstance(value, str):
        stored = decoded(value)
        return isinstance(stored, list) and any(isinstance(item, Mapping) for item in stored)
    return isinstance(value, list)


def _without_switches(plan: Plan, row: Mapping[str, Any], state: RowState) -> Plan:
    """Leaves out columns such as `reasoning: on`: a mode, or an effort, and no thinking."""
    modes = [source for slot, source in plan.moves if slot == "thinking" and _is_mode(row, source)]
    if not modes:
        return plan
    moves = tuple(move for move in plan.moves if move[1] not in modes)
    for name in modes:
        if isinstance(row[name], OBJECTS):
            check_nested(row[name], REASONING_KEYS, name, state)
    efforts = tuple(("reasoning", name) for name in modes if isinstance(row[name], Mapping))
    lines = [line for line in plan.lines if line.split(" →")[0] not in modes]
    lines += [
        f"{name}: a mode, {'its effort is read' if efforts else 'not read'}" for name in modes
    ]
    return plan._replace(moves=moves + efforts, lines=tuple(lines))


def _is_mode(row: Mapping[str, Any], source: str) -> bool:
    value = row.get(source)
    is_word = isinstance(value, str) and value.strip().lower() in names.SWITCHES
    return is_word or isinstance(value, bool | Mapping)


def _moved(row: Mapping[str, Any], plan: Plan, state: RowState) -> dict[str, Any]:
    """Reads the columns that the plan names under the names of the format."""
    read: dict[str, Any] = {}
    for slot, source in plan.moves:
        value = value_of(source, row)
        if slot in MERGED:
            value = _merged(slot, read.get(slot), value, source, state)
        if value is not None:
            read[slot] = value
            if slot != source:
                state.names[slot] = source
    if COLUMN in read:
        for slot, source, value in read_template_settings(read[COLUMN], state):
            read[slot] = _merged(slot, read.get(slot), value, source, state)
            state.names.setdefault(slot, source)
    if plan.format == "alpaca":
        for slot, old in (("instruction", "prompt"), ("output", "completion")):
            if old in read:
                read[slot] = read.pop(old)
                state.names[slot] = state.names.pop(old, old)
    for slot in ("prompt", "completion"):
        if isinstance(read.get(slot), Mapping) and "role" in read[slot]:
            read[slot] = [read[slot]]
    return read


def _merged(slot: str, before: Any, value: Any, source: str, state: RowState) -> Any:
    """Joins two columns that are read as one: they have to say the same."""
    if is_empty(value) or before == value:
        return before
    if before is None:
        return value
    other = state.names.get(slot, slot)
    what = f"`{other}` and `{source}` are both given and differ"
    mend = f"say 'data.ignore=[{source}]' or 'data.ignore=[{other}]'"
    state.refuse(what, source, value, mend)
    return before


def _settle_rest(
    left: list[str], row: Mapping[str, Any], read: Mapping[str, Any], plan: Plan, state: RowState
) -> Iterator[str]:
    """Says what becomes of columns that the plan does not read, and refuses what has a meaning."""
    refused = []
    texts = None
    for name in left:
        if texts is None:
            texts = frozenset(_texts(read))
        if fold(name) in OUTCOMES and read_label(row[name]) is True:
            yield f"{name}: not read, it says that all went well"
        elif _is_copy(row[name], texts):
            yield f"{name}: not read, the same stands in the conversation"
        else:
            refused.append(name)
    if refused:
        refuse_unread(refused, plan, row, state)


def _is_copy(value: Any, texts: frozenset[str]) -> bool:
    """Returns whether a text stands among others: whole, or as a part if it is not short."""
    if not isinstance(value, str):
        return False
    text = value.strip()
    return text in texts or (len(text) >= COPY_LENGTH and any(text in other for other in texts))


def _texts(value: Any) -> Iterator[str]:
    value = decoded(value)
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
