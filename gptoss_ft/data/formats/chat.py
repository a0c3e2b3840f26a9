"""The chat format of the OpenAI API and its fine-tuning files.

`messages`, `tools`, `tool_calls`, a `weight` per message, plus `thinking` (or
`reasoning_content`) for the analysis, `builtin_tools` and `reasoning_effort`. The message lists of
other formats are read here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import (
    NATIVE,
    OBJECTS,
    Placed,
    PlacedItem,
    RowState,
    Use,
    check_keys,
    check_text,
    decoded,
    is_empty,
    is_utf8,
    read_content,
    read_effort,
    read_weight,
    refuse_missing,
    shell_list,
)
from gptoss_ft.data.formats.dialects import is_standard, translated
from gptoss_ft.data.formats.dialects.call_text import may_call
from gptoss_ft.data.formats.dialects.declared_text import declares
from gptoss_ft.data.formats.raw_tokens import check_words, may_be_raw
from gptoss_ft.data.formats.thinking import may_think, split_thinking
from gptoss_ft.data.formats.tool_calls import check_arguments, read_tool_calls, result_of
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.data.formats.transcripts import transcript, turns_of
from gptoss_ft.harmony.messages import BUILTIN_TOOLS, ROLES, Conversation, Message, ToolSpec

MESSAGE_KEYS = frozenset(
    ("role", "content", "thinking", "tool_calls", "tool_call_id", "name", "weight")
)
NAMED = "key `name` of messages not read: Harmony names the authors of results only"
# All that most messages have: nothing about their keys needs to be looked at.
PLAIN_KEYS = {"role", "content"}
THOUGHT_KEYS = {"role", "content", "thinking"}
PLAIN_ROLES = ("user", "assistant", "system", "developer")
NATIVE_KEYS = frozenset(("role", "weight", NATIVE))
ROLE_LIST = ", ".join(ROLES)


def parse_openai_chat(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Conversation:
    """Reads one OpenAI chat row.

    Args:
        row: the decoded JSON object.
        state: of the row.
        needs_answer: refuse a row without an assistant message, and one whose last assistant turn
            does not end; turn it off for prompts.

    Raises:
        DataError: with every problem of the row.
    """
    effort = read_effort(row, state)
    tools = read_tools(row, state)
    refuse_missing(row, "messages", state, 'write {"messages": [...]}')
    placed = read_messages(row.get("messages"), "messages", state)
    if placed and not state.problems:
        check_turns(placed, state, needs_answer)
    return assembled(placed, tools, effort, state)


def assembled(
    placed: Sequence[Placed], tools: tuple[ToolSpec, ...], effort: str | None, state: RowState
) -> Conversation:
    """Builds the conversation of a row from its messages and settings, and what the messages say of
    the row.

    Raises:
        DataError: with every problem of the row so far, or because both say different things.
    """
    messages = tuple(item.message for item in placed)
    if state.declared:
        tools = (*tools, *state.declared)
    if state.found_in_messages is None:
        state.check()
        return Conversation(messages, tools, effort, state.builtin)
    found = state.found
    if tools and found.functions_elsewhere:
        mend = f"keep one of them, or say {shell_list('data.ignore', ['tools'])}"
        state.refuse("the row gives its tools twice", "tools", mend=mend)
    elif tools:
        found.give("tools", tools, "tools", state)
    if effort is not None:
        found.give("effort", effort, "reasoning_effort", state)
    builtin = tuple(name for name in BUILTIN_TOOLS if name in (*state.builtin, *found.builtin))
    if isinstance(found.system, str):
        said = [f"## {name}" for name in builtin]
        said += [f"Reasoning: {found.effort}"] if found.effort else []
        missing = [text for text in said if text not in found.system]
        if missing:
            what = "the row's system message is a whole one and does not say what the row says"
            mend = "write it there, or drop the column"
            state.refuse(what, "messages[0].content", missing, mend)
    state.check()
    return Conversation(
        messages, found.tools, found.effort, builtin, found.system, found.functions_elsewhere
    )


# Python's own writing of a list, as `print` and pandas' `to_csv` leave it in a cell, is no JSON.
LISTING = (
    "write a list of messages; a list in a table is written as JSON, as "
    "DataFrame.to_json('rows.jsonl', orient='records', lines=True) does it"
)


def read_messages(raw: Any, key: str, state: RowState, use: Use = "trained") -> list[Placed]:
    """Reads the messages of a list; empty for null, and where there are only problems."""
    raw = decoded(raw)
    if raw is None:
        return []
    if isinstance(raw, str):
        raw = turns_of(transcript(raw), raw, key, state) or raw
    if not isinstance(raw, list):
        state.refuse(f"`{key}` is not a list", key, raw, LISTING)
        return []
    if not raw:
        mend = "add the messages or delete the row"
        state.refuse(f"`{key}` is empty", key, mend=mend)
    plain = [_plain_message(item, use) for item in raw]
    if all(plain):
        return [Placed(f"{key}[{i}]", message) for i, message in enumerate(plain) if message]
    items = [PlacedItem(f"{key}[{i}]", item) for i, item in enumerate(raw)]
    if not all(known or is_standard(item) for item, known in zip(raw, plain, strict=True)):
        items = translated(items, state)
        plain = [_plain_message(item, use) for _, item in items]
    read = (
        Placed(place, message)
        for (place, item), known in zip(items, plain, strict=True)
        if (message := known or _message(item, place, state, use))
    )
    return list(read)


def _plain_message(raw: Any, use: Use) -> Message | None:
    """Reads a message of a role and a text and nothing else, as most are; otherwise, or if broken,
    return None.

    What it returns is what `_message` would, several times faster.
    """
    if type(raw) is not dict:
        return None
    if raw.keys() == PLAIN_KEYS:
        thinking = ""
    elif raw.keys() == THOUGHT_KEYS and _is_plain_thought(raw["role"], raw["thinking"]):
        thinking = raw["thinking"]
    else:
        return None
    role, content = raw["role"], raw["content"]
    if role not in PLAIN_ROLES or type(content) is not str or not is_utf8(content):
        return None
    # One letter is found far quicker than a word, and most texts have none of these.
    tagged = "<" in content
    if tagged and may_be_raw(content):
        return None
    if role != "assistant":
        odd = role != "user" and declares(content)
        return None if odd else Message(role, content)
    if not content:
        return None
    odd = tagged or "[" in content or "◁" in content or content[0] in "{ \n\t"
    if odd and (may_think(content) or may_call(content)):
        return None
    return Message(role, content, thinking, weight=0.0 if use == "history" else 1.0)


def _is_plain_thought(role: Any, thinking: Any) -> bool:
    """Returns whether it is an assistant's thinking and nothing in it needs to be looked at."""
    is_text = role == "assistant" and type(thinking) is str and is_utf8(thinking)
    return is_text and not ("<" in thinking or "[" in thinking or "◁" in thinking)


def _message(raw: Any, key: str, state: RowState, use: Use) -> Message | None:
    """Reads one message; None when it is so broken that only its problems matter."""
    if not isinstance(raw, OBJECTS):
        state.refuse("a message is not an object", key, raw, 'write {"role": …, "content": …}')
        return None
    if isinstance(raw.get(NATIVE), Message):
        return _native(raw, raw[NATIVE], key, state, use)
    before = len(state.problems)
    check_keys(raw, MESSAGE_KEYS, key, state)
    role = raw.get("role")
    if role not in ROLES:
        _refuse_role(role, key, state)
        return None
    if role != "tool" and raw.get("name"):
        state.note(NAMED)
    content = read_content(raw.get("content"), f"{key}.content", state)
    check_words(content or "", role, f"{key}.content", state)
    if role == "assistant":
        message = _assistant(raw, content or "", key, state, use)
        said = message.content or message.thinking or message.tool_calls
        if not said and len(state.problems) == before:
            what = "the assistant message has no content, no thinking and no tool_calls"
            state.refuse(what, key, mend="write its answer as `content`, or delete the message")
        return message
    _refuse_assistant_keys(raw, role, key, state)
    if role != "tool" and not is_empty(raw.get("tool_call_id")):
        state.note("key `tool_call_id` of messages not read: they are no results of tools")
    if content is None:
        if raw.get("content") is None:
            what = f"the {role} message has no content"
            mend = "write a text, or leave such rows out with data.on_bad=drop"
            state.refuse(what, f"{key}.content", mend=mend)
        return None
    name, builtin = result_of(raw, key, state) if role == "tool" else ("", False)
    return Message(role, content, name=name, builtin=builtin)


def _native(
    raw: Mapping[str, Any], message: Message, key: str, state: RowState, use: Use
) -> Message:
    """Gives a message that a dialect has read its weight."""
    check_keys(raw, NATIVE_KEYS, key, state)
    if message.role != "assistant":
        _refuse_assistant_keys(raw, message.role, key, state)
        return message
    if not (message.content or message.thinking or message.tool_calls or message.header):
        what = "the assistant's answer is empty"
        state.refuse(what, key, mend="write it as `content`, or delete the message")
    weight = read_weight(raw.get("weight"), f"{key}.weight", state)
    weight = 0.0 if use == "history" else weight
    if weight > 0 and use == "trained":
        check_arguments(message.tool_calls, key, state)
    return message._replace(weight=weight)


def _refuse_role(role: Any, key: str, state: RowState) -> None:
    if role is None:
        state.refuse("the message has no role", f"{key}.role", mend=f"write one of {ROLE_LIST}")
    elif role == "function":
        mend = 'write role "tool" with the `tool_call_id` of the call it answers'
        state.refuse('role "function" is the old form of tool results', f"{key}.role", role, mend)
    else:
        state.refuse("unknown role", f"{key}.role", role, f"write one of {ROLE_LIST}")


def _refuse_assistant_keys(raw: Mapping[str, Any], role: str, key: str, state: RowState) -> None:
    for name in ("thinking", "tool_calls"):
        if not is_empty(raw.get(name)):
            mend = "move it to an assistant message"
            state.refuse(f"a {role} message cannot have `{name}`", f"{key}.{name}", mend=mend)
    if raw.get("weight"):
        mend = "remove it: only assistant messages are trained"
        state.refuse(f"a {role} message cannot be trained", f"{key}.weight", raw["weight"], mend)


def _assistant(
    raw: Mapping[str, Any], content: str, key: str, state: RowState, use: Use
) -> Message:
    thinking, content = _thinking(raw, content, key, state)
    weight = read_weight(raw.get("weight"), f"{key}.weight", state)
    if use == "history":
        weight = 0.0
    strict = weight > 0 and use == "trained"
    calls = read_tool_calls(raw.get("tool_calls"), key, strict, state)
    if raw.get("tool_call_id") is not None:
        what, mend = "an assistant message answers no call", 'write role "tool" for a result'
        state.refuse(what, f"{key}.tool_call_id", raw["tool_call_id"], mend)
    return Message("assistant", content, thinking, calls, weight=weight)


def _thinking(raw: Mapping[str, Any], content: str, key: str, state: RowState) -> tuple[str, str]:
    """Splits a message into its thinking and the remaining content."""
    thinking = "" if is_empty(raw.get("thinking")) else raw["thinking"]
    if not isinstance(thinking, str):
        state.refuse("`thinking` is not a text", f"{key}.thinking", thinking, "write a string")
        return "", content
    check_text(thinking, f"{key}.thinking", state)
    inline, rest = split_thinking(content, f"{key}.content", state)
    # Where both are given they say the same: the dialect of thinking has seen to it.
    return thinking or inline, rest


def check_turns(placed: Sequence[Placed], state: RowState, needs_answer: bool) -> None:
    """Refuses a run of assistant messages that does not end in a final or a call: nothing would
    close it.
    """
    if needs_answer and all(item.message.role != "assistant" for item in placed):
        mend = "add the assistant's answer, or delete the row"
        key = placed[0].place.split("[")[0]
        state.refuse("the row is all prompt: no assistant message", key, mend=mend)
    for i, (place, message) in enumerate(placed):
        if message.role != "assistant" or _closes(message):
            continue
        follower = placed[i + 1].message.role if i + 1 < len(placed) else None
        if follower != "assistant" and (needs_answer or follower is not None):
            state.refuse(
                "the assistant turn ends in thinking, without an answer or a call",
                place,
                mend="write the answer as `content`",
            )


def _closes(message: Message) -> bool:
    """Returns whether a message of the assistant ends what is sampled in one go."""
    if message.header is not None:
        return message.header.channel == "final"
    return bool(message.content or message.tool_calls)
