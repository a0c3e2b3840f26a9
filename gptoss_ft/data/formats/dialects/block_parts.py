"""Parts of a message's content, in every API's own way of writing them.

A part says its kind in `type` (OpenAI, Anthropic, LangChain, Vercel, OpenTelemetry) or is an object
of one key that says it (Bedrock, Gemini). Each becomes text, thinking, a call or a result; whatever
else is there is refused, unless the user ignores its kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    check_keys,
    is_empty,
    note_harmless,
    quote,
    shell_list,
)

TEXT_MEND = 'write {"type": "text", "text": …}'
# Keys of parts that tell of how they were made and shown, whatever the part.
_BESIDE = """
    type index cache_control cachecontrol citations annotations logprobs signature thoughtSignature
    thought_signature thinking_signature encrypted_content encrypted providerMetadata
    providerOptions callProviderMetadata extras state phase start_timestamp stop_timestamp flags
    summaries cut_off truncated message integration_name integration_icon_url integration_is_remote
    icon_name context display_content approval_options approval_key mcp_server_url is_mcp_app
    structured_content alternative_display_type caller providerExecuted videoMetadata preliminary
"""
BESIDE = frozenset(_BESIDE.split())
# Of these, what says of a part only its kind and its place.
PLACES = frozenset(("type", "index"))
NOT_READ = MappingProxyType(
    {
        "refusal": "a refusal is not read as an answer",
        "executableCode": "code that the API ran by itself is not read",
        "executable_code": "code that the API ran by itself is not read",
        "codeExecutionResult": "code that the API ran by itself is not read",
        "code_execution_result": "code that the API ran by itself is not read",
        "server_tool_use": "a tool that the API ran by itself is not read",
        "mcp_tool_use": "a tool that the API ran by itself is not read",
    }
)
# Left out, and said: nobody can read them, or they say nothing.
LEFT_OUT = MappingProxyType(
    {
        "redacted_thinking": "redacted thinking left out: it cannot be read",
        "redactedContent": "redacted thinking left out: it cannot be read",
        "step-start": "marks of steps among the parts left out",
        "cachePoint": "marks of the cache among the parts left out",
        "token_budget": "marks of a token budget among the parts left out",
        "source": "sources that a message links to left out",
        "source-url": "sources that a message links to left out",
        "source-document": "sources that a message links to left out",
    }
)


class Part(NamedTuple):
    """One part, read.

    Attributes:
        kind: text, thinking, call or result.
        value: the text; the call as the chat format writes it; or the keys of a tool message.
    """

    kind: str
    value: Any


Reader = Callable[[Mapping[str, Any], str, RowState], list[Part]]


def kind_of(block: Any) -> str:
    """Returns what a part says that it is, empty when it does not say."""
    if isinstance(block, str):
        return "text"
    if not isinstance(block, OBJECTS):
        return ""
    kind = block.get("type")
    if isinstance(kind, str):
        return kind
    names = [name for name, value in block.items() if value is not None and name not in ASIDE]
    return names[0] if len(names) == 1 else ""


def read_block(block: Any, key: str, state: RowState) -> list[Part]:
    """Reads one part; empty when it is left out or refused."""
    if isinstance(block, str):
        return [Part("text", block)]
    kind = kind_of(block)
    if not kind:
        state.refuse("not a text part", key, block, TEXT_MEND)
        return []
    if kind in state.ignore:
        state.note(f"parts of type `{kind}` left out, as data.ignore says")
        return []
    given = {name: value for name, value in block.items() if value is not None}
    if kind in LEFT_OUT:
        state.note(LEFT_OUT[kind])
        return []
    if "type" not in given:
        return _read_union(given, kind, key, state)
    if kind in TYPES:
        return TYPES[kind](given, key, state)
    if kind.startswith("tool-") and "toolCallId" in given:
        return _shown_tool({"toolName": kind.removeprefix("tool-"), **given}, key, state)
    return _refuse(block, kind, key, state)


def _read_union(given: Mapping[str, Any], kind: str, key: str, state: RowState) -> list[Part]:
    """Reads a part whose one key says what it is."""
    inner = given[kind]
    if kind in ("text", "json"):
        return UNION[kind](given, key, state)
    if kind in UNION and isinstance(inner, OBJECTS):
        named = {name: value for name, value in inner.items() if value is not None}
        return UNION[kind](named, f"{key}.{kind}", state)
    return _refuse(given, kind, key, state)


def _refuse(block: Any, kind: str, key: str, state: RowState) -> list[Part]:
    what = NOT_READ.get(kind, "gpt-oss reads text only") + f", and this part is of type {kind!r}"
    mend = (
        f"remove the part, write it as a text part, or say {shell_list('data.ignore', [kind])} "
        "to train without such parts"
    )
    state.refuse(what, key, block, mend)
    return []


def _check(block: Mapping[str, Any], known: str, key: str, state: RowState) -> None:
    """Refuses the keys of a part that carry something and are not read."""
    read = frozenset(known.split())
    if block.keys() <= read | PLACES:
        return
    rest = {name: value for name, value in block.items() if name not in BESIDE}
    check_keys(rest, read, key, state, of="parts")
    for name in BESIDE.intersection(block) - PLACES - read:
        if not is_empty(block[name]):
            note_harmless(name, block[name], "parts", state)


def _first(block: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((block[name] for name in names if name in block), None)


def _only(block: Mapping[str, Any], names: tuple[str, ...], key: str, state: RowState) -> Any:
    """Returns what one of several names holds; another one has to say the same."""
    given = [name for name in names if not is_empty(block.get(name))]
    for name in given[1:]:
        if block[name] != block[given[0]]:
            what = f"`{given[0]}` and `{name}` are both given and differ"
            mend = f"keep one of them, or say {shell_list('data.ignore', [name])}"
            if name not in state.ignore:
                state.refuse(what, f"{key}.{name}", block[name], mend)
    return block[given[0]] if given else _first(block, names)


def _text(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    _check(block, "text content thought", key, state)
    text = _only(block, ("text", "content"), key, state)
    if isinstance(text, OBJECTS):  # OpenAI's threads
        _check(text, "value", f"{key}.text", state)
        text = text.get("value")
    if not isinstance(text, str):
        state.refuse("not a text part", key, block, TEXT_MEND)
        return []
    return [Part("thinking" if block.get("thought") is True else "text", text)]


def _thinking(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    """Reads thinking, or its summary where that is all there is."""
    names = ("thinking", "reasoningText", "reasoning_content", "reasoning", "text", "content")
    _check(block, " ".join((*names, "summary", "details")), key, state)
    if "redactedContent" in block:
        state.note(LEFT_OUT["redactedContent"])
    whole = [_plain(block.get(name), f"{key}.{name}", state) for name in names]
    others = {text.strip() for text in whole if text}
    if len(others) > 1:
        state.refuse("the part holds thinking twice, and it differs", key, block, "keep one")
    texts = [*whole, *(_plain(block.get(n), f"{key}.{n}", state) for n in ("details", "summary"))]
    if None in texts:
        state.refuse("the thinking is not a text", key, block, "write a string")
        return []
    thinking = next((text for text in texts if text), "")
    return [Part("thinking", thinking)] if thinking else []


def _plain(raw: Any, key: str, state: RowState) -> str | None:
    """Joins the text of a string, an object or a list of them; None for anything else."""
    if isinstance(raw, OBJECTS):
        _check(raw, "text", key, state)
        return _plain(raw.get("text"), key, state)
    if isinstance(raw, list):
        texts = [_plain(item, f"{key}[{i}]", state) for i, item in enumerate(raw)]
        return None if None in texts else "\n\n".join(text for text in texts if text)
    return raw if isinstance(raw, str) else "" if raw is None else None


CALL_IDS = ("call_id", "toolCallId", "toolUseId", "tool_call_id", "id")
CALL_NAMES = ("name", "toolName")
ARGUMENTS = ("input", "args", "arguments")
RESULT_IDS = ("tool_use_id", "toolUseId", "toolCallId", "tool_call_id", "call_id", "id")
RESULTS = ("content", "output", "result", "response")


def _call(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    _check(block, " ".join((*CALL_IDS, *CALL_NAMES, *ARGUMENTS)), key, state)
    arguments = _only(block, ARGUMENTS, key, state)
    function = {
        "name": _only(block, CALL_NAMES, key, state),
        "arguments": {} if arguments is None or arguments == "" else arguments,
    }
    call = {"type": "function", "function": function}
    name = _first(block, CALL_IDS)
    return [Part("call", call if name is None else {"id": name, **call})]


def _result(block: Mapping[str, Any], content: str) -> list[Part]:
    named = {"tool_call_id": _first(block, RESULT_IDS), "name": _first(block, CALL_NAMES)}
    message = {name: value for name, value in named.items() if value is not None}
    return [Part("result", {**message, "content": content})]


def _block_result(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    """Reads a result whose content is a text or again a list of parts."""
    _check(block, " ".join((*RESULT_IDS, *CALL_NAMES, "content is_error status")), key, state)
    _note_error(block.get("is_error") is True or block.get("status") == "error", state)
    content = block.get("content")
    if not isinstance(content, list):
        return _result(block, dumped(content))
    before = len(state.problems)
    inner = [_inner(item, f"{key}.content[{i}]", state) for i, item in enumerate(content)]
    if len(state.problems) > before:
        return []
    return _result(block, "".join(part.value for parts in inner for part in parts))


def _inner(item: Any, key: str, state: RowState) -> list[Part]:
    parts = read_block(item, key, state)
    if any(part.kind != "text" for part in parts):
        return _refuse(item, kind_of(item), key, state)
    return parts


def _data_result(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    """Reads a result that is a value of its own: a text as it is, all else as JSON."""
    given = (*RESULT_IDS, *CALL_NAMES, *RESULTS, "isError is_error args input")
    _check(block, " ".join(given), key, state)
    value = _only(block, ("response", "output", "result", "content"), key, state)
    if not (is_empty(block.get("args")) and is_empty(block.get("input"))):
        state.note("arguments beside results of tools not read: they are the call's")
    if isinstance(value, OBJECTS) and set(value) <= {"type", "value"} and "value" in value:
        # Vercel says of the value what it is: text, json, error-text, error-json.
        _note_error(str(value.get("type")).startswith("error"), state)
        value = value["value"]
    _note_error(block.get("isError") is True or block.get("is_error") is True, state)
    return _result(block, dumped(value))


def _note_error(failed: bool, state: RowState) -> None:
    if failed:
        state.note("results of tools that failed: their text is read as any other")


def _json(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    del key, state
    return [Part("text", dumped(block["json"]))]


def dumped(value: Any) -> str:
    """Returns a text as it is, nothing for null, and all else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)


RUN_STATES = ("result", "output-available", "output-error")
WAITING_STATES = ("call", "input-available", "")


def _shown_tool(block: Mapping[str, Any], key: str, state: RowState) -> list[Part]:
    """Reads a call and its result in one part, as Vercel's chat shows them."""
    inner = block.get("toolInvocation")
    block = {**block, **inner} if isinstance(inner, OBJECTS) else block
    known = "toolInvocation toolName toolCallId args input rawInput result output errorText step"
    _check(block, known + " isError title", key, state)
    status = block.get("state", "")
    if status not in (*RUN_STATES, *WAITING_STATES):
        what = f"the call stopped in the state {quote(status)}"
        state.refuse(what, key, block, "remove the part, or delete the row")
        return []
    names = ("toolName", "toolCallId", "args", "input")
    parts = _call({name: block[name] for name in names if name in block}, key, state)
    if status in RUN_STATES:
        failed = status == "output-error"
        _note_error(failed, state)
        value = block.get("errorText") if failed else _first(block, ("output", "result"))
        parts += _result(block, dumped(value))
    return parts


TYPES: Mapping[str, Reader] = MappingProxyType(
    {
        **dict.fromkeys(("text", "input_text", "output_text"), _text),
        **dict.fromkeys(("thinking", "reasoning", "reasoning_content", "thought"), _thinking),
        **dict.fromkeys(("tool_use", "tool_call", "tool-call", "function_call"), _call),
        "tool_result": _block_result,
        "tool-result": _data_result,
        "tool_call_response": _data_result,
        "tool-invocation": _shown_tool,
        "dynamic-tool": _shown_tool,
    }
)
UNION: Mapping[str, Reader] = MappingProxyType(
    {
        "text": _text,
        "json": _json,
        "toolUse": _call,
        "toolResult": _block_result,
        "reasoningContent": _thinking,
        **dict.fromkeys(("functionCall", "function_call"), _call),
        **dict.fromkeys(("functionResponse", "function_response"), _data_result),
    }
)
# Beside the one key that says what a part is.
ASIDE = BESIDE | {"thought"}
