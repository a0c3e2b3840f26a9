"""Calls and results in other places than `tool_calls` and `tool_call_id`.

Turns that hold nothing but calls, `function_call` and `function_calls`, calls in the text of an
answer, functions declared in a system text or on a message, results without ids. Calls in a text
are read as such only where the row declares the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptoss_ft.data.formats.common import (
    NATIVE,
    OBJECTS,
    PlacedItem,
    RowState,
    decoded,
    is_empty,
    shell_list,
)
from gptoss_ft.data.formats.dialects.call_results import (
    is_odd_result,
    results_of,
    split_results,
    user_results,
)
from gptoss_ft.data.formats.dialects.call_text import (
    after_thought,
    as_call,
    calls_of,
    find_calls,
    may_call,
    pythonic,
)
from gptoss_ft.data.formats.dialects.declared_text import TEXT_NOTE, declares, without_declarations
from gptoss_ft.data.formats.harmless import is_harmless
from gptoss_ft.data.formats.loose_json import values
from gptoss_ft.data.formats.tool_names import plain_name
from gptoss_ft.data.formats.tool_schemas import COLUMNS, declare, is_declared

# What `data.ignore` says to train calls in a text as text.
AS_TEXT = "calls_in_text"
CALL_KEYS = ("function_call", "function_calls")
TURN_MEND = 'write the call as JSON: {"name": …, "arguments": {…}}, or a list of such'
RESULT_MEND = (
    'put the call before it: `tool_calls` in a message, or a turn {"from": "function_call", …}'
)


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether a message may hold calls, results or functions in another way than the chat
    format does.
    """
    role, content = message.get("role"), message.get("content")
    if role == "assistant":
        calls = message.get("tool_calls")
        return (
            (isinstance(content, str) and may_call(content))
            or not (calls is None or (isinstance(calls, list) and all(map(is_plain, calls))))
            or any(message.get(key) for key in CALL_KEYS)
        )
    if role == "tool":
        return is_odd_result(message)
    return role == "call" or (
        role in ("system", "developer", "user")
        and (
            (role != "user" and isinstance(content, str) and declares(content))
            or any(message.get(key) for key in COLUMNS)
        )
    )


def is_plain(call: Any) -> bool:
    """Returns whether a call is an object with a function in it."""
    return isinstance(call, OBJECTS) and isinstance(call.get("function"), OBJECTS)


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Writes calls as `tool_calls` and names the call of every result.

    A list in the model's own form has been read whole by then, calls and results with it.
    """
    if any(isinstance(item, OBJECTS) and NATIVE in item for _, item in items):
        return items
    reader = _Reader(state)
    for place, item in items:
        if isinstance(item, OBJECTS):
            reader.message(place, item)
        else:
            reader.items.append(PlacedItem(place, item))
    reader.settle()
    return reader.items


@dataclass
class _Reader:
    """Collects the messages of a list.

    Attributes:
        state: of the row.
        items: the messages so far.
        waiting: the calls that no result has followed yet: id and name of each.
        in_order: how many results of this round were matched by their order alone.
        from_text: whether the last calls were read from a text, as their results may be.
        broken: whether a call could not be read, so that its result is not a second problem.
    """

    state: RowState
    items: list[PlacedItem] = field(default_factory=list)
    waiting: list[tuple[Any, Any]] = field(default_factory=list)
    in_order: int = 0
    from_text: bool = False
    broken: bool = False

    def message(self, place: str, item: Mapping[str, Any]) -> None:
        """Reads one message."""
        item = self._declared(place, item)
        role = item.get("role")
        if role == "tool":
            for result in results_of(item, self.state):
                self._result(place, result)
            return
        if role == "user" and self.from_text and self.waiting:
            results, rest = user_results(item)
            for result in results:
                self._result(place, result)
            if results and rest is None:
                return
            item = item if rest is None else rest
        self.settle()
        if role == "call":
            self._turn(place, item)
        elif role == "assistant":
            self._answer(place, item)
        else:
            self.waiting, self.from_text = [], False
            self.items.append(PlacedItem(place, item))

    def _declared(self, place: str, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Declares the functions that stand on a message or in a system text."""
        for key in COLUMNS:
            if not is_empty(item.get(key)):
                self.state.declared += declare(item[key], f"{place}.{key}", self.state)
                item = {name: value for name, value in item.items() if name != key}
        content = item.get("content")
        if (
            item.get("role") in ("system", "developer")
            and not self.state.functions
            and isinstance(content, str)
            and declares(content)
        ):
            tools, rest = without_declarations(content)
            if tools:
                self.state.declared += declare(tools, place, self.state)
                self.state.note(TEXT_NOTE)
                return {**item, "content": rest}
        return item

    def _answer(self, place: str, item: Mapping[str, Any]) -> None:
        given = item.get("tool_calls")
        if not is_empty(given) and not (isinstance(given, list) and all(map(is_plain, given))):
            item = self._rewritten(item)
        for key in CALL_KEYS:
            if not is_empty(item.get(key)):
                item = self._moved(place, item, key)
        content = item.get("content")
        if self.broken and is_empty(content) and is_empty(item.get("tool_calls")):
            return  # its call is refused already
        from_text = False
        if is_empty(item.get("tool_calls")) and isinstance(content, str) and may_call(content):
            said = self._from_text(place, item, content)
            from_text, item = said is not item, said
        self._said(place, item, from_text)

    def _said(self, place: str, item: Mapping[str, Any], from_text: bool = False) -> None:
        calls = item.get("tool_calls")
        calls = calls if isinstance(calls, list) else []
        if not calls:
            self.waiting = []
        self.from_text = from_text
        self.waiting += [(call.get("id"), _name(call)) for call in calls if is_plain(call)]
        self.items.append(PlacedItem(place, item))

    def _rewritten(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rewrites `tool_calls` of another layout; the chat format refuses what is none."""
        given = decoded(item["tool_calls"])
        listed = given if isinstance(given, list) else [given]
        calls = [as_call(call, text=isinstance(call, str)) or call for call in listed]
        return {**item, "tool_calls": given if given != [] and calls == [given] else calls}

    def _moved(self, place: str, item: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """Moves the calls of `function_call` or `function_calls` into `tool_calls`."""
        raw = decoded(item[key])
        rest = {name: value for name, value in item.items() if name != key}
        if isinstance(raw, str):
            calls = self._written(raw)
        else:
            listed = raw if isinstance(raw, list) else [raw]
            read = [as_call(call, text=isinstance(item[key], str)) for call in listed]
            calls = [call for call in read if call is not None]
            calls = calls if len(calls) == len(read) else []
        if calls and is_empty(item.get("tool_calls")):
            return {**rest, "tool_calls": calls}
        if not calls:
            self.broken = True
            self.state.refuse("not a call", f"{place}.{key}", raw, TURN_MEND)
        elif calls != item["tool_calls"]:
            what = f"`{key}` and `tool_calls` are both given"
            self.state.refuse(what, f"{place}.{key}", raw, "keep one of them")
        return rest

    def _written(self, text: str) -> list[dict[str, Any]]:
        """Reads a text that is known to be calls: JSON, or one call a line in Python's notation."""
        calls = calls_of(values(text)) or pythonic(text, self.state)
        if calls is None:
            lines = [pythonic(line, self.state) for line in text.splitlines() if line.strip()]
            calls = [call for line in lines for call in line or ()]
            calls = calls if all(lines) else []
        return calls

    def _from_text(self, place: str, item: Mapping[str, Any], content: str) -> Mapping[str, Any]:
        """Reads the calls of an answer's text where the row declares them."""
        state = self.state
        found = find_calls(content, state)
        if found is None:
            return item
        known = bool(found.calls) and all(
            is_declared(_name(one), state) for one in found.calls or ()
        )
        if AS_TEXT in state.ignore or not (known or found.sure):
            if found.sure or known:
                state.note("calls in the text of an answer trained as text, as data.ignore says")
            return item
        if known and not found.after:
            return {**item, "content": found.before, "tool_calls": found.calls}
        self.broken = True
        state.refuse(_why(found.calls, found.after, state), place, content, _text_mend(found.calls))
        return item

    def _turn(self, place: str, item: Mapping[str, Any]) -> None:
        """Reads a turn of calls; assistant text right before it introduces them."""
        content = item.get("content")
        raw, thought = decoded(content), ""
        if isinstance(raw, str):
            thought, raw = after_thought(raw)
            raw = decoded(raw)
        if isinstance(raw, str):
            found = find_calls(raw, self.state)
            calls = (found.calls if found and not found.before else None) or calls_of(values(raw))
            if calls is None and (written := pythonic(raw, self.state)):
                calls = written if all(is_declared(_name(c), self.state) for c in written) else None
        else:
            listed = raw if isinstance(raw, list) else [raw]
            read = [as_call(call, text=isinstance(content, str)) for call in listed]
            calls = [call for call in read if call is not None]
            calls = calls if len(calls) == len(read) else None
        if not calls:
            self.broken = True
            what = "the turn holds no call" if is_empty(raw) else "not a call"
            self.state.refuse(what, place, content, TURN_MEND)
            return
        said = {**item, "role": "assistant", "content": thought or None, "tool_calls": calls}
        last = self.items[-1].item if self.items else None
        if not thought and isinstance(last, OBJECTS) and _joins(last, item):
            place, said = self.items.pop().place, {**last, "tool_calls": calls}
        self._said(place, said)

    def _result(self, place: str, item: Mapping[str, Any]) -> None:
        """Matches a result with its call: by id, by name, else by the order of the calls."""
        call_id, name = item.get("tool_call_id"), item.get("name")
        match = next((call for call in self.waiting if _answers(call, call_id, name)), None)
        if is_empty(call_id) and match is None and (is_empty(name) or self.waiting):
            match = self.waiting[0] if self.waiting and is_empty(name) else None
            self.in_order += match is not None
            if match is None and is_empty(name):
                if not self.broken:
                    self.state.refuse("the tool result answers no call", place, mend=RESULT_MEND)
                return
        elif is_empty(call_id) and match is not None:
            self.in_order += 1
        if match is not None:
            self.waiting.remove(match)
            if is_empty(call_id):
                item = {**item, "name": match[1]}
        if not (self.broken and is_empty(call_id)):
            self.items.append(PlacedItem(place, item))

    def settle(self) -> None:
        """Ends a round of results: refuses calls without a result where others have one."""
        last = self.items[-1] if self.items else None
        if not (self.in_order and last and isinstance(last.item, OBJECTS)):
            return
        if self.waiting and self.in_order == 1:
            names = [last.item.get("name"), *(name for _, name in self.waiting)]
            parts = split_results(last.item, names)
            if parts:
                self.state.note("one result for several calls: a list, split into its elements")
                self.items[-1:] = [PlacedItem(last.place, part) for part in parts]
                self.waiting = []
        if self.waiting and not self.broken:
            names = [str(name) for _, name in self.waiting]
            mend = "write one tool turn for each call, in the order of the calls"
            what = "fewer results than calls"
            self.state.refuse(what, last.place, f"none for {', '.join(names)}", mend)
        self.waiting, self.in_order, self.from_text = [], 0, False


def _name(call: Mapping[str, Any]) -> Any:
    return call["function"].get("name")


def _answers(call: tuple[Any, Any], call_id: Any, name: Any) -> bool:
    if not is_empty(call_id):
        return bool(call[0] == call_id)
    both = isinstance(name, str) and isinstance(call[1], str)
    return both and plain_name(name) == plain_name(call[1])


def _joins(last: Mapping[str, Any], turn: Mapping[str, Any]) -> bool:
    """Returns whether calls belong to the answer before them: one without calls, and nothing is
    said of the turn that is not said of the answer.
    """
    if last.get("role") != "assistant" or not is_empty(last.get("tool_calls")):
        return False
    said = {k: v for k, v in turn.items() if k not in ("role", "content") and not is_harmless(k)}
    return all(
        is_empty(v) or last.get(k, 1 if k == "weight" else None) == v for k, v in said.items()
    )


def _why(calls: list[dict[str, Any]] | None, after: str, state: RowState) -> str:
    if calls is None:
        return "the text of the answer holds a call that cannot be parsed"
    unknown = [name for one in calls if not is_declared(name := _name(one), state)]
    if unknown:
        return f"the text of the answer calls `{unknown[0]}`, which the row does not declare"
    return f"the text of the answer goes on after its call: {after[:40]!r}"


def _text_mend(calls: list[dict[str, Any]] | None) -> str:
    first = "repair the call" if calls is None else "declare the function in the row's `tools`"
    return f"{first}, or say {shell_list('data.ignore', [AS_TEXT])} to train it as text"
