"""A preview in the terminal: what is trained, side by side, and no text in it can act."""

from __future__ import annotations

import io
import re

from preview_rows import RENDERER, VOCABULARY, assistant, user
from rich.console import Console

from gptoss_ft.harmony.messages import Conversation, Preference
from gptoss_ft.preview.choice import PreviewRow, preview_row
from gptoss_ft.preview.html import page
from gptoss_ft.preview.panels import factor
from gptoss_ft.preview.terminal import show_terminal, visible


def drawn(some: list[PreviewRow], width: int = 140, colour: bool = True) -> Console:
    console = Console(
        file=io.StringIO(),
        record=True,
        width=width,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    )
    show_terminal(some, VOCABULARY, console)
    return console


def test_the_terminal_shows_every_message_and_what_is_trained() -> None:
    split = Conversation((user("ask"), assistant("say", "think"), user("more"), assistant("d")))
    some = [preview_row("data.jsonl:7", split, RENDERER, "chat")]
    text = drawn(some, colour=False).export_text()
    assert "data.jsonl:7 · chat" in text and "makes 2 rows" in text
    assert "action 1" in text and "row 2 of 2" in text
    assert "<|start|>user<|message|>ask<|end|>" in text
    assert (
        f"<|start|>assistant⟦{factor(0.25)} <|channel|>analysis<|message|>think{factor(1)} <|end|>⟧"
        in text
    )
    assert "⟦<|start|>assistant<|channel|>final<|message|>say<|return|>⟧" in text
    assert "⟦" not in drawn(some).export_text()


def test_colours_are_those_of_the_channels() -> None:
    some = [preview_row("f:1", Conversation((user("ask"), assistant("say", "think"))), RENDERER)]
    styled = drawn(some).export_text(styles=True)
    assert re.search(r"\x1b\[1;35mthink\x1b", styled) and re.search(r"\x1b\[1;32msay\x1b", styled)
    assert re.search(r"\x1b\[2mask\x1b", styled)


def test_pairs_stand_side_by_side_where_there_is_room() -> None:
    prompt = Conversation((user("a"),))
    both = Preference(prompt, (assistant("left"),), (assistant("right"),))
    some = [preview_row("f:1", both, RENDERER)]
    wide = [line for line in drawn(some).export_text().splitlines() if "left" in line]
    assert "right" in wide[0]
    narrow = [line for line in drawn(some, 80).export_text().splitlines() if "left" in line]
    assert "right" not in narrow[0]


def test_nothing_in_a_text_acts_on_the_terminal() -> None:
    text = "\x1b[2J\x9b2J\r\x07[bold]x[/bold]\u202e:smile:\x00"
    hostile = Conversation((user(text), assistant(text)))
    some = [preview_row(f"{text}:1", hostile, RENDERER, text)]
    raw = drawn(some).file.getvalue()  # type: ignore[attr-defined]
    assert not set(re.sub(r"\x1b\[[\d;]*m", "", raw)) & set("\x1b\x9b\r\x07\x00\u202e")
    assert "[bold]x[/bold]⟨U+202E⟩:smile:␀" in drawn(some).export_text()
    assert visible("a\tb\n") == "a⇥ b↵\n"


def test_text_that_spells_a_token_is_told_apart() -> None:
    some = [preview_row("f:1", Conversation((user("<|end|>"), assistant("b"))), RENDERER)]
    text = drawn(some, colour=False).export_text()
    assert "<|start|>user<|message|>≈<|end|><|end|>" in text


def test_long_texts_are_shortened_in_the_terminal_only() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    some = [preview_row("f:1", Conversation((user(text), assistant("x" * 9000))), RENDERER)]
    out = drawn(some).export_text()
    assert "… 988 lines …" in out and "line 999" in out and "line 500" not in out
    assert "5,000 characters" in " ".join(out.split())
    assert "line 500" in page(some, VOCABULARY, [], "t")
