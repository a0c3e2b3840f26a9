"""The rooms of the package as its files import each other, and as CONTRIBUTING.md draws them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = "gptoss_ft"
Graph = dict[str, set[str]]


@dataclass(frozen=True)
class House:
    """The rooms and their arrows; a room is a folder of the package, or a module beside them.

    Attributes:
        layers: rooms from the top to the bottom. An import points to a lower layer, which need not
            be the next one, and never to another room of the same layer.
        branch: rooms, upper ones first, that the layers from `branch_below` upwards import too.
            They themselves import each other, downwards, and `shared`.
        branch_below: the lowest layer, by its first room, that imports the branch.
        shared: rooms that every room imports. They import only each other.
        exceptions: module and room of an import that is allowed all the same.
    """

    layers: tuple[tuple[str, ...], ...]
    branch: tuple[str, ...]
    branch_below: str
    shared: tuple[str, ...]
    exceptions: tuple[tuple[str, str], ...]

    @property
    def rooms(self) -> set[str]:
        """Every room of the house."""
        return {room for layer in self.layers for room in layer} | {*self.branch, *self.shared}

    def allowed(self, room: str) -> set[str]:
        """Returns the rooms that a room may import, itself among them."""
        found = {room, *self.shared}
        if room in self.branch:
            found.update(self.branch[self.branch.index(room) :])
        level = next((n for n, layer in enumerate(self.layers) if room in layer), None)
        if level is not None:
            found.update(other for layer in self.layers[level + 1 :] for other in layer)
            lowest = next(n for n, layer in enumerate(self.layers) if self.branch_below in layer)
            if level <= lowest:
                found.update(self.branch)
        return found


def import_graph(root: Path, lazy: bool = True) -> Graph:
    """Draws who imports whom, for every module below a package folder.

    Counts imports at the top of a file, inside functions and under `TYPE_CHECKING`, relative ones,
    and strings that name a module (`"gptoss_ft.x.y"` or `"gptoss_ft.x:name"`), as tables of lazy
    imports hold. Importing the package itself, for its version, counts as nothing.

    Args:
        root: the package's folder.
        lazy: whether strings count.
    """
    modules = {_module_name(file, root): file for file in root.rglob("*.py")}
    return {
        name: {
            target
            for text in _imported(ast.parse(file.read_text()), name, file.stem == "__init__", lazy)
            if (target := _known(text, modules)) not in (None, PACKAGE, name)
        }
        for name, file in modules.items()
    }


def _module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join([PACKAGE, *(part for part in parts if part != "__init__")])


def _imported(tree: ast.AST, name: str, is_package: bool, lazy: bool) -> Iterator[str]:
    """Yields the dotted names that a module imports: of modules, or of what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = name.split(".") if is_package else name.split(".")[:-1]
                base = parents[: len(parents) - node.level + 1]
                module = ".".join([*base, *filter(None, [module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif lazy and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(rf"\A({PACKAGE}(?:\.\w+)+)(?::\w+)?\Z", node.value)


def _known(name: str, modules: dict[str, Path]) -> str | None:
    """Returns the longest beginning of a dotted name that is a module of the package."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def room_of(module: str) -> str:
    """Returns the room of a module: `gptoss_ft.data.rows -> data`; `api` for the package itself."""
    return module.split(".")[1] if "." in module else "api"


def wrong_arrows(graph: Graph, house: House) -> list[str]:
    """Lists imports that the house does not allow, and exceptions that nothing needs any more."""
    strangers = {room_of(module) for module in graph} - house.rooms
    found, used = [f"{room} is in no layer" for room in sorted(strangers)], set()
    for module, targets in sorted(graph.items()):
        room = room_of(module)
        if room in strangers:
            continue
        for target in sorted(targets):
            exception = (module, room_of(target))
            if exception[1] in house.allowed(room):
                continue
            if exception in house.exceptions:
                used.add(exception)
            else:
                found.append(f"{module} imports {target}")
    found += [f"nothing needs {a} -> {b}" for a, b in house.exceptions if (a, b) not in used]
    return found


def circle(graph: Graph) -> list[str]:
    """Returns one circle of imports, its first node at both ends, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def room_graph(graph: Graph) -> Graph:
    """Draws the same imports between rooms."""
    rooms: Graph = {}
    for module, targets in graph.items():
        found = rooms.setdefault(room_of(module), set())
        found.update(room_of(target) for target in targets)
        found.discard(room_of(module))
    return rooms


def drawn(page: str) -> House:
    """Reads the house from the arrows in a page's fenced block that has `everything →` in it."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (block,) = (text for text in blocks if "everything →" in text)
    lines = [line.partition("#")[0].rstrip() for line in block.splitlines()]
    chains = re.sub(r"\n\s+", " ", "\n".join(filter(None, lines))).splitlines()
    layers, branch, shared, *exceptions = (
        [tuple(step.split()) for step in chain.split("→")] for chain in chains
    )
    (first,) = shared[0]
    lowest, *branch_rooms = branch
    assert first == "everything"
    return House(
        layers=tuple(layers),
        branch=tuple(room for (room,) in branch_rooms),
        branch_below=lowest[-1],
        shared=shared[1],
        exceptions=tuple(
            (f"{PACKAGE}.{module.removesuffix('.py').replace('/', '.')}", room)
            for (module,), (room,) in exceptions
        ),
    )


def long_parts(file: Path, lines: int, function_lines: int) -> list[str]:
    """Lists a file that is too long, and its functions that are, decorators not counted."""
    text = file.read_text()
    found = []
    if (count := len(text.splitlines())) > lines:
        found.append(f"{file}: {count} lines")
    nodes = ast.walk(ast.parse(text)) if file.suffix == ".py" else ()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > function_lines:
                found.append(f"{file}: {node.name} has {count} lines")
    return found
