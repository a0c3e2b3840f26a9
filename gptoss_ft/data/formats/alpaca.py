"""Alpaca's instruction format: `instruction`, `input`, `output` and `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.chat import assembled, check_turns
from gptoss_ft.data.formats.common import (
    Placed,
    RowState,
    check_text,
    decoded,
    read_effort,
    read_text,
    refuse_missing,
)
from gptoss_ft.data.formats.completions import read_completion, read_prompt
from gptoss_ft.data.formats.raw_tokens import check_words
from gptoss_ft.data.formats.tool_schemas import read_tools
from gptoss_ft.harmony.messages import Conversation, Message


def parse_alpaca(
    row: Mapping[str, Any], state: RowState, *, needs_answer: bool = True
) -> Conversation:
    """Reads one Alpaca row; see `parse_openai_chat` for arguments and errors.

    The question is the instruction, with the input after a blank line where there is one. Earlier
    turns come from `history`, a list of [question, answer].
    """
    effort = read_effort(row, state)
    tools = read_tools(row, state)
    placed = _history(row.get("history"), state)
    refuse_missing(row, "instruction", state, "write what is asked")
    placed += _question(row, state, is_first=not placed)
    placed += _answers(row, state, needs_answer)
    if not state.problems:
        check_turns(placed, state, needs_answer)
    return assembled(placed, tools, effort, state)


def _question(row: Mapping[str, Any], state: RowState, *, is_first: bool) -> list[Placed]:
    """Reads the question; an instruction that nothing else belongs to may be a transcript."""
    given = _optional(row.get("input"), "input", state)
    if is_first and not given and isinstance(row.get("instruction"), str):
        return read_prompt(row["instruction"], "instruction", state)
    instruction = read_text(row.get("instruction"), "instruction", state)
    question = "\n\n".join(part for part in (instruction, given) if part)
    check_words(question, "user", "instruction", state)
    return [Placed("instruction", Message("user", question))]


def _optional(raw: Any, key: str, state: RowState) -> str:
    """Reads a text that may be empty or missing."""
    if raw is None or isinstance(raw, str):
        return check_text(raw or "", key, state)
    state.refuse(f"`{key}` is not a text", key, raw, "write a string")
    return ""


def _answers(row: Mapping[str, Any], state: RowState, needs_answer: bool) -> list[Placed]:
    if needs_answer:
        refuse_missing(row, "output", state, "write the answer")
    elif not row.get("output"):
        return []
    text = read_text(row.get("output"), "output", state)
    return [] if text is None else read_completion(text, "output", state, "trained")


def _history(raw: Any, state: RowState) -> list[Placed]:
    """Reads earlier turns, each a question and its answer."""
    raw = decoded(raw)
    if raw is None or raw == "":
        return []
    mend = "write a list of [question, answer]"
    if not isinstance(raw, list):
        state.refuse("`history` is not a list", "history", raw, mend)
        return []
    placed: list[Placed] = []
    for i, turn in enumerate(raw):
        key = f"history[{i}]"
        if not (isinstance(turn, list) and len(turn) == 2):
            state.refuse("not a question and its answer", key, turn, mend)
            continue
        question, answer = (read_text(turn[j], f"{key}[{j}]", state) for j in (0, 1))
        for j in (0, 1):
            if turn[j] is None:
                state.refuse(f"`{key}[{j}]` is missing", f"{key}[{j}]", mend=mend)
        placed.append(Placed(f"{key}[0]", Message("user", question or "")))
        if answer:
            placed += read_completion(answer, f"{key}[1]", state, "trained")
    return placed
