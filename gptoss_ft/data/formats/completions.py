"""A prompt and what follows it: TRL's prompt/completion, and its KTO format with a `label`.

Both sides are texts or message lists. Only the completion is trained: assistant messages of the
prompt weigh 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss_ft.data.formats.chat import assembled, check_turns, read_messages
from gptoss_ft.data.formats.common import (
    Placed,
    RowState,
    Use,
    decoded,
    read_effort,
    read_text,
    refuse_missing,
)
from gptoss_ft.data.formats.dialects.call_text import may_call
from gptoss_ft.data.formats.ratings import LABEL_MEND, read_label
from gptoss_ft.data.formats.raw_tokens import check_words
from gptoss_ft.data.formats.thinking import split_thinking
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.data.formats.transcripts import split_answer, split_prompt, turns_of
from gptoss_ft.harmony.messages import Conversation, Feedback, Message

MESSAGES_OR_TEXT = "write a text, or a list of messages"


def parse_prompt_completion(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Conversation:
    """Reads one TRL prompt/completion row; see `parse_openai_chat` for arguments and errors."""
    prompt, completion = _prompt_and_completion(row, state, needs_answer, "trained")
    return replace(prompt, messages=(*prompt.messages, *(item.message for item in completion)))


def parse_kto(row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True) -> Feedback:
    """Reads one TRL KTO row; see `parse_openai_chat` for arguments and errors."""
    refuse_missing(row, "label", state, 'write "label": true for a good completion, else false')
    given = row.get("label")
    label = read_label(given)
    if given is not None and label is None:
        state.refuse("`label` is neither true nor false", "label", given, LABEL_MEND)
    use: Use = "trained" if label else "rejected"
    prompt, completion = _prompt_and_completion(row, state, needs_answer, use)
    return Feedback(prompt, tuple(item.message for item in completion), label is True)


def _prompt_and_completion(
    row: Mapping[str, Any], state: RowState, needs_answer: bool, use: Use
) -> tuple[Conversation, list[Placed]]:
    effort = read_effort(row, state)
    tools = read_tools(row, state)
    refuse_missing(row, "prompt", state, MESSAGES_OR_TEXT)
    if needs_answer:
        refuse_missing(row, "completion", state, MESSAGES_OR_TEXT)
    prompt = read_prompt(row.get("prompt"), "prompt", state)
    completion = read_completion(row.get("completion"), "completion", state, use)
    completion = after_markup(completion, row.get("prompt"), prompt)
    if not state.problems:
        check_turns([*prompt, *completion], state, needs_answer)
    return assembled(prompt, tools, effort, state), completion


def read_prompt(raw: Any, key: str, state: RowState) -> list[Placed]:
    """Reads the messages before a completion; none of them is trained.

    A text is one user message, or the transcript of several.
    """
    if is_text(raw):
        text = read_text(raw, key, state)
        if text is None:
            return []
        messages = turns_of(split_prompt(text), text, key, state)
        if messages is None:
            check_words(text, "user", key, state)
            return [Placed(key, Message("user", text))]
        return read_messages(messages, key, state, "history")
    placed = read_messages(raw, key, state, "history")
    if placed and placed[-1].message.role == "assistant":
        mend = "move it to the completion, or end the prompt in a user message or a tool result"
        state.refuse("the prompt ends in an assistant message", placed[-1].place, mend=mend)
    return placed


def read_completion(raw: Any, key: str, state: RowState, use: Use) -> list[Placed]:
    """Reads a run of assistant messages and tool results; a text is the content of one message."""
    if not is_text(raw):
        return read_run(raw, key, state, use)
    text = read_text(raw, key, state)
    if text is None:
        return []
    text = cut_end(text, key, state)
    if may_call(text):
        return read_messages([{"role": "assistant", "content": text}], key, state, use)
    check_words(text, "assistant", key, state)
    thinking, content = split_thinking(text, key, state)
    return [Placed(key, Message("assistant", content, thinking))]


def after_markup(answer: list[Placed], raw: Any, prompt: Sequence[Placed]) -> list[Placed]:
    """Strips an answer whose prompt was split at a markup: the white space belongs to that."""
    if not (answer and prompt) or prompt[0].message.content == raw or not is_text(raw):
        return answer
    place, message = answer[0]
    return [Placed(place, message._replace(content=message.content.strip())), *answer[1:]]


def cut_end(text: str, key: str, state: RowState) -> str:
    """Cuts off the tokens with which another model's chat template ends an answer."""
    answer, cut = split_answer(text)
    if cut:
        state.note(f"{cut} of another model's markup cut off `{key}`")
    return answer


def read_run(raw: Any, key: str, state: RowState, use: Use) -> list[Placed]:
    """Reads a message list that is to be a completion."""
    before = len(state.problems)
    placed = read_messages(raw, key, state, use)
    if len(state.problems) == before:
        check_completion(placed, key, state)
    return placed


def is_text(raw: Any) -> bool:
    """Returns whether a prompt or completion is a text; a list stored as JSON is not.

    Only a list of objects that have a role counts as stored messages: other JSON may well be what
    a model is to write.
    """
    stored = decoded(raw)
    is_list = isinstance(stored, list) and bool(stored)
    return isinstance(raw, str) and not (
        is_list and all(isinstance(item, Mapping) and "role" in item for item in stored)
    )


def check_completion(placed: Sequence[Placed], key: str, state: RowState) -> None:
    """Refuses a completion that does not begin and end in assistant messages, tool results between.

    Nothing is said about an empty one; that has been refused before.
    """
    if not placed:
        return
    others = [item for item in placed if item.message.role not in ("assistant", "tool")]
    if placed[0].message.role != "assistant":
        what = f"`{key}` does not begin with an assistant message"
        mend = "leave only the assistant's messages here, and put what comes before into the prompt"
        state.refuse(what, placed[0].place, placed[0].message.role, mend)
    elif others:
        what = f"`{key}` holds more than assistant messages and tool results"
        mend = "put earlier turns into the prompt, and end the completion before the next question"
        state.refuse(what, others[0].place, others[0].message.role, mend)
    elif placed[-1].message.role == "tool":
        mend = "add the assistant's answer, or end in the call"
        state.refuse(f"`{key}` ends in a tool result", placed[-1].place, mend=mend)
