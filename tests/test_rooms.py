"""The rooms import each other downwards only, as CONTRIBUTING.md draws them, and stay small."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from house import (
    PACKAGE,
    House,
    circle,
    drawn,
    import_graph,
    long_parts,
    room_graph,
    room_of,
    wrong_arrows,
)

REPOSITORY = Path(__file__).parents[1]
HOUSE = House(
    layers=(
        ("api",),
        ("cli",),
        ("config", "help"),
        ("arguments",),
        ("commands",),
        ("train", "preview", "merge", "verify", "export", "generate", "gpu_check"),
        ("inference",),
        ("adapters",),
        ("model",),
        ("checkpoint", "mxfp4"),
    ),
    branch=("data", "harmony"),
    branch_below="inference",
    shared=("context", "schema", "validation", "resources", "documents", "files", "errors"),
    exceptions=(("gptoss_ft.model.tiny", "harmony"),),  # the tiny model's tokenizer files
)
LINES = 400
FUNCTION_LINES = 60


def test_imports_point_downwards() -> None:
    assert wrong_arrows(import_graph(REPOSITORY / PACKAGE), HOUSE) == []


def test_no_import_closes_a_circle() -> None:
    """Names in lazy tables close none: what they name is imported long after the table."""
    graph = import_graph(REPOSITORY / PACKAGE, lazy=False)
    assert len(graph) > 100
    assert circle(graph) == []
    assert circle(room_graph(import_graph(REPOSITORY / PACKAGE))) == []


def test_contributing_draws_the_house() -> None:
    assert drawn((REPOSITORY / "CONTRIBUTING.md").read_text()) == HOUSE


def test_contributing_says_what_every_room_is_for() -> None:
    """Every line of the tree names a room or module, and none is left out."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    tree = page.partition(f"```\n{PACKAGE}/\n")[2].partition("\nbenchmarks/")[0]
    named = {name for line in tree.splitlines() for name in line[:24].split()}
    found = {room_of(module) for module in import_graph(REPOSITORY / PACKAGE) if "." in module}
    assert found == {name.removesuffix(".py").rstrip("/") for name in named}


def test_files_and_functions_are_short() -> None:
    files = [
        file
        for folder in (PACKAGE, "benchmarks", "tests", "scripts")
        for file in (REPOSITORY / folder).rglob("*")
        if file.suffix in (".py", ".c", ".css")
    ]
    assert [found for file in files for found in long_parts(file, LINES, FUNCTION_LINES)] == []


def _write(root: Path, files: dict[str, str]) -> Path:
    """Writes a package with an `__init__.py` in every folder."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    "text",
    [
        "from gptoss_ft.merge.plan import x",
        "import gptoss_ft.merge.plan",
        "from gptoss_ft.merge import plan",
        "from ..merge import plan",
        "def f():\n    from gptoss_ft.merge.plan import x",
        "import typing\nif typing.TYPE_CHECKING:\n    from gptoss_ft.merge.plan import x",
        'LAZY = "gptoss_ft.merge.plan:x"',
    ],
)
@pytest.mark.parametrize("room", ["model", "data", "files", "verify"])
def test_an_upward_or_sideways_import_is_found(tmp_path: Path, room: str, text: str) -> None:
    """However it is written, and wherever in the file; a message or a docstring is no import."""
    plain = f'"""Beside gptoss_ft.merge.plan."""\nimport gptoss_ft\n{text}'
    root = _write(tmp_path, {"merge/plan.py": "x = 1", f"{room}/a.py": plain})
    house = replace(HOUSE, exceptions=())
    assert wrong_arrows(import_graph(root), house) == [
        f"gptoss_ft.{room}.a imports gptoss_ft.merge.plan"
    ]
    allowed = replace(house, exceptions=((f"gptoss_ft.{room}.a", "merge"),))
    assert wrong_arrows(import_graph(root), allowed) == []


def test_what_the_layers_leave_out_is_found(tmp_path: Path) -> None:
    root = _write(tmp_path, {"attic/a.py": "", "model/a.py": "from gptoss_ft.harmony import b"})
    _write(root, {"harmony/b.py": ""})
    assert wrong_arrows(import_graph(root), HOUSE) == [
        "attic is in no layer",
        "gptoss_ft.model.a imports gptoss_ft.harmony.b",
        "nothing needs gptoss_ft.model.tiny -> harmony",
    ]


def test_a_circle_is_found_between_modules_and_between_rooms(tmp_path: Path) -> None:
    """Rooms may go in circles where no two modules do."""
    one = {"merge/a.py": "import gptoss_ft.merge.b", "merge/b.py": "from gptoss_ft.merge import a"}
    modules = import_graph(_write(tmp_path / "one", one))
    assert {"gptoss_ft.merge.a", "gptoss_ft.merge.b"} == set(circle(modules))
    two = {
        "merge/a.py": "import gptoss_ft.verify.b",
        "merge/c.py": "",
        "verify/b.py": "import gptoss_ft.merge.c",
    }
    rooms = import_graph(_write(tmp_path / "two", two))
    assert circle(rooms) == []
    assert set(circle(room_graph(rooms))) == {"merge", "verify"}


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    text = "@d\ndef f():\n    return 1\n\nclass C:\n    async def g(self):\n        a\n        b\n"
    file.write_text(text)
    assert long_parts(file, 8, 3) == []
    assert long_parts(file, 7, 2) == [f"{file}: 8 lines", f"{file}: g has 3 lines"]


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    """None is a question: functions begin with a verb, the rest with a noun."""
    opening = re.compile(r'"""(What|Whether|How|Where|Which|Nothing|As|Of|Likewise) ')
    found = [
        f"{file.name}: {match[0]}"
        for file in (REPOSITORY / PACKAGE).rglob("*.py")
        for match in opening.finditer(file.read_text())
    ]
    assert found == []
