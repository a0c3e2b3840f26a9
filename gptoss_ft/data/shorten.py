"""Conversations without their oldest turns, for rows that are too long."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from gptoss_ft.harmony.messages import Conversation

Rendered = TypeVar("Rendered")


def shortened(
    conversation: Conversation,
    render: Callable[[Conversation], Rendered],
    fits: Callable[[Rendered], bool],
) -> Rendered | None:
    """Renders without as few of the oldest turns as possible; None when nothing fits."""
    starts = turn_starts(conversation)

    def rendered_from(turn: int) -> Rendered:
        return render(without_turns_before(conversation, starts[turn]))

    numbers = range(1, len(starts))
    first = bisect_left(numbers, True, key=lambda turn: fits(rendered_from(turn))) + 1
    return rendered_from(first) if first < len(starts) else None


def turn_starts(conversation: Conversation) -> list[int]:
    """Returns the indices of the messages that open a turn; a run of user messages is one
    question.
    """
    messages = conversation.messages
    return [
        i
        for i, message in enumerate(messages)
        if message.role == "user" and (i == 0 or messages[i - 1].role != "user")
    ]


def without_turns_before(conversation: Conversation, start: int) -> Conversation:
    """Returns the conversation from message `start` on; system and developer messages stay."""
    kept = tuple(
        message
        for i, message in enumerate(conversation.messages)
        if i >= start or message.role in ("system", "developer")
    )
    return replace(conversation, messages=kept)
