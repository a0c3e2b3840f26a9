"""Calls of tools written into the text of an answer, as other models write them.

Nothing is decided here: what looks like calls is found and parsed, and `calls` reads it as such
only where the row declares the functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded
from gptoss_ft.data.formats.loose_json import called_functions, dumped, json_value, values
from gptoss_ft.data.formats.tool_names import plain_name

_TAGS = "tool_calls?|function_calls?|functioncall|tool_use|TOOLCALL"
# One test that tells most texts apart: no call is written without one of these.
_MARK = re.compile(rf"<(?:{_TAGS})>|<function=|<\|python_tag\|>|<\uff5ctool\u2581call|<\|tool_call")
_TAGGED = re.compile(rf"<({_TAGS})>\s*(.*?)\s*(?:</\1>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^<>]+)>\s*(.*?)\s*(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>]+)>(.*?)</parameter>", re.DOTALL)
_INVOKE = re.compile(r"""<invoke name=["']([^"'<>]+)["']>(.*?)</invoke>""", re.DOTALL)
_NAMED = re.compile(r"""<parameter name=["']([^"'<>]+)["'][^<>]*>(.*?)</parameter>""", re.DOTALL)
_GLM = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_MISTRAL = re.compile(r"\[TOOL_CALLS\]\s*(.*)\Z", re.DOTALL)
_MISTRAL_ONE = re.compile(r"([^\s\[{]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?(?=\{)")
_PYTHON_TAG = re.compile(r"<\|python_tag\|>\s*(.*)\Z", re.DOTALL)
_DEEPSEEK = re.compile(
    r"<\uff5ctool\u2581call\u2581begin\uff5c>(?:function<\uff5ctool\u2581sep\uff5c>)?"
    r"([^\n<\uff5c]+)(?:<\uff5ctool\u2581sep\uff5c>|\n)\s*"
    r"(?:```json\s*)?(.*?)(?:\s*```)?\s*<\uff5ctool\u2581call\u2581end\uff5c>",
    re.DOTALL,
)
_KIMI = re.compile(
    r"<\|tool_call_begin\|>\s*(?:functions\.)?([^\s<]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>"
    r"\s*(.*?)\s*<\|tool_call_end\|>",
    re.DOTALL,
)
_AROUND = re.compile(
    r"<\uff5ctool\u2581calls\u2581(?:begin|end)\uff5c>|<\|tool_calls_section_(?:begin|end)\|>"
)
# What chat templates write after an answer.
_END = re.compile(
    r"(?:\s|</s>|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|eom_id\|>"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>)+\Z"
)
_THOUGHT_END = re.compile(
    r"</(?:think|thinking|thoughts?|reasoning|analysis)>|<\|end_of_thought\|>"
    r"|\[/THINK\]|◁/think▷",
    re.IGNORECASE,
)
NAME_KEYS = ("name", "tool_name", "function_name", "tool", "action", "api_name", "recipient_name")
ARGUMENT_KEYS = (
    "arguments", "parameters", "args", "input", "kwargs", "params", "inputs", "action_input",
    "tool_input", "tool_args", "tool_arguments",
)  # fmt: skip


class TextCalls(NamedTuple):
    """Calls found in a text.

    Attributes:
        before: the text that introduces them.
        calls: in order, each as in `tool_calls`; None where they could not be parsed.
        after: the text that follows them.
        sure: whether the text can mean nothing else than calls.
    """

    before: str
    calls: list[dict[str, Any]] | None
    after: str = ""
    sure: bool = True


def may_call(text: str) -> bool:
    """Returns whether a text may hold calls; cheap, and yes a little too often."""
    if "<" in text and _MARK.search(text):
        return True
    if "[TOOL_CALLS]" in text:
        return True
    start = text[:1] if text[:1] not in " \n\t" else text.lstrip()[:1]
    return (start == "[" and (")" in text or '"name"' in text)) or (
        start == "{" and '"name"' in text
    )


def find_calls(text: str, state: RowState) -> TextCalls | None:
    """Finds the calls of a text, after its thinking; None if there are none.

    Thinking at the front stays at the front of the text before the calls.
    """
    thought, rest = after_thought(text)
    rest = _END.sub("", rest)
    for read in _READERS:
        found = read(rest, state)
        if found is not None:
            before = f"{thought}{found.before}" if found.before.strip() else thought
            return found._replace(before=before.rstrip())
    return None


def after_thought(text: str) -> tuple[str, str]:
    """Splits off the thinking that a text begins with, tags and all."""
    closing = _THOUGHT_END.search(text)
    if closing is None:
        return "", text
    mark = _MARK.match(text.lstrip())
    return ("", text) if mark else (text[: closing.end()], text[closing.end() :])


def _spans(pattern: re.Pattern[str], text: str, read: Callable[[re.Match[str]], Any]) -> Any:
    """Reads every match of a pattern; text between them counts as text after."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    calls: list[dict[str, Any]] | None = []
    for match in matches:
        more = read(match)
        calls = None if calls is None or more is None else [*calls, *more]
    between = [text[a.end() : b.start()] for a, b in pairwise(matches)]
    after = "".join([*between, text[matches[-1].end() :]]).strip()
    return TextCalls(text[: matches[0].start()], calls, after)


def _tagged(text: str, state: RowState) -> TextCalls | None:
    found = _spans(_TAGGED, text, lambda match: _body(match[2], state))
    if found is not None and found.calls is None:
        match = _TAGGED.search(text)
        if match and not match[0].endswith(f"</{match[1]}>") and match[2][:1] not in "{[<":
            return None  # the tag is only spoken of
    return found


def _body(text: str, state: RowState) -> list[dict[str, Any]] | None:
    if "<function=" in text:
        found = _functions(text, state)
        return found.calls if found else None
    if "<invoke" in text:
        return [
            _call(match[1], _typed(match[1], _NAMED.findall(match[2]), state))
            for match in _INVOKE.finditer(text)
        ] or None
    if "<arg_key>" in text:
        name = text.partition("<arg_key>")[0].strip()
        return [_call(name, _typed(name, _GLM.findall(text), state))]
    return calls_of(values(text))


def _functions(text: str, state: RowState) -> TextCalls | None:
    def read(match: re.Match[str]) -> list[dict[str, Any]] | None:
        name, body = match[1].strip(), match[2]
        if body[:1] == "{":
            given = values(body)
            return [_call(name, given[0])] if given and len(given) == 1 else None
        pairs = _PARAMETER.findall(body)
        return None if body and not pairs else [_call(name, _typed(name, pairs, state))]

    return _spans(_FUNCTION, text, read)


def _typed(name: str, pairs: list[tuple[str, str]], state: RowState) -> dict[str, Any]:
    """Gives texts the types that the function declares; a line break around them is layout."""
    schema = state.functions.get(plain_name(name)) or {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    return {key.strip(): _value(text, properties.get(key.strip())) for key, text in pairs}


def _value(text: str, schema: Any) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, OBJECTS) else "string"
    if kind == "string":
        return text
    try:
        return json_value(text)
    except ValueError:
        return {"True": True, "False": False}.get(text.strip(), text)


def _mistral(text: str, state: RowState) -> TextCalls | None:
    def read(match: re.Match[str]) -> list[dict[str, Any]] | None:
        body = match[1].replace("[TOOL_CALLS]", " ")
        if body[:1] in ("[", "{"):
            return calls_of(values(body))
        names = _MISTRAL_ONE.findall(body)
        given = values(_MISTRAL_ONE.sub("", body))
        if given is None or len(given) != len(names):
            return None
        return [_call(name, one) for name, one in zip(names, given, strict=True)]

    return _spans(_MISTRAL, text, read)


def _python_tag(text: str, state: RowState) -> TextCalls | None:
    def read(match: re.Match[str]) -> list[dict[str, Any]] | None:
        return calls_of(values(match[1])) or pythonic(match[1], state)

    return _spans(_PYTHON_TAG, text, read)


def _sections(text: str, state: RowState) -> TextCalls | None:
    text = _AROUND.sub("", text)
    for pattern in (_DEEPSEEK, _KIMI):
        found = _spans(pattern, text, lambda match: [_call(match[1].strip(), match[2])])
        if found is not None:
            return found
    return TextCalls(text, None) if "tool\u2581call" in text or "<|tool_call" in text else None


def _whole(text: str, state: RowState) -> TextCalls | None:
    """Reads a text that is nothing but calls, as JSON or in Python's notation."""
    start, end = text.strip()[:1], text.strip()[-1:]
    calls = None
    if start == "{" or (start == "[" and end == "]"):
        calls = calls_of(values(text), strict=True)
    if calls:
        return TextCalls("", calls, sure=False)
    if start == "[" and end == "]":
        calls = pythonic(text, state)
    if not calls:
        return None
    sure = any(call["function"]["arguments"] != "{}" for call in calls)
    return TextCalls("", calls, sure=sure)


_READERS = (_tagged, _functions, _mistral, _python_tag, _sections, _whole)


def pythonic(text: str, state: RowState) -> list[dict[str, Any]] | None:
    """Reads calls in Python's notation, one after the other or in a list; arguments by position get
    the names that the function declares.
    """
    found = called_functions(text)
    calls = []
    for name, given in found or ():
        schema = state.functions.get(plain_name(name)) or {}
        properties = schema.get("properties")
        names = iter(properties if isinstance(properties, Mapping) else ())
        arguments = {key or next(names, ""): value for key, value in given}
        if "" in arguments:
            return None
        calls.append(_call(name, arguments))
    return calls or None


def _call(name: Any, arguments: Any, call_id: Any = None) -> dict[str, Any]:
    """Writes a call as `tool_calls` holds it; nulls in arguments that were text are meant."""
    if isinstance(arguments, Mapping):
        text = dumped(arguments)
        arguments = arguments if text is None else text
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return call if call_id is None else {"id": call_id, **call}


def calls_of(found: list[Any] | None, *, strict: bool = False) -> list[dict[str, Any]] | None:
    """Rewrites parsed JSON, objects or lists of them, as calls; None if any is no call.

    Args:
        found: the values.
        strict: ask for both name and arguments, and nothing else of meaning.
    """
    flat = [one for value in found or () for one in (value if isinstance(value, list) else [value])]
    calls = [as_call(one, strict=strict) for one in flat]
    whole = [call for call in calls if call is not None]
    return whole if whole and len(whole) == len(calls) else None


def as_call(raw: Any, *, text: bool = True, strict: bool = False) -> dict[str, Any] | None:
    """Rewrites one call in any layout as `tool_calls` holds it; None if it is none.

    Args:
        raw: the call.
        text: whether it was parsed from text, so that every null in it is meant.
        strict: see `calls_of`.
    """
    raw = decoded(raw)
    if not isinstance(raw, OBJECTS):
        return None
    inner = decoded(raw.get("function"))
    if isinstance(inner, OBJECTS):
        found = as_call(inner, text=text, strict=strict)
        return None if found is None else _with_rest(found, raw, ("function",))
    name_key = "function" if isinstance(inner, str) else _first(raw, NAME_KEYS)
    argument_key = _first(raw, ARGUMENT_KEYS)
    if name_key is None or (strict and argument_key is None):
        return None
    arguments = raw.get(argument_key) if argument_key else None
    call = _call(raw[name_key], arguments)
    if not text:
        call["function"]["arguments"] = arguments
    rest = _with_rest(call, raw, (name_key, argument_key))
    return None if strict and not rest.keys() <= {"id", "type", "function"} else rest


def _first(raw: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if raw.get(key) is not None), None)


def _with_rest(
    call: dict[str, Any], raw: Mapping[str, Any], read: tuple[str | None, ...]
) -> dict[str, Any]:
    """Keeps the id of a call, and what is left to be refused; its kind is always a function."""
    rest = {k: v for k, v in raw.items() if k not in read and k not in ("type", "id", "call_id")}
    call_id = raw.get("id") if raw.get("id") is not None else raw.get("call_id")
    return {**rest, **({} if call_id is None else {"id": call_id}), **call, "type": "function"}
