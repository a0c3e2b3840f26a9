"""Errors about columns, each with the very argument that reads or ignores what is named."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import RowState, decoded, is_empty, nearest, shell_list
from gptoss_ft.data.formats.dialects.authors import TEXT_KEYS, author_of
from gptoss_ft.data.formats.harmless import fold, is_harmless
from gptoss_ft.data.formats.ratings import RATING_NAMES, rating_advice
from gptoss_ft.data.formats.transcripts import transcript
from gptoss_ft.data.layouts import names
from gptoss_ft.data.layouts.asked import is_turns
from gptoss_ft.data.layouts.columns import paths_of
from gptoss_ft.data.layouts.maps import matching_maps, packaged_map
from gptoss_ft.data.layouts.plan import CONVERSATIONAL, NEEDED, Plan

# Of difflib: how near a column comes to a name that it may be a misspelling of.
MISSPELT_COLUMN = 0.85

ONE_MESSAGE = "the row is one message, and does not say of which conversation"
JOINING = (
    "add the columns `conversation_id` and `turn` (or `created_at`), which put the messages of a "
    'conversation together; or write a conversation in each row: {"messages": [...]}'
)
ANSWERING = "add the answer as `completion`, or say 'data.on_bad=drop'"


def refuse_unread(
    refused: Sequence[str], plan: Plan, row: Mapping[str, Any], state: RowState
) -> None:
    """Refuses columns with a meaning that nothing reads, with one argument for them all."""
    mend = _unread_advice(refused, plan, row)
    rated = not _better_completion(refused, dict(plan.moves), row)
    for name in refused:
        what = f"this column carries meaning that is not read: `{name}`"
        is_rating = rated and fold(name) in RATING_NAMES
        state.refuse(what, name, row[name], rating_advice(name, refused) if is_rating else mend)


def _unread_advice(refused: Sequence[str], plan: Plan, row: Mapping[str, Any]) -> str:
    read = {slot: source for slot, source in plan.moves if slot in names.CANONICAL}
    ignoring = shell_list("data.ignore", refused)
    if better := _better_completion(refused, read, row):
        others = [name for name in (*read.values(), *refused) if name not in better.values()]
        said = f"{columns_argument(better)} {shell_list('data.ignore', others)}"
        return f"say which column is the answer: {said}; or {ignoring} to keep it as it is"
    if pair := _likely_pair(refused, plan, row):
        return f"say what the columns are, if it is so: {pair}; or {ignoring}"
    if system := _likely_system(refused, plan, read):
        return f"say what the columns are, if it is so: {system}; or {ignoring} to train without"
    known = _map_advice(row, refused)
    naming = (
        f", or name what it is as in {columns_argument(read)}, which is read now" if read else ""
    )
    return f"say {f'{known}, or ' if known else ''}{ignoring} to train without it{naming}"


def _likely_pair(refused: Sequence[str], plan: Plan, row: Mapping[str, Any]) -> str:
    """Names the pair of texts that a column read as a conversation belongs to."""
    if plan.format not in CONVERSATIONAL or len(plan.moves) != 1:
        return ""
    read = plan.moves[0][1]
    others = [n for n in refused if (fold(read), fold(n)) in names.LIKELY_PAIRS]
    if not others or not isinstance(decoded(row[read]), str):
        return ""
    rest = [name for name in refused if name != others[0]]
    ignoring = f" {shell_list('data.ignore', rest)}" if rest else ""
    return columns_argument({"prompt": read, "completion": others[0]}) + ignoring


def _likely_system(refused: Sequence[str], plan: Plan, read: Mapping[str, str]) -> str:
    """Names the refused column that is likely the system message of a conversation."""
    if plan.format not in CONVERSATIONAL or "system" in read:
        return ""
    found = next((n for n in refused if fold(n) in names.LIKELY_SYSTEMS), None)
    if found is None:
        return ""
    rest = [name for name in refused if name != found]
    ignoring = f" {shell_list('data.ignore', rest)}" if rest else ""
    return columns_argument({**read, "system": found}) + ignoring


def _better_completion(
    refused: Sequence[str], read: Mapping[str, str], row: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the reading in which a refused column is the completion, if it is the longer text."""
    now = read.get("completion")
    others = [name for name in refused if fold(name) in names.COMPLETIONS]
    if now is None or not others:
        return {}
    best = max((now, *others), key=lambda name: len(str(row.get(name) or "")))
    return {} if best == now else {**read, "completion": best}


def _map_advice(row: Mapping[str, Any], open_: Sequence[str]) -> str:
    """Names the map that knows the row's columns, if there is one."""
    given = [name for name, value in row.items() if value is not None]
    for name in matching_maps(given):
        known = packaged_map(name)
        sources = (known.get("columns") or {}).values()
        read = {path.split(".")[0] for source in sources for path in paths_of(source)}
        ignored = {*(known.get("ignore") or ())}
        if {*open_} <= read | ignored and (len(read) > 1 or ignored & {*given}):
            return f"data.map={name}"
    return ""


def refuse_doubt(plan: Plan, row: Mapping[str, Any], state: RowState) -> None:
    """Refuses a row with several columns that could be the same thing."""
    if copies := _copies_of_the_rest(plan, row):
        mend = f"say that it is a copy: {shell_list('data.ignore', copies)}"
        what = f"`{copies[0]}` holds the other columns once more, or is what is asked"
        state.refuse(what, copies[0], row[copies[0]], mend)
        return
    # The first name as the question; the longest text as the answer, which others were made from.
    chosen = {slot: columns[0] for slot, columns in plan.doubts}
    for slot, columns in plan.doubts:
        if slot == "completion":
            chosen[slot] = max(columns, key=lambda name: len(str(row.get(name) or "")))
    others = [name for _, columns in plan.doubts for name in columns[1:]]
    others += [name for name in plan.rest if not is_empty(row[name]) and name not in others]
    others = [name for name in others if name not in chosen.values()]
    between = "; ".join(f"{slot}: {' or '.join(columns)}" for slot, columns in plan.doubts)
    mend = f"say which is which: {columns_argument(chosen)} {shell_list('data.ignore', others)}"
    state.refuse(
        f"the names of the columns leave a doubt ({between})",
        found=[*row],
        mend=_with_map(mend, row, others),
    )


def _copies_of_the_rest(plan: Plan, row: Mapping[str, Any]) -> list[str]:
    """Returns the column that holds both the question and the answer of the others, if any."""
    doubts = dict(plan.doubts)
    prompts, completions = doubts.get("prompt", ()), doubts.get("completion", ())
    if len(prompts) != 2 or len(completions) != 1:
        return []
    for copy, other in (prompts, prompts[::-1]):
        parts = [str(row[name]).strip() for name in (other, *completions)]
        if all(part and part in str(row[copy]) for part in parts):
            return [copy]
    return []


def refuse_unknown(plan: Plan, row: Mapping[str, Any], state: RowState) -> None:
    """Refuses a row that fits no format, and says how its columns could be named."""
    open_ = [n for n, value in row.items() if not is_empty(value) and not is_harmless(n)]
    if author_of(row) is not None and any(key in row for key in TEXT_KEYS):
        state.refuse(ONE_MESSAGE, found=[*row], mend=JOINING)
        return
    if open_ and all(fold(name) in names.PROMPTS for name in open_):
        state.refuse("the row has no answer", found=[*row], mend=ANSWERING)
        return
    chosen = _guess(open_, row)
    if not chosen:
        mend = "say what the columns are: 'data.columns={prompt: NAME, completion: NAME}'"
    else:
        others = [name for name in open_ if name not in chosen.values()]
        ignoring = f" {shell_list('data.ignore', others)}" if others else ""
        mend = f"say what the columns are, if it is so: {columns_argument(chosen)}{ignoring}"
    state.refuse("the row fits no format", found=[*row], mend=_with_map(mend, row, open_))


def _with_map(mend: str, row: Mapping[str, Any], open_: Sequence[str]) -> str:
    known = _map_advice(row, open_)
    return f"say {known}; or {mend}" if known else mend


def _guess(given: Sequence[str], row: Mapping[str, Any]) -> dict[str, str]:
    """Returns a reading of the columns to propose, never to take."""
    if misspelt := _misspelt(given):
        return misspelt
    folded = {fold(name): name for name in given}
    for first, second in names.LIKELY_PAIRS:
        if first in folded and second in folded:
            thinking = [name for name in given if fold(name) in names.THINKING]
            thought = {"thinking": thinking[0]} if len(thinking) == 1 else {}
            return {"prompt": folded[first], **thought, "completion": folded[second]}
    lists = [name for name in given if is_turns(row[name])]
    if not lists and len(given) == 1 and _is_said_in_turn(row[given[0]]):
        lists = list(given)
    if lists:
        return _guessed_turns(lists, row)
    texts = [name for name in given if isinstance(row[name], str)]
    prompts = [name for name in texts if fold(name) in names.PROMPTS]
    completions = [name for name in texts if fold(name) in names.COMPLETIONS]
    if len(given) == 1 and texts:
        return {"text": texts[0]}
    whole = [name for name in texts if transcript(row[name]) is not None]
    if len(whole) == 1:
        return {"text": whole[0]}
    # Of more columns, two whose names say nothing could be anything: an error and its cause.
    filled = [name for name, value in row.items() if not is_empty(value)]
    alone = len(texts) == len(filled) == 2 and all(name.isidentifier() for name in texts)
    if alone or (len(texts) > 1 and (prompts or completions)):
        return _guessed_pair(texts, prompts, completions)
    return {}


def _misspelt(given: Sequence[str]) -> dict[str, str]:
    """Returns the one column that a format lacks and that may be a misspelt one of the row."""
    for needed in NEEDED.values():
        missing = [slot for slot in needed if slot not in given]
        near = nearest(missing[0], tuple(given), MISSPELT_COLUMN) if len(missing) == 1 else None
        if near and near not in needed:
            return {missing[0]: near}
    return {}


def _guessed_turns(lists: Sequence[str], row: Mapping[str, Any]) -> dict[str, str]:
    """Proposes a conversation that ends in an answer; of two, no more than one may be good."""
    last = decoded(row[lists[0]])[-1]
    answered = author_of(last) == "assistant"
    return {"messages": lists[0]} if len(lists) == 1 and answered else {}


def _guessed_pair(
    texts: Sequence[str], prompts: Sequence[str], completions: Sequence[str]
) -> dict[str, str]:
    thinking = [name for name in texts if fold(name) in names.THINKING]
    if len(texts) - len(thinking) < 2:
        return {}
    texts = [name for name in texts if name not in thinking[:1]] if len(texts) > 2 else texts
    prompt = prompts[0] if prompts else next(name for name in texts if name not in completions[:1])
    left = [name for name in (*completions, *texts) if name != prompt]
    thought = {"thinking": thinking[0]} if thinking and thinking[0] not in (prompt, left[0]) else {}
    return {"prompt": prompt, **thought, "completion": left[0]}


def _is_said_in_turn(value: Any) -> bool:
    """Returns whether a value is an even number of texts: what two say in turn."""
    value = decoded(value)
    if not isinstance(value, list) or not value or len(value) % 2:
        return False
    return all(isinstance(text, str) for text in value)


def columns_argument(columns: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    """Writes `data.columns` as an argument that a shell passes on unchanged."""
    items = ", ".join(f"{slot}: {_word(source)}" for slot, source in dict(columns).items())
    return shlex.quote(f"data.columns={{{items}}}")


def _word(source: str) -> str:
    plain = source.replace("_", "").replace("-", "").replace(".", "").isalnum()
    # The command line reads a backslash and n as such, and a template makes them a newline.
    return source if plain and source.isascii() else '"' + source.replace('"', r"\"") + '"'
