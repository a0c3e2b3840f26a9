"""A rendered example as lines to read and compare: who says what, and what of it is trained."""

from __future__ import annotations

from gptoss_ft.harmony.messages import Document, Example, Feedback, HarmonyText, Preference
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.segments import Encoded, Row
from gptoss_ft.harmony.vocabulary import FIRST_SPECIAL, packaged_vocabulary

VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderOptions())


def lines_of(example: Example) -> list[str]:
    """Writes the messages of an example's rows, without the system block.

    A line is `channel: text`, with the recipient of a call or the author of a tool result after the
    channel, and `*` after it where the model is trained to write it.
    """
    if isinstance(example, Preference):
        sides = RENDERER.completions(example.prompt, (example.chosen, example.rejected))
        names = ("chosen", "rejected")
        tie = ["tied"] if example.tied else []
        return [
            *tie,
            *(f"{n} {line}" for n, row in zip(names, sides, strict=True) for line in _row(row)),
        ]
    if isinstance(example, Feedback):
        row = RENDERER.completion(example.prompt, example.completion)
        return [f"label {example.label}", *_row(row)]
    if isinstance(example, Document):
        return [line for row in RENDERER.render_document(example) for line in _row(row)]
    if isinstance(example, HarmonyText):
        return [line for row in RENDERER.render_harmony(example, "") for line in _row(row)]
    rows = RENDERER.render(example)
    return [line for row in rows for line in _row(row)] or ["nothing is trained"]


def _row(row: Row) -> list[str]:
    trained = [segment for segment in row.segments if segment.weight > 0]
    lines, start = [], 0
    for message in row.messages:
        stop = start + len(message.ids)
        is_trained = any(start <= segment.start < stop for segment in trained)
        if message.channel != "system":
            lines.append(_line(message, is_trained))
        start = stop
    return lines


def _line(message: Encoded, is_trained: bool) -> str:
    ids = list(message.ids)
    header = VOCABULARY.decode(ids[: message.content])
    words = header.replace("<|", " <|").split()
    recipient = next((word[3:] for word in words if word.startswith("to=")), "")
    author = (
        header.split("to=")[0].removeprefix("<|start|>").strip()
        if message.channel == "tool"
        else ""
    )
    named = recipient if message.channel == "tool_call" else author
    # The end of a message is a special token; a piece of a document need not have one.
    stop = len(ids) - (ids[-1] >= FIRST_SPECIAL)
    text = VOCABULARY.decode(ids[message.content : stop])
    return f"{message.channel}{' ' + named if named else ''}{'*' if is_trained else ''}: {text}"
