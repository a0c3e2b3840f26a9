"""The page of a preview: the rows exactly, coloured by their labels; no text in it can act."""

from __future__ import annotations

import re
from pathlib import Path

from chats import conversations
from hypothesis import given
from hypothesis import strategies as st
from pages import HOSTILE, Page
from preview_rows import RENDERER, VOCABULARY, assistant, many, rows, text_of, user

from gptoss_ft.harmony.messages import Conversation
from gptoss_ft.preview.choice import preview_row
from gptoss_ft.preview.html import page, write_html
from gptoss_ft.preview.panels import factor, panels


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
