"""A preview as one HTML page that needs nothing else.

The page has no script and no style attributes, and loads nothing: its Content-Security-Policy
allows the one style sheet by its hash and nothing besides. All text is escaped; the texts of a
row's pieces, read back from the document, are the row's text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from gptoss_ft.files import atomic_file
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

# The order of the legend, and the classes that the style sheet colours.
CHANNELS = {
    "analysis": "analysis",
    "commentary": "commentary",
    "final": "final",
    "tool_call": "tool call",
    "text": "text",
}
# Longer messages are folded: context when it is more than a few lines, closed; what is trained only
# when it would fill several screens, open.
FOLD_CONTEXT = (500, 5)
FOLD_TRAINED = (6000, 100)
EXCERPT = 160
CODE = ("system", "developer", "tool")
_MARKED = re.compile(f"{UNSEEN.pattern}|{LOOK_ALIKE.pattern}")
_TIGHT = re.compile(r"\s+")


def write_html(
    path: Path,
    rows: Sequence[PreviewRow],
    vocabulary: Vocabulary,
    summary_lines: Sequence[str],
    title: str,
) -> None:
    """Writes the page, UTF-8, whole or not at all; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page(rows, vocabulary, summary_lines, title)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def page(
    rows: Sequence[PreviewRow],
    vocabulary: Vocabulary,
    summary_lines: Sequence[str],
    title: str,
) -> str:
    """Returns the page as text."""
    style = (importlib.resources.files(__package__) / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    shown = [panels(row, vocabulary) for row in rows]
    summary = "".join(f"<li>{plain(line)}</li>" for line in summary_lines)
    examples = "\n".join(
        _example(place, row, of_row)
        for place, (row, of_row) in enumerate(zip(rows, shown, strict=True), start=1)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{plain(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header class="top"><h1>{plain(title)}</h1><ul class="summary">{summary}</ul></header>\n'
        f"{_toolbar(shown)}\n<main>\n{examples}\n</main>\n</body>\n</html>\n"
    )


def _toolbar(shown: Sequence[Sequence[Panel]]) -> str:
    """Builds legend and filter in one: a box for each channel of the page, with its trained
    tokens.
    """
    trained = sum((panel.channels for one in shown for panel in one), Counter[str]())
    present = {block.channel for one in shown for panel in one for block in panel.blocks}
    boxes = [_box("context", "not trained", "context")]
    boxes += [
        _box(name, f"{words} <small>{trained[name]:,}</small>", f"trained {name}")
        for name, words in CHANNELS.items()
        if name in present
    ]
    marks = [_box("special", "special tokens", ""), _box("newlines", "line ends ↵", "")]
    return (
        f'<nav class="bar"><fieldset><legend>Show</legend>{"".join(boxes)}</fieldset>'
        f"<fieldset><legend>Marks</legend>{''.join(marks)}</fieldset>"
        f'<p class="key"><span class="weight" data-weight="{factor(0.5)}"></span>'
        " loss weight, where it is not 1"
        '<span class="gap"></span><span class="s trained final" data-learnt="&lt;|return|&gt;">'
        "&lt;|end|&gt;</span> read as one token, trained as another</p></nav>"
    )


def _box(name: str, label: str, classes: str) -> str:
    swatch = f'<span class="swatch {classes}"></span>' if classes else ""
    return (
        f'<label class="box"><input type="checkbox" id="show-{name}" checked autocomplete="off">'
        f"{swatch}{label}</label>"
    )


def _example(place: int, row: PreviewRow, shown: list[Panel]) -> str:
    tokens = sum(panel.tokens for panel in shown)
    channels = sum((panel.channels for panel in shown), Counter[str]())
    share = f" ({channels.total() / tokens:.0%})" if tokens else ""
    chips = f'<span class="chip">{plain(row.format)}</span>' if row.format else ""
    if row.label is not None:
        name = "good" if row.label else "bad"
        chips += f'<span class="chip {name}">label {str(row.label).lower()}: {name}</span>'
    note = f'<p class="note">{plain(row.note)}</p>' if row.note else ""
    if row.kind == "preference":
        prompt, *pair = (_panel(panel) for panel in shown)
        body = f'{prompt}<div class="pair">{"".join(pair)}</div>'
    else:
        body = "".join(_panel(panel) for panel in shown)
    return (
        f'<article id="example-{place}"><header><h2><a href="#example-{place}">'
        f"{plain(row.where)}</a></h2>{chips}"
        f'<span class="count">{tokens:,} tokens · <b>{channels.total():,}</b> trained{share}</span>'
        f"{_bar(channels, tokens)}</header>{note}{body}</article>"
    )


def _bar(channels: Counter[str], tokens: int) -> str:
    """Draws the trained shares of an example as coloured lengths."""
    at, bars = 0.0, ""
    for name in CHANNELS:
        width = 100 * channels[name] / tokens if tokens else 0.0
        if width:
            bars += f'<rect class="{name}" x="{at:.2f}" width="{width:.2f}" height="1"/>'
            at += width
    return (
        '<svg class="share" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f"{bars}</svg>"
    )


def _panel(panel: Panel) -> str:
    heading = ""
    if panel.title:
        trained = panel.channels.total()
        counts = f"{panel.tokens:,} tokens" + (f" · {trained:,} trained" if trained else "")
        heading = f'<h3>{plain(panel.title)} <span class="count">{counts}</span></h3>'
    body = ""
    for action, blocks in groupby(panel.blocks, key=lambda block: block.action):
        members = list(blocks)
        messages = "".join(_block(block) for block in members)
        if action:
            trained = sum(block.trained for block in members)
            body += (
                f'<section class="action"><h4>action {action}'
                f' <span class="count">{trained:,} trained tokens</span></h4>{messages}</section>'
            )
        else:
            body += messages
    return f'<section class="panel {panel.name}">{heading}{body}</section>'


def _block(block: MessageBlock) -> str:
    parts = list(weighed(block.pieces))
    split = next((i for i, (piece, _) in enumerate(parts) if _in_body(piece)), len(parts))
    head = "".join(_piece(piece, shown) for piece, shown in parts[:split])
    body = "".join(_piece(piece, shown) for piece, shown in parts[split:])
    text = "".join(piece.text for piece, _ in parts[split:] if piece.kind == "text")
    if body:
        body = f'<div class="body" dir="auto">{body}</div>'
        body = _folded(body, text, block)
    known = block.channel in CHANNELS
    hue = block.channel if known else "code" if block.channel in CODE else "role"
    state = "is-trained" if block.trained else "context"
    label = CHANNELS.get(block.channel, block.channel)
    return (
        f'<div class="m {hue} {state}"><div class="who"><b>{plain(label)}</b>'
        f'<span class="count">{block.tokens:,}</span></div>'
        f'<div class="said"><div class="head">{head}</div>{body}</div></div>'
    )


def _in_body(piece: TextPiece) -> bool:
    return piece.part != "header"


def _folded(body: str, text: str, block: MessageBlock) -> str:
    letters, lines = FOLD_TRAINED if block.trained else FOLD_CONTEXT
    if len(text) <= letters and text.count("\n") < lines:
        return body
    opened = " open" if block.trained else ""
    excerpt = _TIGHT.sub(" ", text[: 4 * EXCERPT]).strip()[:EXCERPT]
    return (
        f'<details{opened}><summary><span class="excerpt" dir="auto">{plain(excerpt)}…</span>'
        f'<span class="count">{len(text):,} characters</span></summary>{body}</details>'
    )


def _piece(piece: TextPiece, weight: str) -> str:
    classes = ["s" if piece.kind == "special" else "p"]
    if piece.kind == "header":
        classes.append("h")
    many = f"{piece.tokens:,} token{'s' if piece.tokens > 1 else ''}"
    tip = f"not trained · {piece.channel} · {many}"
    if piece.trained:
        classes += ["trained", piece.channel if piece.channel in CHANNELS else "text"]
        tip = f"trained · {piece.channel} · weight {piece.weight:g} · {many}"
    if piece.learnt:
        tip += f" · read as {piece.text}, trained as {piece.learnt}"
    attributes = f' class="{" ".join(classes)}" title="{plain(tip)}"'
    if piece.learnt:
        attributes += f' data-learnt="{plain(piece.learnt)}"'
    if piece.kind == "special":
        attributes += ' dir="ltr"'
    special = piece.kind == "special"
    text = plain(piece.text) if special else marked(piece.text)
    before = (
        f'<span class="weight {piece.channel}" data-weight="{weight}"></span>' if weight else ""
    )
    return f"{before}<span{attributes}>{text}</span>"


def plain(text: str) -> str:
    """Escapes text for an element or an attribute; nothing in it can be markup or turn what
    follows.
    """
    encodable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return html.escape(UNSEEN.sub(lambda match: f"U+{ord(match[0]):04X}", encodable))


def marked(text: str) -> str:
    """Escapes text for an element: line ends marked, invisible letters kept and named beside
    themselves.

    The names are drawn by the style sheet, so that what is copied from the page is the text. NUL
    cannot stand in HTML and becomes U+2400.
    """
    parts, at = [], 0
    for match in _MARKED.finditer(text):
        found = match[0]
        parts.append(html.escape(text[at : match.start()]))
        parts.append(_unseen(found) if len(found) == 1 else _look_alike(found))
        at = match.end()
    parts.append(html.escape(text[at:]))
    return "".join(parts)


def _look_alike(text: str) -> str:
    tip = "text that spells a special token; it is none"
    return f'<span class="like" title="{tip}">{html.escape(text)}</span>'


def _unseen(letter: str) -> str:
    if letter == "\n":
        return '<i class="n">\n</i>'
    if letter == "\t":
        return '<i class="t">\t</i>'
    kept = {"\0": "\u2400", "\r": "&#13;"}.get(letter, letter)
    return f'<bdi class="u" data-code="U+{ord(letter):04X}">{kept}</bdi>'
