"""Every kind of dataset in `tests/datasets`: read with the arguments said there, token by token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_files import MADE
from row_texts import lines_of

from gptoss_ft.commands import COMMANDS
from gptoss_ft.config import compose_options
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.rated import good_side
from gptoss_ft.data.rows import ParsedRow, read_examples
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import Feedback, Preference

PREVIEW = next(command for command in COMMANDS if command.name == "preview")
FOLDER = Path(__file__).parents[1] / "datasets"
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
# The files with the sets, in the order of the docs; their first lines are the headings there.
FILES = """
    columns maps thinking masks ratings transcripts trees harmony calls tools media exports files
"""
TEXTS = [(FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in FILES.split()]
GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    text.splitlines()[0].removeprefix("# "): yaml.safe_load(text) for text in TEXTS
}
SETS = {name: one for group in GROUPS.values() for name, one in group.items()}
OPENING, CLOSING = "<!-- kinds of rows: begin -->", "<!-- kinds of rows: end -->"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sets that are written rather than kept."""
    folder = tmp_path_factory.mktemp("made")
    for name, one in SETS.items():
        if "made" in one:
            (folder / name).mkdir()
            MADE[one["made"]](folder / name)
    return folder


@cache
def options_for(*arguments: str) -> DataOptions:
    """Reads arguments as the command line would; slow, so each set of them once."""
    return compose_options(PREVIEW, ["data.path=SET", *arguments]).data


def read(name: str, arguments: list[str], made: Path) -> tuple[list[ParsedRow], list[Problem]]:
    """Reads a set with these arguments."""
    path = (made if "made" in SETS[name] else FOLDER) / name
    problems: list[Problem] = []
    rows: list[ParsedRow] = []
    try:
        for said in options_for(*arguments).training_sources:
            source = replace(said, path=str(path))
            rows += read_examples(source, problems, needs_answer=False)
    except DataError as error:
        problems += error.problems
    return rows, problems


def test_every_folder_is_described() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(FILES.split())
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == {name for name, one in SETS.items() if "made" not in one}


@pytest.mark.parametrize("name", [name for name, one in SETS.items() if "lines" in one])
def test_a_set_is_read_to_the_token(name: str, made: Path) -> None:
    arguments = SETS[name].get("arguments", [])
    rows, problems = read(name, arguments, made)
    assert not problems or "data.on_bad=drop" in arguments, "\n".join(map(str, problems))
    assert [line for row in rows for line in lines_of(row.example)] == SETS[name]["lines"]
    for text in SETS[name].get("says", []):
        assert any(text in said for row in rows for said in (*row.columns, *row.notes)), text


@pytest.mark.parametrize("name", [name for name, one in SETS.items() if "refused" in one])
def test_a_set_is_refused_with_the_argument_that_reads_it(name: str, made: Path) -> None:
    """Without its arguments a set is refused, and the error prints them."""
    _, problems = read(name, SETS[name].get("first", []), made)
    said = "\n".join(str(problem) for problem in problems)
    for text in SETS[name]["refused"]:
        assert text in said, said
    printed = [] if SETS[name].get("arguments_not_printed") else SETS[name].get("arguments", [])
    for argument in printed:
        assert argument in said, said


@pytest.mark.parametrize("name", [name for name, one in SETS.items() if "good" in one])
def test_sft_refuses_ratings_and_trains_the_good_side_when_told(name: str, made: Path) -> None:
    refusing, trained = DataOptions(), []
    asked = DataOptions(on_rated="good")
    for row in read(name, SETS[name].get("arguments", []), made)[0]:
        assert isinstance(row.example, Preference | Feedback)
        with pytest.raises(DataError, match=r"data\.on_rated=good"):
            good_side(row.example, row.where, refusing, Counts())
        if good := good_side(row.example, row.where, asked, Counts()):
            trained += lines_of(good)
    assert trained == SETS[name]["good"]


def tables() -> str:
    """The tables of docs/data.md."""
    return "\n\n".join(f"### {title}\n\n{table(group)}" for title, group in GROUPS.items())


def table(group: dict[str, dict[str, Any]]) -> str:
    lines = ["| Kind | Read as | Say |", "| --- | --- | --- |"]
    for one in group.values():
        said = " ".join(_quoted(argument) for argument in one.get("arguments", []))
        shown = f"`{said}`" if said else "nothing" if "lines" in one else "refused"
        lines.append(f"| {one['kind']} | {one['how']} | {shown} |")
    return "\n".join(lines)


def _quoted(argument: str) -> str:
    return f"'{argument}'" if any(sign in argument for sign in " {}[]") else argument


def test_the_tables_in_the_docs_are_these() -> None:
    """`python tests/data/test_datasets.py` writes them anew."""
    text = DOCS.read_text(encoding="utf-8")
    assert text.split(OPENING)[1].split(CLOSING)[0].strip() == tables()


if __name__ == "__main__":
    before, rest = DOCS.read_text(encoding="utf-8").split(OPENING)
    after = rest.split(CLOSING)[1]
    DOCS.write_text(f"{before}{OPENING}\n{tables()}\n{CLOSING}{after}", encoding="utf-8")
