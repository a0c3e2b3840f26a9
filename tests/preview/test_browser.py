"""The HTML preview in a real browser: Chromium without a window, driven by its command line."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ARABIC, FAMILY, HEBREW, HOSTILE, Page, examples

from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import packaged_vocabulary
from gptoss_ft.preview.choice import PreviewRow, preview_row
from gptoss_ft.preview.html import write_html
from gptoss_ft.preview.panels import panels

pytestmark = pytest.mark.browser

VOCABULARY = packaged_vocabulary()
SECONDS = 120

Opened = tuple[str, list[str]]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Path], Opened]:
    """Opens a file and gives the document as the browser has it, and what its console says."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.fail("no Chromium found: install Debian's package `chromium`")

    def run(path: Path) -> Opened:
        done = subprocess.run(
            [
                *(browser, "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"),
                *("--enable-logging=stderr", "--v=0", "--dump-dom", path.as_uri()),
            ],
            capture_output=True,
            check=True,
            timeout=SECONDS,
        )
        log = done.stderr.decode(errors="replace").splitlines()
        return done.stdout.decode(), [line for line in log if "CONSOLE" in line]

    return run


@pytest.fixture(scope="module")
def rows() -> list[PreviewRow]:
    renderer = Renderer(VOCABULARY, RenderOptions())
    return [preview_row(where, one, renderer, name) for where, name, one in examples()]


@pytest.fixture
def page(rows: list[PreviewRow], tmp_path: Path) -> Path:
    path = tmp_path / "preview.html"
    write_html(path, rows, VOCABULARY, [HOSTILE], "The preview")
    return path


def test_the_page_opens_without_errors_and_nothing_in_it_acts(
    opened: Callable[[Path], Opened], page: Path, rows: list[PreviewRow]
) -> None:
    document, console = opened(page)
    assert console == []
    read = Page(document)
    assert read.title == "The preview"
    tags = [tag for tag, _ in read.tags]
    assert not {"script", "img"} & set(tags)
    assert (tags.count("style"), tags.count("h1"), tags.count("main")) == (1, 1, 1)
    written = Page(page.read_text(encoding="utf-8"))
    assert sorted(tags) == sorted(tag for tag, _ in written.tags)
    wanted = [
        [
            "".join(piece.text for block in panel.blocks for piece in block.pieces)
            for panel in panels(row, VOCABULARY)
        ]
        for row in rows
    ]
    # A browser's line end is one character, also when it writes a carriage return out again.
    assert [[_one_line_end(text) for text in one] for one in read.texts] == [
        [_one_line_end(text.replace("\0", "\u2400")) for text in one] for one in wanted
    ]
    for text in (ARABIC, HEBREW, FAMILY):
        assert any(text in panel for one in read.texts for panel in one)


def _one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_the_policy_stops_what_the_escaping_would_miss(
    opened: Callable[[Path], Opened], page: Path
) -> None:
    """And so shows that errors on the console are seen."""
    broken = page.read_text(encoding="utf-8").replace(
        "</body>", '<script>document.title="owned"</script><img src="x.png"></body>'
    )
    page.write_text(broken, encoding="utf-8")
    document, console = opened(page)
    assert Page(document).title == "The preview"
    assert len(console) == 2 and all("Content Security Policy" in line for line in console)


def test_boxes_hide_their_channel(opened: Callable[[Path], Opened], page: Path) -> None:
    """The filter is CSS alone; a script stands in for the reader's finger."""
    script = """<script>
    const shown = (what) => [...document.querySelectorAll(what)].filter(
      (one) => getComputedStyle(one).display !== "none").length;
    const counts = () => [".m.analysis.is-trained", ".m.final.is-trained", ".m.context", ".said .s"]
      .map(shown).map(Boolean).map(Number).join("");
    const found = [counts()];
    for (const name of ["analysis", "final", "context", "special"]) {
      document.getElementById("show-" + name).click();
      found.push(counts());
    }
    document.title = found.join(" ");
    </script>"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    page.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    document, console = opened(page)
    assert console == []
    assert Page(document).title == "1111 0111 0011 0001 0000"
