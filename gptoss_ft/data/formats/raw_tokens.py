"""Names of Harmony's special tokens in the text of a message, where they would be trained as
words.
"""

from __future__ import annotations

import re

from gptoss_ft.data.formats.common import RowState

_TOKEN = re.compile(r"<\|(?:start|channel|message|end|return|call|constrain)\|>")
_HEADER = r"<\|(?:start|channel)\|>[^<>|\n]{0,80}<\|(?:channel|message|constrain)\|>"
_OPENING = re.compile(rf"\s*{_HEADER}")
_NEXT = re.compile(rf"<\|(?:end|call|return)\|>\s*{_HEADER}")
# Not after a blank: then the text speaks of the token.
_ENDING = re.compile(r"(?:^|[^ \t`])<\|(?:end|return|call)\|>\s*\Z")
_FENCE = "```"
SPOKEN_OF = "texts that speak of Harmony's special tokens: their names stay words"


def may_be_raw(text: str) -> bool:
    """Returns whether a text names a special token; quick for one that does not."""
    return "<|" in text and _TOKEN.search(text) is not None


def check_words(text: str, role: str, key: str, state: RowState) -> None:
    """Refuses a text that is itself Harmony: it opens with a header, has one message after the
    other, or, of an assistant, ends as a message does. Others that name the tokens are counted.
    """
    if not may_be_raw(text):
        return
    after = _NEXT.search(text)
    chained = after is not None and text.count(_FENCE, 0, after.start()) % 2 == 0
    ended = role == "assistant" and _ENDING.search(text) is not None
    if role == "tool" or not (chained or ended or _OPENING.match(text)):
        state.note(SPOKEN_OF)
        return
    mend = (
        "write the thinking as `thinking`, the answer as `content` and calls as `tool_calls`; or "
        'give the whole conversation as {"text": …} with data.format=harmony; or leave such rows '
        "out with data.on_bad=drop"
    )
    state.refuse("the text is raw Harmony, whose special tokens would be words", key, text, mend)
