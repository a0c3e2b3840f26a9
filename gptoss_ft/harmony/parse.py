"""Generated ids back to messages, for showing an answer's channels.

Source: the Harmony response format (OpenAI). A sampled answer may break the format or stop
anywhere, so nothing here raises: what can be read is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptoss_ft.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    MESSAGE,
    RETURN,
    START,
    Vocabulary,
)

_ENDS = (END, RETURN, CALL, ENDOFTEXT)


@dataclass(frozen=True)
class ParsedMessage:
    """One message of an answer.

    Attributes:
        channel: analysis, commentary, final, or whatever was sampled; empty when none was.
        recipient: the tool that is called, such as `functions.name`; empty for none.
        content_type: such as `json`; empty for none.
        text: the content, as far as it was sampled.
    """

    channel: str
    recipient: str
    content_type: str
    text: str


def parse_completion(ids: Sequence[int], vocabulary: Vocabulary) -> list[ParsedMessage]:
    """Parses an answer sampled after `<|start|>assistant`; its last message may be cut off.

    A message ends at `<|end|>`, `<|return|>`, `<|call|>` or `<|endoftext|>`, at a new `<|start|>`,
    or where the ids end. Parts that hold nothing at all are left out.
    """
    messages = (_message(part, vocabulary) for part in _parts(ids) if part)
    return [message for message in messages if message is not None]


def _parts(ids: Sequence[int]) -> Iterator[list[int]]:
    """Yields the ids of each message without the tokens that open and close it."""
    part: list[int] = []
    for token in ids:
        if token == START or token in _ENDS:
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _message(part: list[int], vocabulary: Vocabulary) -> ParsedMessage | None:
    if MESSAGE not in part:
        return _cut_off(part, vocabulary)
    at = part.index(MESSAGE)
    channel, recipient, content_type = _header(part[:at], vocabulary)
    return ParsedMessage(channel, recipient, content_type, vocabulary.decode(part[at + 1 :]))


def _cut_off(part: list[int], vocabulary: Vocabulary) -> ParsedMessage | None:
    """Parses a part without `<|message|>`: a header that was cut off, or bare text."""
    if CHANNEL in part or CONSTRAIN in part:
        return ParsedMessage(*_header(part, vocabulary), "")
    text = vocabulary.decode(part)
    # `<|start|>assistant` with nothing after it is only the beginning of a header.
    return None if text == "assistant" else ParsedMessage("", "", "", text)


def _header(header: list[int], vocabulary: Vocabulary) -> tuple[str, str, str]:
    """Splits a header into channel, recipient and content type; the recipient may precede or follow
    the channel.
    """
    constrain = _index(header, CONSTRAIN)
    typed = vocabulary.decode(header[constrain + 1 :]).strip()
    at = _index(header[:constrain], CHANNEL)
    author = vocabulary.decode(header[:at]).split()
    channel, *rest = vocabulary.decode(header[at + 1 : constrain]).split() or [""]
    words = [*author, *rest]
    recipient = next((word for word in words if word.startswith("to=")), "")
    if not typed:
        typed = next((word for word in rest if word != recipient), "")
    return channel, recipient.removeprefix("to="), typed


def _index(ids: list[int], token: int) -> int:
    """Returns the first position of the token, or the length."""
    return ids.index(token) if token in ids else len(ids)
