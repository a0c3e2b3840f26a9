"""Named maps: how the columns of a well-known dataset are read, as YAML and not as code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from gptoss_ft.data.layouts import names
from gptoss_ft.data.layouts.columns import paths_of
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.resources import asset
from gptoss_ft.validation import did_you_mean, listed

KEYS = ("format", "columns", "ignore")


@lru_cache(maxsize=1)
def map_names() -> tuple[str, ...]:
    """Returns the names of the maps that come with the package."""
    return tuple(sorted(file.stem for file in (asset("configs") / "maps").glob("*.yaml")))


def load_map(name: str, where: str) -> Mapping[str, Any]:
    """Loads a map.

    Args:
        name: one of `map_names`, or a YAML file.
        where: the setting that names it, for problems.

    Returns:
        Any of `format`, `columns` and `ignore`.

    Raises:
        ConfigError: there is no such map, or it is not one.
    """
    file = Path(name)
    if file.suffix in (".yaml", ".yml"):
        return _loaded(file, where)
    known = map_names()
    if name not in known:
        mend = f"{did_you_mean(name, known)}write {listed(known)}, or the path of a YAML file"
        raise ConfigError(Problem("there is no such map", where, repr(name), mend))
    return packaged_map(name)


@lru_cache(maxsize=256)
def packaged_map(name: str) -> Mapping[str, Any]:
    """Loads a map that comes with the package, once: errors of a million rows may name it."""
    return _loaded(asset("configs") / "maps" / f"{name}.yaml", "map")


def _loaded(file: Path, where: str) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        mend = "correct the path"
        raise ConfigError(Problem("the map cannot be read", where, str(error), mend)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mend = "write YAML with `columns:` and `ignore:`"
        raise ConfigError(Problem("the map is not YAML", str(file), str(error), mend)) from error
    if problems := _content_problems(content, str(file)):
        raise ConfigError(problems)
    return content


def map_problems(name: str, where: str) -> list[Problem]:
    """Finds what is wrong with the map that a setting names; nothing where it names none."""
    if not name:
        return []
    try:
        load_map(name, where)
    except ConfigError as error:
        return list(error.problems)
    return []


def matching_maps(given: Collection[str]) -> list[str]:
    """Returns the maps that come with the package and read all of their columns from a row.

    Args:
        given: the row's columns that hold something.
    """
    there = set(given)
    found = [(-len(heads), name) for name, heads in _heads().items() if heads and heads <= there]
    return [name for _, name in sorted(found)]


@lru_cache(maxsize=1)
def _heads() -> Mapping[str, frozenset[str]]:
    """Returns the columns that each map of the package reads."""
    return {
        name: frozenset(
            path.split(".")[0]
            for source in (packaged_map(name).get("columns") or {}).values()
            for path in paths_of(source)
        )
        for name in map_names()
    }


def _content_problems(content: Any, where: str) -> list[Problem]:
    if not isinstance(content, Mapping):
        mend = "write `columns: {prompt: NAME, completion: NAME}`"
        return [Problem("the map is not an object", where, repr(content)[:80], mend)]
    found = [
        Problem("unknown key of a map", where, repr(key), f"write {listed(KEYS)}")
        for key in content
        if key not in KEYS
    ]
    ignore = content.get("ignore") or []
    if not (isinstance(ignore, list) and all(isinstance(name, str) for name in ignore)):
        found.append(Problem("`ignore` is not a list of names", where, repr(ignore)[:80]))
    columns = content.get("columns") or {}
    return found + columns_problems(columns, where)


def columns_problems(columns: Any, where: str) -> list[Problem]:
    """Finds what no format reads, and values that name no column."""
    if not isinstance(columns, Mapping):
        mend = "write {prompt: NAME, completion: NAME}"
        return [Problem("not an object of names", where, repr(columns)[:80], mend)]
    found = []
    for slot, source in columns.items():
        if slot not in names.CANONICAL:
            mend = f"{did_you_mean(str(slot), names.CANONICAL)}write {listed(names.CANONICAL)}"
            found.append(Problem("no format reads this", f"{where}.{slot}", repr(slot), mend))
        elif not (isinstance(source, str) and source):
            mend = "write the name of a column, a path or a template"
            found.append(Problem("not the name of a column", f"{where}.{slot}", repr(source), mend))
    return found
