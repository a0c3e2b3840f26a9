"""Files that come with the package: configs, recipes and bundled data."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> Path:
    """Returns `configs`, `recipes` or `data`: beside the package in a checkout, inside a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "assets" / name
    return inside if inside.is_dir() else package.parent / name


def group_options(home: str, group: str, extra: Path | None = None) -> dict[str, str]:
    """Returns the choices of a config group, each with the first comment of its file.

    Args:
        home: `configs`, or `recipes` for a folder of recipes.
        group: its folder there.
        extra: a folder of the user's own configs, as with `--config-dir`.
    """
    homes = [asset(home), *([extra] if extra else [])]
    files = sorted(file for folder in homes for file in (folder / group).glob("*.yaml"))
    return {file.stem: _first_comment(file) for file in files}


def _first_comment(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line.removeprefix("# ")
    return ""
