"""Which examples a preview shows, what it refuses, and how large its page may grow."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Page
from preview_rows import RENDERER, VOCABULARY, assistant, user
from rich.console import Console

from gptoss_ft.data.rows import ParsedRow
from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Feedback, HarmonyText
from gptoss_ft.preview import choice as previews
from gptoss_ft.preview.choice import preview
from gptoss_ft.preview.options import PreviewOptions


def numbered(count: int) -> list[ParsedRow]:
    return [
        ParsedRow(f"f.jsonl:{i + 1}", "chat", Conversation((user("q"), assistant(str(i)))))
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
    assert "4 examples shown, and there are more (limit=4)" in lines
    lines.clear()
    assert show(lines=[3, 99]) == [3]
    assert "1 example shown" in lines and lines[-1] == "no example on line 99"


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
    items = [ParsedRow(f"f:{i}", "chat", one) for i, one in enumerate(some, start=1)]
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
        "preview.random",
        "preview.only",
        "preview.limit",
        "preview.rows",
        "preview.lines",
        "preview.rows, preview.lines, preview.random",
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
    items = [ParsedRow(f"f:{i}", "harmony", HarmonyText("no harmony")) for i in (1, 2)]
    prompt = Conversation((user("a"),))
    items += [ParsedRow("f:3", "kto", Feedback(prompt, (assistant("", "only thinking"),), True))]
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
