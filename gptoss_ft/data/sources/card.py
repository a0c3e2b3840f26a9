"""The card of a Hub dataset (README.md): which files are which subset and split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gptoss_ft.data.sources.splits import TRAIN, alternatives
from gptoss_ft.errors import DataError, Problem

# Patterns of files, or of files by split; None where the subset names a folder or nothing.
Patterns = Mapping[str, Sequence[str]] | None

_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", re.DOTALL)
_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def read_card(folder: Path) -> list[Mapping[str, Any]]:
    """Reads the subsets that a folder's README.md declares; none where it declares none.

    Raises:
        DataError: its front matter is not what `datasets` reads.
    """
    card = folder / "README.md"
    if not card.is_file():
        return []
    lines = card.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return []
    try:
        front = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError as error:
        mend = "repair it, or give the path of one data file"
        what = "the front matter of the dataset's card is not YAML"
        raise DataError(Problem(what, str(card), " ".join(str(error).split()), mend)) from error
    configs = front.get("configs") if isinstance(front, dict) else None
    if configs is None:
        return []
    if isinstance(configs, list) and all(_is_config(config) for config in configs):
        return [{**config, "config_name": str(config["config_name"])} for config in configs]
    mend = "write configs: [{config_name: NAME, data_files: PATTERN}], or give a file's path"
    raise DataError(Problem("the card's `configs` are not read", str(card), str(configs), mend))


def _is_config(config: Any) -> bool:
    return isinstance(config, dict) and "config_name" in config


def choose_config(
    configs: Sequence[Mapping[str, Any]], subset: str, where: str
) -> Mapping[str, Any]:
    """Returns the subset that is asked for, or the default one.

    Raises:
        DataError: there is none such, or several and none is the default.
    """
    names = [config["config_name"] for config in configs]
    if subset:
        found = [config for config in configs if config["config_name"] == subset]
    else:
        found = [config for config in configs if config.get("default") is True]
        found = found or [config for config in configs if config["config_name"] == "default"]
        found = found or (list(configs) if len(configs) == 1 else [])
    if found:
        return found[0]
    raise DataError(subset_problem(names, subset, where))


def subset_problem(names: Sequence[str], subset: str, where: str) -> Problem:
    """Says that a subset has to be chosen, or that there is none of this name."""
    what = f"there is no subset `{subset}`" if subset else "the dataset has several subsets"
    found = f"the subsets {', '.join(names)}" if names else "no subset"
    mend = f"say {alternatives('subset', names)}" if names else "leave out data.subset"
    return Problem(what, where, found, mend)


def patterns_of(config: Mapping[str, Any], where: str) -> Patterns:
    """Reads the `data_files` of a subset: patterns of files by split.

    Raises:
        DataError: they are not what `datasets` reads.
    """
    given = config.get("data_files")
    if given is None:
        return None
    items = given if isinstance(given, list) else [given]
    if all(isinstance(item, str) for item in items):
        return {TRAIN: items}
    if isinstance(given, dict):
        items = [{"split": split, "path": path} for split, path in given.items()]
    splits: dict[str, list[str]] = {}
    for item in items:
        path = item.get("path") if isinstance(item, dict) else None
        paths = [part for part in (path if isinstance(path, list) else [path]) if part]
        if not paths or not all(isinstance(part, str) for part in paths):
            mend = "write data_files: [{split: train, path: PATTERN}], or give a file's path"
            raise DataError(Problem("the card's `data_files` are not read", where, str(item), mend))
        splits.setdefault(str(item.get("split", TRAIN)), []).extend(paths)
    return splits


def matching(patterns: Sequence[str], files: Sequence[Path], folder: Path) -> list[Path]:
    """Returns the files that fit one of the patterns, in the order of the patterns."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        expression = re.compile(_expression(pattern.removeprefix("./")))
        for file in files:
            if expression.fullmatch(file.relative_to(folder).as_posix()):
                found[file] = None
    return list(found)


def _expression(pattern: str) -> str:
    """Writes a pattern of paths as a regular expression; `**` crosses folders."""
    return "".join(
        _WILD.get(part) or (part.replace("[!", "[^") if len(part) > 1 else re.escape(part))
        for part in _PARTS.findall(pattern)
    )
