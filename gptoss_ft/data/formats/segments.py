"""Axolotl's segments: a text in pieces, each with a label that says whether it is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    RowState,
    check_keys,
    check_text,
    decoded,
    refuse_missing,
)
from gptoss_ft.harmony.messages import Document

SEGMENT_KEYS = frozenset(("label", "text"))
LABELS: Mapping[Any, bool] = {True: True, False: False, "true": True, "false": False}
KEYS = frozenset(("label", "text"))
MEND = 'write [{"label": true, "text": …}, …]'
# Tokens that other models' chat templates write; here they would be trained as words.
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|begin_of_text|user|assistant|"
    r"system|start|message|channel|end|return|call|endoftext)\|>|\[/?INST\]|<<SYS>>|"
    r"<(?:start|end)_of_turn>|<[|\uff5c](?:User|Assistant)[|\uff5c]>|</?s>"
)
_FIRST = re.compile(r"\A\s*(?:<s>|<\|begin_of_text\|>)")
_LAST = re.compile(r"(?:</s>|<\|endoftext\|>|<\|end_of_text\|>)\s*\Z")
ENDS = "texts whose <s> and </s> were taken off: the document's own end stands for them"


def parse_segments(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Document:
    """Reads the segments of one text.

    Raises:
        DataError: with every problem; among them a chat in another model's markup, which is to be
            given as messages.
    """
    del needs_answer
    refuse_missing(row, "segments", state, MEND)
    raw = decoded(row.get("segments"))
    if raw is not None and not (isinstance(raw, list) and raw):
        state.refuse("`segments` is not a list of segments", "segments", raw, MEND)
    items = raw if isinstance(raw, list) else []
    read = [_segment(item, f"segments[{i}]", state) for i, item in enumerate(items)]
    state.check()
    texts = [text for text, _ in read]
    opened, ended = _FIRST.sub("", texts[0]), _LAST.search(texts[-1])
    if opened != texts[0] or ended:
        state.note(ENDS)
    texts[0] = opened
    texts[-1] = _LAST.sub("", texts[-1])
    _check_markup(texts, state)
    if not any(label and text.strip() for text, (_, label) in zip(texts, read, strict=True)):
        mend = "label what is to be trained with true, or leave the row out"
        state.refuse("no segment is trained", "segments", mend=mend)
    state.check()
    return _document(texts, [label for _, label in read])


def _segment(raw: Any, key: str, state: RowState) -> tuple[str, bool]:
    """Reads one text and its label."""
    if isinstance(raw, OBJECTS):
        check_keys(raw, KEYS, key, state)
    text = raw.get("text") if isinstance(raw, OBJECTS) else None
    label = raw.get("label") if isinstance(raw, OBJECTS) else None
    if isinstance(label, str):
        label = label.strip().lower()
    if not isinstance(text, str) or not isinstance(label, str | bool | int) or label not in LABELS:
        state.refuse("not a segment", key, raw, MEND)
        return "", False
    check_keys(raw, SEGMENT_KEYS, key, state, of="segments")
    return check_text(text, f"{key}.text", state), LABELS[label]


def _check_markup(texts: list[str], state: RowState) -> None:
    for i, text in enumerate(texts):
        found = MARKUP.search(text)
        if found:
            mend = (
                'give the chat as {"messages": […]}, with "weight": 0 on the assistant messages '
                "that are not trained"
            )
            what = f"{found[0]} is markup of a chat, which would be trained as words"
            state.refuse(what, f"segments[{i}].text", text, mend)


def _document(texts: list[str], labels: list[bool]) -> Document:
    """Joins the texts; neighbours that are both not trained are one span."""
    spans, at = list[tuple[int, int]](), 0
    for text, label in zip(texts, labels, strict=True):
        stop = at + len(text)
        if not label and text:
            start = spans.pop()[0] if spans and spans[-1][1] == at else at
            spans.append((start, stop))
        at = stop
    return Document("".join(texts), tuple(spans))
