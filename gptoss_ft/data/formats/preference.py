"""Two completions of one prompt: OpenAI's preference files and TRL's prompt/chosen/rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss_ft.data.formats.chat import assembled, check_turns, read_messages
from gptoss_ft.data.formats.common import (
    Placed,
    RowState,
    Use,
    check_keys,
    decoded,
    read_effort,
    refuse_missing,
)
from gptoss_ft.data.formats.completions import (
    MESSAGES_OR_TEXT,
    after_markup,
    check_completion,
    is_text,
    read_completion,
    read_prompt,
    read_run,
)
from gptoss_ft.data.formats.dialects.authors import author_of
from gptoss_ft.data.formats.ratings import tied
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.data.formats.transcripts import transcript, turns_of
from gptoss_ft.harmony.messages import Message, Preference, ToolSpec

SETTINGS = ("tools", "builtin_tools", "reasoning_effort")
ROW_SETTINGS = (*SETTINGS, "functions", "chat_template_kwargs", "reasoning")
INPUT_KEYS = frozenset(("messages", *SETTINGS))
ELSEWHERE = "`prompt` is none of the user's messages in `chosen`, which are trained as they stand"
INPUT_MEND = 'write {"messages": [...]}, and `tools` beside them if there are any'


def parse_openai_preference(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Preference:
    """Reads one row of OpenAI's preference format; both completions are needed in any case.

    Raises:
        DataError: with every problem of the row.
    """
    del needs_answer
    inputs = _inputs(row, state)
    # Settings belong beside the messages, and are found beside the outputs as well.
    settings = {name: row.get(name) for name in ROW_SETTINGS}
    settings |= {name: value for name, value in inputs.items() if value is not None}
    effort = read_effort(settings, state)
    in_row = inputs.get("tools") is None
    tools = read_tools(settings, state, key="tools" if in_row else "input.tools")
    prompt = read_prompt(inputs.get("messages"), "input.messages", state)
    chosen = _output(row, "preferred_output", state, "trained")
    rejected = _output(row, "non_preferred_output", state, "rejected")
    return _preference(prompt, chosen, rejected, tools, effort, state)


def _output(row: Mapping[str, Any], key: str, state: RowState, use: Use) -> list[Placed]:
    refuse_missing(row, key, state, "write a list of messages")
    return read_run(row.get(key), key, state.fork(), use)


def _inputs(row: Mapping[str, Any], state: RowState) -> Mapping[str, Any]:
    """Reads the object `input`, empty when there is none."""
    refuse_missing(row, "input", state, INPUT_MEND)
    given = decoded(row.get("input"))
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        state.refuse("`input` is not an object", "input", given, INPUT_MEND)
        return {}
    if given.get("messages") is None:
        state.refuse("`input` has no `messages`", "input", list(given), INPUT_MEND)
    check_keys(given, INPUT_KEYS, "input", state)
    return given


def parse_trl_preference(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Preference:
    """Reads one TRL preference row; both completions are needed in any case.

    Without `prompt` the prompt is what both message lists, or transcripts, begin with. So it is
    where both lists begin with `prompt` again, or where that is a text, as in several public
    datasets. Equal scores make the row a tie.

    Raises:
        DataError: with every problem of the row.
    """
    del needs_answer
    effort = read_effort(row, state)
    tools = read_tools(row, state)
    refuse_missing(row, "chosen", state, MESSAGES_OR_TEXT)
    refuse_missing(row, "rejected", state, MESSAGES_OR_TEXT)
    raw = row.get("prompt")
    chosen, rejected = (_unrolled(row.get(name), name, state) for name in ("chosen", "rejected"))
    if raw is None or _is_repeated(raw, chosen, rejected):
        prompt, left, right = _implicit(chosen, rejected, row, state)
        texts = [item.message.content.strip() for item in prompt]
        if isinstance(raw, str) and is_text(raw) and raw.strip() not in texts:
            state.note(ELSEWHERE)
    else:
        prompt = read_prompt(raw, "prompt", state)
        left = read_completion(chosen, "chosen", state.fork(), "trained")
        right = read_completion(rejected, "rejected", state.fork(), "rejected")
        left, right = (after_markup(side, raw, prompt) for side in (left, right))
    equal = tied(row, state)
    return replace(_preference(prompt, left, right, tools, effort, state), tied=equal)


def _is_repeated(prompt: Any, chosen: Any, rejected: Any) -> bool:
    """Returns whether both sides hold the prompt again; of a list, the very messages."""
    if not (_holds_prompt(chosen) and _holds_prompt(rejected)):
        return False
    messages = decoded(prompt)
    return is_text(prompt) or (
        isinstance(messages, list)
        and all(decoded(side)[: len(messages)] == messages for side in (chosen, rejected))
    )


def _holds_prompt(raw: Any) -> bool:
    """Returns whether a message list begins with something that an assistant run cannot contain."""
    messages = decoded(raw)
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and author_of(first) in ("system", "developer", "user")


def _unrolled(raw: Any, key: str, state: RowState) -> Any:
    """Returns the messages of a text that is the transcript of a whole conversation."""
    found = transcript(raw) if isinstance(raw, str) else None
    return raw if found is None else turns_of(found, raw, key, state)


def _implicit(
    chosen: Any, rejected: Any, row: Mapping[str, Any], state: RowState
) -> tuple[list[Placed], list[Placed], list[Placed]]:
    """Splits two whole conversations into their prompt and completions."""
    if is_text(chosen) or is_text(rejected):
        mend = "add the prompt, or write whole message lists that begin with it"
        refuse_missing(row, "prompt", state, mend)
        return [], [], []
    left = read_messages(chosen, "chosen", state.fork(), "trained")
    right = read_messages(rejected, "rejected", state.fork(), "rejected")
    if state.problems or not (left and right):
        return [], left, right
    count = _prompt_length(left, right)
    if not count:
        what = "`chosen` and `rejected` do not begin with the same prompt"
        state.refuse(what, "rejected[0]", mend="begin both with the same messages, or add `prompt`")
        return [], left, right
    prompt = [Placed(place, _untrained(message)) for place, message in left[:count]]
    check_completion(left[count:], "chosen", state)
    check_completion(right[count:], "rejected", state)
    return prompt, left[count:], right[count:]


def _untrained(message: Message) -> Message:
    return message._replace(weight=0.0) if message.role == "assistant" else message


def _prompt_length(left: Sequence[Placed], right: Sequence[Placed]) -> int:
    """Measures the common prefix, back to where an assistant run begins on both sides."""
    pairs = zip(left, right, strict=False)
    count = 0
    for a, b in pairs:
        if _unnumbered(a.message) != _unnumbered(b.message):
            break
        count += 1

    def is_assistant(placed: Sequence[Placed], i: int) -> bool:
        return i < len(placed) and placed[i].message.role == "assistant"

    while count and not (
        is_assistant(left, count)
        and is_assistant(right, count)
        and not is_assistant(left, count - 1)
    ):
        count -= 1
    return count


def _unnumbered(message: Message) -> Message:
    """Drops the ids of calls and the weight: neither is rendered."""
    calls = tuple(replace(call, id="") for call in message.tool_calls)
    return message._replace(tool_calls=calls, weight=1.0)


def _preference(
    prompt: Sequence[Placed],
    chosen: Sequence[Placed],
    rejected: Sequence[Placed],
    tools: tuple[ToolSpec, ...],
    effort: str | None,
    state: RowState,
) -> Preference:
    if not state.problems:
        check_turns([*prompt, *chosen], state, needs_answer=True)
        check_turns(rejected, state, needs_answer=True)
    conversation = assembled(prompt, tools, effort, state)
    wanted, unwanted = (tuple(item.message for item in side) for side in (chosen, rejected))
    return Preference(conversation, wanted, unwanted)
