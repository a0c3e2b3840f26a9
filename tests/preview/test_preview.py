"""The preview: its pieces are the row, and its panels say what is trained."""

from __future__ import annotations

from array import array
from random import Random

import pytest
import regex
from chats import conversations, texts
from hypothesis import given
from hypothesis import strategies as st
from pages import ARABIC, FAMILY
from preview_rows import RENDERER, VOCABULARY, assistant, many, shown, text_of, user

from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Feedback,
    HarmonyText,
    Message,
    Preference,
    ToolCall,
)
from gptoss_ft.harmony.options import CHANNELS, RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.segments import IGNORE, Head, Row, Trained, encoded
from gptoss_ft.harmony.vocabulary import END, FIRST_SPECIAL, RETURN
from gptoss_ft.preview.choice import preview_row
from gptoss_ft.preview.panels import TextPiece, blocks, panels, pieces


def ragged(ids: list[int], weights: list[float]) -> Row:
    """A row whose tokens all weigh something else."""
    pairs = zip(ids, weights, strict=True)
    nothing = array("i")
    messages = [
        encoded("final", Head(nothing, 0), nothing, i, weight=1.0, end_weight=w) for i, w in pairs
    ]
    trained = [Trained(i, i + 1, w, "final") for i, w in enumerate(weights) if w]
    return Row(messages, [message.ids for message in messages], [2] * len(ids), trained, 1, 0)


@many
@given(conversation=conversations())
def test_pieces_are_the_row_and_its_labels(conversation: Conversation) -> None:
    for row in RENDERER.render(conversation):
        found = pieces(row, VOCABULARY)
        assert "".join(piece.text for piece in found) == VOCABULARY.decode(row.input_ids)
        at = 0
        for piece in found:
            inside = slice(at, at + piece.tokens)
            assert {label != IGNORE for label in row.labels[inside]} == {piece.trained}
            assert set(row.loss_weights[inside]) == {piece.weight}
            special = [token >= FIRST_SPECIAL for token in row.input_ids[inside]]
            assert special == ([True] if piece.kind == "special" else [False] * piece.tokens)
            if piece.learnt:
                assert VOCABULARY.decode(row.labels[inside]) == piece.learnt
            else:
                assert not piece.trained or row.labels[inside] == row.input_ids[inside]
            at += piece.tokens
        assert at == len(row.input_ids)
        assert [p for b in blocks(row, VOCABULARY) for p in b.pieces] == found


@many
@given(text=texts | st.text(min_size=1, max_size=20), seed=st.randoms(use_true_random=False))
def test_boundaries_move_to_whole_characters(text: str, seed: Random) -> None:
    ids = VOCABULARY.encode(text)
    weights = [seed.choice((0.0, 0.5, 1.0)) for _ in ids]
    found = pieces(ragged(ids, weights), VOCABULARY)
    assert "".join(piece.text for piece in found) == text
    assert sum(piece.tokens for piece in found) == len(ids)
    for piece in found:
        assert text.count("\ufffd") or "\ufffd" not in piece.text


@pytest.mark.parametrize("text", [FAMILY, ARABIC, "𓀀𓀁🫨", "ไทย", "각\u1100\u1161\u11a8"])
def test_what_is_drawn_as_one_is_never_cut(text: str) -> None:
    ids = VOCABULARY.encode(text)
    found = pieces(ragged(ids, [float(1 + i % 2) for i in range(len(ids))]), VOCABULARY)
    clusters = regex.findall(r"\X", text)
    assert [c for piece in found for c in regex.findall(r"\X", piece.text)] == clusters
    assert len(found) == len(ids)


def test_a_final_inside_a_row_shows_what_is_learnt() -> None:
    (row,) = RENDERER.render(Conversation((user("a"), assistant("b"), user("c"), assistant("d"))))
    learnt = [piece for piece in pieces(row, VOCABULARY) if piece.learnt]
    assert learnt == [TextPiece("<|end|>", "special", "final", "end", 1.0, True, 1, "<|return|>")]
    assert (END, RETURN) in zip(row.input_ids, row.labels, strict=True)


def test_actions_are_numbered_and_history_is_not() -> None:
    calls = (ToolCall("f", "{}"), ToolCall("g", "{}"))
    first, second = shown(
        user("a"),
        Message("assistant", "see", "look", calls),
        Message("tool", "1", name="f"),
        Message("tool", "2", name="g"),
        assistant("b", "so"),
        user("c"),
        assistant("d", "then"),
    )
    assert first.title == "row 1 of 2"
    assert [(block.channel, block.action) for block in first.blocks] == [
        ("system", 0),
        ("user", 0),
        ("analysis", 1),
        ("commentary", 1),
        ("tool_call", 1),
        ("tool_call", 2),
        ("tool", 0),
        ("tool", 0),
        ("analysis", 3),
        ("final", 3),
    ]
    assert {block.action for block in second.blocks[:-2]} == {0}
    assert [(block.channel, block.action) for block in second.blocks[-2:]] == [
        ("analysis", 1),
        ("final", 1),
    ]


def test_a_message_of_weight_0_is_history() -> None:
    (panel,) = shown(user("a"), assistant("b", "", 0.0), user("c"), assistant("d"))
    assert [b.action for b in panel.blocks if b.channel == "final"] == [0, 1]
    assert panel.channels == {"final": 5}


def test_a_pair_shares_its_prompt() -> None:
    prompt = Conversation((user("a"), assistant("b", "why"), user("c")))
    both = Preference(prompt, (assistant("Yes, it is"),), (assistant("Yes, it was"),))
    shared, chosen, rejected = panels(preview_row("f:1", both, RENDERER), VOCABULARY)
    assert text_of(shared) == VOCABULARY.decode(RENDERER.prompt(prompt))
    assert shared.blocks[-1].channel == "assistant" and not shared.channels
    for panel, text in ((chosen, "Yes, it is"), (rejected, "Yes, it was")):
        assert text_of(panel) == f"<|channel|>final<|message|>{text}<|return|>"
        assert panel.tokens == panel.channels["final"]


def test_a_pair_that_begins_alike_and_weighs_nothing_there_keeps_its_prompt() -> None:
    renderer = Renderer(VOCABULARY, RenderOptions(weights=dict.fromkeys(CHANNELS, 1.0)))
    renderer.options.weights["analysis"] = 0.0
    prompt = Conversation((user("a"),))
    both = Preference(prompt, (assistant("x", "same"),), (assistant("y", "same"),))
    shared, chosen, _ = panels(preview_row("f:1", both, renderer), VOCABULARY)
    assert text_of(shared) == VOCABULARY.decode(renderer.prompt(prompt))
    assert text_of(chosen).startswith("<|channel|>analysis<|message|>same<|end|>")


def test_every_kind_of_example() -> None:
    prompt = Conversation((user("a"),))
    good = preview_row("f:1", Feedback(prompt, (assistant("b"),), True), RENDERER, "kto")
    assert (good.kind, good.label, good.format, good.note) == ("kto", True, "kto", "")
    document = preview_row("f:2", Document(FAMILY), RENDERER)
    (panel,) = panels(document, VOCABULARY)
    assert document.kind == "text" and text_of(panel) == FAMILY + "<|endoftext|>"
    assert panel.channels["text"] == panel.tokens
    spelled = "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b"
    harmony = preview_row("f:3", HarmonyText(spelled + "<|return|>"), RENDERER)
    (panel,) = panels(harmony, VOCABULARY)
    assert harmony.kind == "sft" and text_of(panel) == spelled + "<|return|>"
    nothing = preview_row("f:4", Conversation((user("a"), assistant("b", "", 0.0))), RENDERER)
    assert (nothing.note, panels(nothing, VOCABULARY)) == ("nothing here is trained", [])


def test_notes_say_what_a_reader_should_know() -> None:
    split = Conversation((user("a"), assistant("b", "why"), user("c"), assistant("d")))
    note = preview_row("f:1", split, RENDERER).note
    assert "makes 2 rows" in note and "1 trained final without analysis" in note
