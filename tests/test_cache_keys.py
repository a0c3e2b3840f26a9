"""Cache keys follow the code that made what is cached: all of it, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gptoss_ft

RENDERED = "from gptoss_ft.data.cache import code_version as key"
SCORED = "from gptoss_ft.train.reference import scoring_version as key"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be changed."""
    source = Path(gptoss_ft.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(source, tmp_path / "gptoss_ft", ignore=ignored)


def key_of(package: Path, function: str) -> str:
    """The key as a new process computes it with this copy of the package."""
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    code = f"{function}; print(key())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.strip()


def append(file: Path, text: str = "\n# changed\n") -> None:
    assert file.is_file()
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize(
    ("function", "room"),
    [(RENDERED, "data"), (RENDERED, "harmony"), (SCORED, "model"), (SCORED, "mxfp4")],
)
def test_a_file_in_a_subfolder_counts(package: Path, function: str, room: str) -> None:
    folder = package / room / "moved"
    folder.mkdir()
    (folder / "code.py").write_text("VALUE = 1\n")
    before = key_of(package, function)
    append(folder / "code.py")
    assert key_of(package, function) != before


def test_the_preview_does_not_count(package: Path) -> None:
    """A new look of the page must not throw away every user's rendered rows."""
    before = key_of(package, RENDERED)
    (page,) = (package / "preview").glob("html.py")
    append(page)
    assert key_of(package, RENDERED) == before
    append(package / "harmony" / "render.py")
    assert key_of(package, RENDERED) != before


def test_the_layout_of_a_batch_counts_for_the_reference(package: Path) -> None:
    before = key_of(package, SCORED)
    for file in ("data/collate_pairs.py", "documents.py", "mxfp4/unpack.c"):
        append(package / file)
        assert key_of(package, SCORED) != before
        before = key_of(package, SCORED)
