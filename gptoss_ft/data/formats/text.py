"""One text per row: plain text for continued pretraining, or conversations as raw Harmony text.

A text that another model's chat template wrote is a conversation too; see `transcripts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.chat import check_turns, read_messages
from gptoss_ft.data.formats.common import RowState, read_effort, read_text, refuse_missing
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.data.formats.transcripts import Transcript, transcript
from gptoss_ft.harmony.messages import Conversation, Document, HarmonyText

OPENING = "<|start|>"
ENDINGS = ("<|end|>", "<|return|>", "<|call|>")


def parse_text(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Document | Conversation:
    """Reads one document, or the conversation that its text is a transcript of.

    Where the user says that the rows are text, every text is a document.

    Raises:
        DataError: no text, a transcript that cannot be split with certainty, or a whole
            conversation in Harmony, whose special tokens would be trained as if they were words.
    """
    text = _text(row, state)
    if text.startswith(OPENING) and text.rstrip().endswith(ENDINGS):
        mend = "say data.format=harmony to read its special tokens"
        state.refuse("the text is a conversation in Harmony, not plain text", "text", text, mend)
    found = None if state.said_format else transcript(text, needs_answer)
    if found is not None:
        return _conversation(found, row, state, needs_answer)
    state.check()
    return Document(text)


def _conversation(
    found: Transcript, row: Mapping[str, Any], state: RowState, needs_answer: bool
) -> Conversation:
    """Reads the turns of a transcript as messages, and what stands beside them."""
    if found.fault:
        what = f"the text is a conversation in {found.name} that cannot be split: {found.fault}"
        mend = "repair it, or say data.format=text to train such texts as they stand"
        state.refuse(what, "text", row.get("text"), mend)
        state.check()
    state.note(f"text in {found.name} split into turns")
    if found.unclosed:
        state.note(f"text in {found.name} whose last turn is not closed, perhaps cut off")
    effort = read_effort(row, state)
    tools = read_tools(row, state)
    placed = read_messages(found.messages, "text", state)
    if placed and not state.problems:
        check_turns(placed, state, needs_answer)
    state.check()
    messages = tuple(item.message for item in placed)
    return Conversation(messages, (*tools, *state.declared), effort, state.builtin)


def parse_harmony(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> HarmonyText:
    """Reads one conversation of raw Harmony text; the renderer looks at its structure.

    Raises:
        DataError: no text, or one that does not begin with a message.
    """
    del needs_answer
    text = _text(row, state)
    if text and not text.startswith(OPENING):
        mend = f"begin with a whole message, {OPENING}system<|message|>… as a rule"
        state.refuse(f"the text does not begin with {OPENING}", "text", text, mend)
    state.check()
    return HarmonyText(text)


def _text(row: Mapping[str, Any], state: RowState) -> str:
    refuse_missing(row, "text", state, 'write {"text": …}')
    return read_text(row.get("text"), "text", state) or ""
