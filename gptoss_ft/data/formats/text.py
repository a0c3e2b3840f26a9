"""One text per row: plain text for continued pretraining, or conversations as raw Harmony text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import RowState, read_text, refuse_missing
from gptoss_ft.harmony.messages import Document, HarmonyText

OPENING = "<|start|>"
ENDINGS = ("<|end|>", "<|return|>", "<|call|>")


def parse_text(row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True) -> Document:
    """Reads one document.

    Raises:
        DataError: no text, or a whole conversation in Harmony, whose special tokens would be
            trained as if they were words.
    """
    del needs_answer
    text = _text(row, state)
    if text.startswith(OPENING) and text.rstrip().endswith(ENDINGS):
        mend = "say data.format=harmony to read its special tokens"
        state.refuse("the text is a conversation in Harmony, not plain text", "text", text, mend)
    state.check()
    return Document(text)


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
