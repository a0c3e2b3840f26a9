"""A preview in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.style import Style
from rich.table import Table
from rich.text import Text

from gptoss_ft.harmony.vocabulary import Vocabulary
from gptoss_ft.preview.panels import (
    LOOK_ALIKE,
    UNSEEN,
    MessageBlock,
    Panel,
    PreviewRow,
    TextPiece,
    factor,
    panels,
    weighed,
)

COLOURS = {
    "analysis": "magenta",
    "commentary": "blue",
    "final": "green",
    "tool_call": "yellow",
    "text": "cyan",
}
SIDE_BY_SIDE = 100
# Of longer texts, in letters and lines, only the beginning and the end are shown.
LONGEST_CONTEXT = (1000, 12)
LONGEST_TRAINED = (4000, 60)
LOOKS_LIKE = "≈"


def show_terminal(rows: Sequence[PreviewRow], vocabulary: Vocabulary, console: Console) -> None:
    """Draws the examples, and first what the colours mean.

    Trained text has the colour of its channel; where the console has no colours it stands between
    ⟦ and ⟧. Nothing in a message is read as markup or as a control sequence.
    """
    marks = console.color_system is None
    console.print(_legend(marks))
    for row in rows:
        console.print()
        console.print(Rule(_title(row, vocabulary), align="left", style="dim"))
        if row.note:
            console.print(Text(visible(row.note), style="yellow"))
        shown = panels(row, vocabulary)
        if row.kind == "preference":
            _show_pair(shown, console, marks)
        else:
            for panel in shown:
                console.print(_panel(panel, marks))


def visible(text: str) -> str:
    """Marks line ends, and shows by name what cannot be seen or would act."""
    return UNSEEN.sub(lambda match: _name(match[0]), text)


def _name(letter: str) -> str:
    if letter == "\n":
        return "↵\n"
    if letter == "\t":
        return "⇥ "
    code = ord(letter)
    if code < 0x20:
        return chr(0x2400 + code)
    return f"⟨U+{code:04X}⟩"


def _legend(marks: bool) -> Text:
    text = Text("trained: ")
    for channel, colour in COLOURS.items():
        text.append(f" {channel} ", Style(color=colour, reverse=True)).append(" ")
    text.append(" not trained: ").append("dim", "dim")
    text.append(f"  {factor(0.5)}: loss weight  <|end|>→<|return|>: read → trained")
    text.append(f"  {LOOKS_LIKE}<|end|>: text, not a token")
    return text.append("  trained text stands in ⟦⟧") if marks else text


def _title(row: PreviewRow, vocabulary: Vocabulary) -> Text:
    shown = panels(row, vocabulary)
    tokens = sum(panel.tokens for panel in shown)
    trained = sum(panel.channels.total() for panel in shown)
    text = Text(visible(row.where), "bold")
    for part in (visible(row.format), _label(row), f"{tokens:,} tokens", f"{trained:,} trained"):
        if part:
            text.append(" · ", "dim").append(part, "not bold")
    return text


def _label(row: PreviewRow) -> str:
    if row.label is None:
        return ""
    return "label true: good" if row.label else "label false: bad"


def _show_pair(shown: list[Panel], console: Console, marks: bool) -> None:
    prompt, chosen, rejected = (_panel(panel, marks) for panel in shown)
    console.print(prompt)
    if console.width < SIDE_BY_SIDE:
        console.print(chosen, rejected)
        return
    pair = Table.grid(expand=True, padding=(0, 2, 0, 0))
    pair.add_column(ratio=1)
    pair.add_column(ratio=1)
    pair.add_row(chosen, rejected)
    console.print(pair)


def _panel(panel: Panel, marks: bool) -> RenderableType:
    parts: list[RenderableType] = []
    if panel.title:
        counts = f" · {panel.tokens:,} tokens · {panel.channels.total():,} trained"
        parts.append(Text(panel.title, "bold underline").append(counts, "dim not underline"))
    for action, blocks in groupby(panel.blocks, key=lambda block: block.action):
        members = list(blocks)
        if action:
            trained = sum(block.trained for block in members)
            heading = Text(f"action {action} · {trained:,} trained tokens", "dim")
            parts.append(Rule(heading, align="left", style="dim", characters="╌"))
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(justify="right", width=10, no_wrap=True)
        grid.add_column(overflow="fold")
        for block in members:
            colour = COLOURS.get(block.channel, "default") if block.trained else "default"
            style = Style(color=colour, dim=not block.trained)
            grid.add_row(Text(block.channel, style), _message(block, marks))
        parts.append(grid)
    return Group(*parts)


def _message(block: MessageBlock, marks: bool) -> Text:
    text = Text()
    for trained, run in groupby(weighed(block.pieces), key=lambda pair: pair[0].trained):
        text.append("⟦" if marks and trained else "")
        for piece, weight in run:
            if weight:
                text.append(weight, "bold reverse").append(" ")
            _append(text, piece)
        text.append("⟧" if marks and trained else "")
    return text


def _append(text: Text, piece: TextPiece) -> None:
    special = piece.kind == "special"
    style = Style(color="bright_black", reverse=True) if special else Style(dim=True)
    if piece.trained:
        style = Style(color=COLOURS.get(piece.channel, "cyan"), reverse=special, bold=not special)
    shown = piece.text
    if not special:
        shown = _shortened(shown, *(LONGEST_TRAINED if piece.trained else LONGEST_CONTEXT))
        shown = LOOK_ALIKE.sub(lambda match: LOOKS_LIKE + match[0], shown)
    text.append(visible(shown), style)
    if piece.learnt:
        text.append("→" + visible(piece.learnt), style)


def _shortened(text: str, letters: int, lines: int) -> str:
    """Shortens the text to its beginning and end, with how much is left out between them."""
    rows = text.splitlines(keepends=True)
    if len(rows) > lines:
        half = lines // 2
        left_out = len(rows) - 2 * half
        text = "".join([*rows[:half], f"… {left_out:,} lines …\n", *rows[-half:]])
    if len(text) > letters:
        half = letters // 2
        text = f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
    return text
