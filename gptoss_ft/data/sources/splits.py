"""Splits: the names they have, the files whose names say one, and the choice of one of them.

The words are those by which `datasets` knows train, validation and test files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gptoss_ft.errors import DataError, Problem

TRAIN = "train"
# Word, the split that it means.
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "train": TRAIN,
        "training": TRAIN,
        "validation": "validation",
        "valid": "validation",
        "val": "validation",
        "dev": "validation",
        "test": "test",
        "testing": "test",
        "eval": "test",
        "evaluation": "test",
    }
)
_WORD = re.compile(rf"(?<![^-._ 0-9])(?:{'|'.join(WORDS)})(?![^-._ 0-9])", re.IGNORECASE)
_SHARD = re.compile(r"[-_. ]\d+-of-\d+(?:-[0-9a-f]+)?$")
_NUMBERED = re.compile(r"[-_. ]*(?:part|shard|chunk|batch|file)?[-_. ]*\d+$", re.IGNORECASE)


def meaning(name: str) -> str:
    """Returns which of train, validation and test the name of a split says; empty for none."""
    found = _WORD.search(name)
    return WORDS[found[0].lower()] if found else ""


def split_of(name: str) -> str:
    """Returns the split that a file's or folder's name says, such as `train_sft`; empty for none.

    Numbers of parts do not belong to it, and neither does what stands before the word.
    """
    found = _WORD.search(name)
    if not found:
        return ""
    shorter = without_number(name[found.start() :])
    return WORDS.get(shorter.lower(), shorter)


def without_number(name: str) -> str:
    """Cuts off the number of a part, such as `-00000-of-00002` or `_part3`."""
    return _NUMBERED.sub("", _SHARD.sub("", name)) or name


def by_split(
    files: Iterable[Path], folder: Path, stem: Mapping[Path, str]
) -> dict[str, list[Path]]:
    """Sorts files into the splits that their folders, or else their own names, say.

    Args:
        files: below `folder`.
        folder: the source; its own name says nothing.
        stem: of each file, the name without what says its type.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        parents = file.relative_to(folder).parts[:-1]
        named = next((split for part in parents if (split := split_of(part))), "")
        splits.setdefault(named or split_of(stem[file]), []).append(file)
    if set(splits) == {""}:
        return _sharded(splits[""], folder, stem) or splits
    return splits


def _sharded(
    files: Sequence[Path], folder: Path, stem: Mapping[Path, str]
) -> dict[str, list[Path]]:
    """Sorts `data/NAME-00000-of-00002.parquet`: there every name is that of a split."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        if file.parent == folder / "data" and _SHARD.search(stem[file]):
            splits.setdefault(_SHARD.sub("", stem[file]), []).append(file)
    return splits


def choose_splits(
    names: Sequence[str], wanted: str, where: str, *, guessed: bool = False
) -> list[str]:
    """Returns the splits to read: those wanted, or the one to train on where nothing is said.

    Args:
        names: of the splits that there are.
        wanted: `NAME`, or `NAME+NAME`; empty for the one to train on.
        where: what has these splits, for the problem.
        guessed: whether they were told from the names of files: then `train` beside `train_sft` may
            be a part of the same split.

    Raises:
        DataError: there is none such, or several that training might mean.
    """
    if wanted:
        return [_wanted(names, part, where) for part in wanted.split("+")]
    likely = [name for name in names if meaning(name) == TRAIN]
    if TRAIN in likely and not guessed:
        return [TRAIN]
    if len(likely) == 1:
        return likely
    if not likely and len(names) == 1 and not meaning(names[0]):
        return list(names)
    if likely:
        raise DataError(_problem("there are several splits to train on", likely, names, where))
    raise DataError(_problem("there is no train split", names, names, where))


def _wanted(names: Sequence[str], part: str, where: str) -> str:
    """Finds a split by its name, or by a word that means it."""
    if part in names:
        return part
    meant = WORDS.get(part.lower())
    alike = [name for name in names if meant and meaning(name) == meant]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise DataError(_problem(f"several splits are a {part} split", alike, names, where))
    raise DataError(_problem(f"there is no split `{part}`", names, names, where))


def _problem(what: str, choices: Sequence[str], names: Sequence[str], where: str) -> Problem:
    arguments = [*choices, "+".join(choices)] if len(choices) > 1 else [*choices]
    found = f"the splits {', '.join(names)}" if len(names) > 1 else f"the split {names[0]}"
    return Problem(what, where, found, f"say {alternatives('split', arguments)}")


def alternatives(setting: str, values: Iterable[str]) -> str:
    """Writes the arguments that choose one of `values`."""
    arguments = [shlex.quote(f"data.{setting}={value}") for value in values]
    return f"{' or '.join(arguments)}; beside one of several sources, {setting}: NAME"


def others_note(names: Iterable[str], chosen: Sequence[str], what: str = "splits") -> list[str]:
    """Says which splits are not read."""
    rest = [name for name in names if name not in chosen]
    if not rest:
        return []
    return [f"{what} not read, only {' and '.join(chosen)}: {', '.join(rest)}"]


def check_split(wanted: str, name: str, where: str) -> None:
    """Refuses a wanted split where the rows of a file have none, or `name` says another one.

    Raises:
        DataError: it is another one.
    """
    if wanted:
        choose_splits([split_of(name) or TRAIN], wanted, where)
