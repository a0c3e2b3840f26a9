"""Questions with their answers as turns: `{input, output}`, `[question, answer]`, bare texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, PlacedItem, RowState
from gptoss_ft.data.formats.harmless import fold

QUESTIONS = ("human", "user", "input", "question", "prompt", "query", "instruction")
ANSWERS = ("assistant", "output", "answer", "response", "completion", "gpt", "bot", "ai")
SYSTEM = "system"
# With one of these it is a message.
MESSAGE_KEYS = ("role", "from", "content", "value")


def unrolled(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Writes pairs as two messages, and texts of a list as messages of user and assistant in turn.

    The keys of a pair that are neither its question, its answer nor its system message stay with
    the answer, and are refused there.
    """
    if all(isinstance(item, str) for _, item in items) and len(items) > 1:
        state.note("texts in a list read as messages of user and assistant in turn")
        roles = ("user", "assistant")
        return [_message(place, roles[i % 2], item) for i, (place, item) in enumerate(items)]
    return [part for place, item in items for part in _parts(place, item)]


def _message(place: str, role: str, content: Any, **others: Any) -> PlacedItem:
    return PlacedItem(place, {"role": role, "content": content, **others})


def _parts(place: str, item: Any) -> list[PlacedItem]:
    if isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
        return [
            _message(f"{place}[0]", "user", item[0]),
            _message(f"{place}[1]", "assistant", item[1]),
        ]
    if not isinstance(item, OBJECTS) or "role" in item or "from" in item:
        return [PlacedItem(place, item)]
    keys = {fold(str(key)): str(key) for key, value in item.items() if value is not None}
    questions = [keys[name] for name in QUESTIONS if name in keys]
    answers = [keys[name] for name in ANSWERS if name in keys]
    if not keys.keys().isdisjoint(MESSAGE_KEYS) or len(questions) != 1 or len(answers) != 1:
        return [PlacedItem(place, item)]
    return _pair(place, item, questions[0], answers[0], keys.get(SYSTEM))


def _pair(
    place: str, item: Mapping[str, Any], question: str, answer: str, system: str | None
) -> list[PlacedItem]:
    others = {key: value for key, value in item.items() if key not in (question, answer, system)}
    before = [_message(f"{place}.{system}", "system", item[system])] if system else []
    return [
        *before,
        _message(f"{place}.{question}", "user", item[question]),
        _message(f"{place}.{answer}", "assistant", item[answer], **others),
    ]
