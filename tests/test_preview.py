"""The preview: its pieces are the row, its colours are the labels, and no text in it can act."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import regex
from chats import conversations, texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import ARABIC, FAMILY, HOSTILE, Page, examples
from rich.console import Console

from gptoss_ft.errors import DataError
from gptoss_ft.harmony import preview as previews
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
from gptoss_ft.harmony.preview import PreviewOptions, PreviewRow, preview, preview_row
from gptoss_ft.harmony.preview_html import page, write_html
from gptoss_ft.harmony.preview_pieces import Panel, Piece, blocks, factor, panels, pieces
from gptoss_ft.harmony.preview_terminal import show_terminal, visible
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.rows import IGNORE, Row, Trained, encoded
from gptoss_ft.harmony.vocabulary import END, FIRST_SPECIAL, RETURN, packaged_vocabulary

VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(
    VOCABULARY,
    RenderOptions(weights={"analysis": 0.25, "commentary": 0.5, "final": 1.0, "tool_call": 2.0}),
)
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str = "", thinking: str = "", weight: float = 1.0) -> Message:
    return Message("assistant", text, thinking, weight=weight)


def shown(*messages: Message) -> list[Panel]:
    return panels(preview_row("f:1", Conversation(messages), RENDERER, "chat"), VOCABULARY)


def text_of(panel: Panel) -> str:
    return "".join(piece.text for block in panel.blocks for piece in block.pieces)


def ragged(ids: list[int], weights: list[float]) -> Row:
    """A row whose tokens all weigh something else."""
    pairs = zip(ids, weights, strict=True)
    messages = [encoded("final", [], [], [], i, weight=1.0, end_weight=w) for i, w in pairs]
    trained = [Trained(i, i + 1, w, "final") for i, w in enumerate(weights) if w]
    return Row(messages, [message.ids for message in messages], [2] * len(ids), trained, 1, 0)


# ---------------------------------------------------------------- pieces


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
    assert learnt == [Piece("<|end|>", "special", "final", "end", 1.0, True, 1, "<|return|>")]
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


# ---------------------------------------------------------------- examples


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


# ---------------------------------------------------------------- the page


def rows() -> list[PreviewRow]:
    return [preview_row(where, one, RENDERER, name) for where, name, one in examples()]


def test_the_page_holds_the_rows_exactly_and_nothing_that_acts() -> None:
    read = Page(page(rows(), VOCABULARY, [HOSTILE], HOSTILE))
    expected = [[text_of(panel) for panel in panels(row, VOCABULARY)] for row in rows()]
    assert read.texts == [[text.replace("\0", "\u2400") for text in one] for one in expected]
    assert {tag for tag, _ in read.tags} == {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "ul", "li", "nav"),
        *("fieldset", "legend", "label", "input", "span", "small", "p", "main", "article", "h2"),
        *("a", "b", "svg", "rect", "section", "h3", "h4", "div", "details", "summary", "i", "bdi"),
    }
    names = {name for _, attributes in read.tags for name in attributes}
    assert not [n for n in names if n.startswith("on") or n in ("style", "src", "action")]
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert links == [f"#example-{i}" for i in range(1, len(expected) + 1)]
    assert read.title == HOSTILE


def test_the_page_allows_only_its_own_style() -> None:
    text = page(rows(), VOCABULARY, [], "t")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; base-uri 'none'; form-action 'none'",
        policy[1],
    )
    assert text.index("Content-Security-Policy") < text.index("<title>")


@many
@given(conversation=conversations(), title=st.text())
def test_any_conversation_reads_back_from_the_page(conversation: Conversation, title: str) -> None:
    row = preview_row("f:1", conversation, RENDERER)
    read = Page(page([row], VOCABULARY, [], title))
    wanted = [text_of(panel).replace("\0", "\u2400") for panel in panels(row, VOCABULARY)]
    assert read.texts == [wanted]


def test_weights_labels_and_marks_are_on_the_page() -> None:
    text = page(rows(), VOCABULARY, ["4 examples"], "t")
    assert "weight 0.25" in text and f'data-weight="{factor(0.25)}"' in text
    assert 'data-learnt="&lt;|return|&gt;"' in text
    assert "label false: bad" in text
    assert '<i class="n">\n</i>' in text and 'data-code="U+202E"' in text
    assert 'class="like"' in text
    assert 'dir="auto"' in text and "<details>" in text and "<li>4 examples</li>" in text


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.html"
    write_html(path, rows(), VOCABULARY, [], "t")
    assert path.read_bytes().decode() == page(rows(), VOCABULARY, [], "t")
    assert [entry.name for entry in path.parent.iterdir()] == ["p.html"]


def test_a_file_name_that_is_no_text_is_still_shown() -> None:
    row = preview_row("a\udcff.jsonl:1", Conversation((user("a"), assistant("b"))), RENDERER)
    assert "a\\udcff.jsonl:1" in page([row], VOCABULARY, [], "t").encode("utf-8").decode()


# ---------------------------------------------------------------- the terminal


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


# ---------------------------------------------------------------- which examples


def numbered(count: int) -> list[tuple[str, str, Conversation]]:
    return [
        (f"f.jsonl:{i + 1}", "chat", Conversation((user("q"), assistant(str(i)))))
        for i in range(count)
    ]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def show(lines: list[str]) -> Callable[..., list[int]]:
    def run(count: int = 30, **options: object) -> list[int]:
        console = Console(file=io.StringIO())
        found = preview(
            numbered(count),
            RENDERER,
            VOCABULARY,
            PreviewOptions(**options),  # type: ignore[arg-type]
            lines.append,
            console=console,
        )
        return [int(row.where.split(":")[1]) for row in found]

    return run


def test_rows_are_chosen_by_place_line_or_chance(show: Callable[..., list[int]]) -> None:
    assert show() == list(range(1, 11))
    assert show(rows="2:4") == [3, 4]
    assert show(rows=":7:3") == [1, 4, 7]
    assert show(rows="28:") == [29, 30]
    assert show(rows="5") == [6]
    assert show(lines=[17, 3]) == [3, 17]
    drawn_rows = show(random=5, seed=1)
    assert len(drawn_rows) == 5 and drawn_rows == sorted(drawn_rows)
    assert drawn_rows == show(random=5, seed=1) != show(random=5, seed=2)
    assert show(count=3, random=5) == [1, 2, 3]


def test_the_limit_and_missing_lines_are_said(
    show: Callable[..., list[int]], lines: list[str]
) -> None:
    assert show(rows="0:", limit=4) == [1, 2, 3, 4]
    assert lines[0] == "4 examples shown, and there are more (limit=4)"
    lines.clear()
    assert show(lines=[3, 99]) == [3]
    assert lines[0] == "1 example shown" and lines[-1] == "no example on line 99"


def test_examples_are_read_only_as_far_as_needed() -> None:
    def endless():
        yield from numbered(5)
        raise AssertionError("read too far")

    options = PreviewOptions(rows="0:5")
    console = Console(file=io.StringIO())
    preview(endless(), RENDERER, VOCABULARY, options, lambda line: None, console=console)


@pytest.mark.parametrize(
    ("only", "expected"),
    [("analysis", [1]), ("final", [1, 2]), ("bare", [1, 2]), ("split", [1]), ("untrained", [3])],
)
def test_only_some_kinds(only: str, expected: list[int]) -> None:
    some = [
        Conversation((user("a"), assistant("b", "why"), user("c"), assistant("d"))),
        Conversation((user("a"), assistant("b"))),
        Conversation((user("a"), assistant("b", "", 0.0))),
    ]
    items = [(f"f:{i}", "chat", one) for i, one in enumerate(some, start=1)]
    found = preview(
        items,
        RENDERER,
        VOCABULARY,
        PreviewOptions(only=only),
        lambda line: None,
        console=Console(file=io.StringIO()),
    )
    assert [int(row.where[2:]) for row in found] == expected


def test_options_name_every_mistake() -> None:
    wrong = PreviewOptions(rows="3-5", lines=[0], random=-1, only="finale", limit=0)
    assert [problem.where for problem in wrong.problems("preview")] == [
        "preview.rows",
        "preview.lines",
        "preview.random",
        "preview.rows, preview.lines, preview.random",
        "preview.only",
        "preview.limit",
    ]
    assert [p.where for p in PreviewOptions(rows="1:2:0").problems("")] == ["rows"]
    assert PreviewOptions(rows="1:2:3").problems("") == []


def test_a_page_cannot_be_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, found in ((tmp_path, tmp_path), (tmp_path / "file" / "p.html", tmp_path / "file")):
        (problem,) = PreviewOptions(html=str(path)).problems("preview")
        assert problem.where == "preview.html" and str(found) in problem.found
    assert PreviewOptions(html=str(tmp_path / "new" / "p.html")).problems("preview") == []


def test_bad_rows_are_refused_together_and_nothing_is_not_shown(tmp_path: Path) -> None:
    items = [(f"f:{i}", "harmony", HarmonyText("no harmony")) for i in (1, 2)]
    prompt = Conversation((user("a"),))
    items += [("f:3", "kto", Feedback(prompt, (assistant("", "only thinking"),), True))]
    options = PreviewOptions(html=str(tmp_path / "p.html"))
    quiet = Console(file=io.StringIO())
    with pytest.raises(DataError) as caught:
        preview(items, RENDERER, VOCABULARY, options, print, console=quiet)
    assert {problem.where.split(" ")[0][:3] for problem in caught.value.problems} == {
        "f:1",
        "f:2",
        "f:3",
    }
    with pytest.raises(DataError, match="no example to show"):
        preview([], RENDERER, VOCABULARY, options, print, console=quiet)
    assert not list(tmp_path.iterdir())


def test_the_page_stays_small_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    show: Callable[..., list[int]],
    lines: list[str],
) -> None:
    monkeypatch.setattr(previews, "PAGE_TOKENS", 300)
    path = tmp_path / "p.html"
    assert show(html=str(path)) == list(range(1, 11))
    note = next(line for line in lines if line.startswith("the page ends after"))
    assert note in path.read_text() and lines[-1] == f"page written: {path}"
    kept = int(note.split()[4])
    assert len(Page(path.read_text()).texts) == kept
    lines.clear()
    monkeypatch.setattr(previews, "PAGE_TOKENS", 1)
    show(html=str(path))
    assert len(Page(path.read_text()).texts) == 1
