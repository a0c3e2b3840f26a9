"""Every kind of dataset in `tests/datasets`: read with the arguments said there, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from row_texts import lines_of

from gptoss_ft.commands import COMMANDS
from gptoss_ft.config import compose_options
from gptoss_ft.data.rows import ParsedRow, read_examples
from gptoss_ft.errors import Problem

PREVIEW = next(command for command in COMMANDS if command.name == "preview")
FOLDER = Path(__file__).parents[1] / "datasets"
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SETS: dict[str, dict[str, Any]] = {
    name: one
    for file in sorted(FOLDER.glob("*.yaml"))
    for name, one in yaml.safe_load(file.read_text(encoding="utf-8")).items()
}
OPENING, CLOSING = "<!-- kinds of rows: begin -->", "<!-- kinds of rows: end -->"


def read(name: str, arguments: list[str]) -> tuple[list[ParsedRow], list[Problem]]:
    """Reads a set as the command line would."""
    options = compose_options(PREVIEW, [f"data.path={FOLDER / name}", *arguments])
    problems: list[Problem] = []
    rows = [
        row
        for source in options.data.training_sources
        for row in read_examples(source, problems, needs_answer=False)
    ]
    return rows, problems


def test_every_folder_is_described() -> None:
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == set(SETS)


@pytest.mark.parametrize("name", [name for name, one in SETS.items() if "lines" in one])
def test_a_set_is_read_to_the_token(name: str) -> None:
    rows, problems = read(name, SETS[name].get("arguments", []))
    assert not problems, "\n".join(map(str, problems))
    assert [line for row in rows for line in lines_of(row.example)] == SETS[name]["lines"]
    for text in SETS[name].get("says", []):
        assert any(text in said for row in rows for said in (*row.columns, *row.notes)), text


@pytest.mark.parametrize("name", [name for name, one in SETS.items() if "refused" in one])
def test_a_set_is_refused_with_the_argument_that_reads_it(name: str) -> None:
    """Without its arguments a set is refused, and the error prints them."""
    _, problems = read(name, SETS[name].get("first", []))
    said = "\n".join(str(problem) for problem in problems)
    for text in SETS[name]["refused"]:
        assert text in said, said
    printed = [] if SETS[name].get("arguments_not_printed") else SETS[name].get("arguments", [])
    for argument in printed:
        assert argument in said, said


def table() -> str:
    """The table of docs/data.md."""
    lines = ["| Kind | Read as | Say |", "| --- | --- | --- |"]
    for one in SETS.values():
        said = " ".join(_quoted(argument) for argument in one.get("arguments", []))
        shown = f"`{said}`" if said else "nothing" if "lines" in one else "refused"
        lines.append(f"| {one['kind']} | {one['how']} | {shown} |")
    return "\n".join(lines)


def _quoted(argument: str) -> str:
    return f"'{argument}'" if any(sign in argument for sign in " {}[]") else argument


def test_the_table_in_the_docs_is_this_one() -> None:
    """`python tests/data/test_datasets.py` writes it anew."""
    text = DOCS.read_text(encoding="utf-8")
    assert text.split(OPENING)[1].split(CLOSING)[0].strip() == table()


if __name__ == "__main__":
    before, rest = DOCS.read_text(encoding="utf-8").split(OPENING)
    after = rest.split(CLOSING)[1]
    DOCS.write_text(f"{before}{OPENING}\n{table()}\n{CLOSING}{after}", encoding="utf-8")
