"""A source to its files: what in a folder is data, and which of it is the split to read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.sources.card import (
    choose_config,
    matching,
    patterns_of,
    read_card,
    subset_problem,
)
from gptoss_ft.data.sources.file_types import (
    EXCEL,
    JSON,
    READ,
    TEXT,
    is_hidden,
    is_metadata,
    pointer,
    refused,
    stem_of,
    type_of,
)
from gptoss_ft.data.sources.splits import (
    TRAIN,
    by_split,
    check_split,
    choose_splits,
    meaning,
    others_note,
    without_number,
)
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.validation import close_matches

_NAMED = 5  # how many files a message names


class Found(NamedTuple):
    """The files of a source.

    Attributes:
        files: in the order in which they are read; none for a Hub dataset.
        notes: what the user is told of the choice.
        split: what is left to choose inside each file.
    """

    files: list[Path]
    notes: list[str]
    split: str = ""


def find_files(source: SourceOptions, hub: bool = False) -> Found:
    """Finds the files of a source.

    Raises:
        DataError: nothing is there, nothing that can be read, several splits or subsets of which
            one has to be chosen, or a Hub name without permission for the network.
    """
    path = Path(source.path)
    if path.is_dir():
        found = _folder(path, source)
    elif path.is_file():
        found = _file(path, source)
    elif hub and source.path.count("/") == 1 and not source.path.startswith((".", "/")):
        return Found([], [])
    else:
        raise DataError(_missing(path))
    missing = [problem for file in found.files if (problem := pointer(file))]
    if missing:
        raise DataError(missing)
    return found


def _file(file: Path, source: SourceOptions) -> Found:
    """Takes a file as it is, whatever split its name says."""
    if source.subset:
        raise DataError(subset_problem([], source.subset, str(file)))
    kind = type_of(file)
    if not kind and (file.suffix or not _begins_as_json(file)):
        raise DataError(refused(file))
    if kind not in (JSON, EXCEL, ""):
        check_split(source.split, stem_of(file), str(file))
    return Found([file], [], source.split)


def _begins_as_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(64).lstrip()[:1] in (b"{", b"[")


def _folder(folder: Path, source: SourceOptions) -> Found:
    if (folder / "dataset_dict.json").is_file():
        names = _described(folder / "dataset_dict.json", "splits")
        chosen = choose_splits(names, source.split, str(folder))
        files = [file for name in chosen for file in _saved(folder / name)]
        return Found(files, others_note(names, chosen))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return Found(_saved(folder), [])
    there = [
        file for file in sorted(folder.rglob("*")) if not is_hidden(file, folder) and file.is_file()
    ]
    data = [file for file in there if type_of(file) and not is_metadata(file)]
    if not data:
        raise DataError(_no_data(folder, there))
    configs = read_card(folder)
    if configs:
        config = choose_config(configs, source.subset, str(folder))
        splits = _declared(config, data, folder)
        if splits:
            return _chosen(splits, source, folder, [])
        data = _below(data, folder / str(config.get("data_dir", ".")), folder)
    elif source.subset:
        data = _below(data, folder / source.subset, folder)
    data, notes = _without_texts(data, folder)
    other = [file for file in there if not type_of(file) and not is_metadata(file)]
    notes += _note("files that hold no rows", other, folder)
    return _by_name(data, source, folder, notes)


def _by_name(data: list[Path], source: SourceOptions, folder: Path, notes: list[str]) -> Found:
    """Chooses among files whose names say their splits."""
    splits = by_split(data, folder, {file: stem_of(file) for file in data})
    unnamed = splits.pop("", [])
    if not splits:
        inside = any(type_of(file) in (JSON, EXCEL) for file in unnamed)
        left = source.split if inside else ""
        whole = replace(source, split="") if left else source
        found = _chosen({TRAIN: unnamed}, whole, folder, notes)
        return found._replace(split=left)
    if unnamed and not source.split and not any(meaning(name) == TRAIN for name in splits):
        named = [file for files in splits.values() for file in files]
        what = "some files of the folder say that they are not to train on, and others say nothing"
        mend = f"say {_paths(unnamed)}"
        raise DataError(Problem(what, str(folder), _names([*named, *unnamed], folder), mend))
    notes += _note("files that name no split", unnamed, folder)
    return _chosen(splits, source, folder, notes, guessed=True)


def _chosen(
    splits: Mapping[str, Sequence[Path]],
    source: SourceOptions,
    folder: Path,
    notes: list[str],
    guessed: bool = False,
) -> Found:
    chosen = choose_splits(list(splits), source.split, str(folder), guessed=guessed)
    files = [file for name in chosen for file in splits[name]]
    copies = _copies(files)
    if copies:
        what = "the folder holds the same name in several types of file, maybe copies"
        mend = f"say {_paths(copies)}"
        raise DataError(Problem(what, str(folder), _names(copies, folder), mend))
    return Found(files, [*notes, *others_note(splits, chosen)])


def _declared(
    config: Mapping[str, Any], data: Sequence[Path], folder: Path
) -> dict[str, list[Path]]:
    """Finds the files that the card gives to the splits of a subset."""
    name, card = config["config_name"], folder / "README.md"
    patterns = patterns_of(config, str(card))
    splits = {split: matching(parts, data, folder) for split, parts in (patterns or {}).items()}
    empty = [split for split, files in splits.items() if not files]
    if patterns and len(empty) == len(splits):
        found = ", ".join(part for parts in patterns.values() for part in parts)
        mend = "download the dataset as a whole, or give the path of one file"
        what = f"none of the files is here that the card gives to the subset {name}"
        raise DataError(Problem(what, str(card), found, mend))
    return {split: files for split, files in splits.items() if files}


def _below(data: Sequence[Path], inner: Path, folder: Path) -> list[Path]:
    """Returns the files in a folder that is a subset."""
    found = [file for file in data if inner in file.parents]
    if found:
        return found
    names = sorted({file.relative_to(folder).parts[0] for file in data if file.parent != folder})
    raise DataError(subset_problem(names, inner.name, str(folder)))


def _without_texts(data: list[Path], folder: Path) -> tuple[list[Path], list[str]]:
    """Leaves out texts beside rows, and a few JSON files beside tables: they say something about
    them.
    """
    rows = [file for file in data if type_of(file) != TEXT]
    tables = [file for file in rows if file.suffix.lower() != ".json"]
    if 2 * len(tables) > len(rows) and not any(type_of(file) == JSON for file in tables):
        rows = tables
    kept = rows or data
    return kept, _note("files beside the rows", [file for file in data if file not in kept], folder)


def _copies(files: Sequence[Path]) -> list[Path]:
    """Finds files whose names differ only in what they say of the type."""
    types: dict[Path, dict[str, Path]] = {}
    for file in files:
        stem = without_number(stem_of(file))
        suffix = file.name.removeprefix(stem_of(file))
        types.setdefault(file.parent / stem, {}).setdefault(suffix, file)
    return [file for same in types.values() if len(same) > 1 for file in same.values()]


def _saved(folder: Path) -> list[Path]:
    """Lists the files that `Dataset.save_to_disk` wrote."""
    state = folder / "state.json"
    files = [folder / str(item.get("filename")) for item in _described(state, "_data_files")]
    lost = [file for file in files if not file.is_file()]
    if lost or not files:
        what, mend = "files of the saved dataset are missing", "copy the folder as a whole"
        raise DataError(Problem(what, str(folder), _names(lost, folder), mend))
    return files


def _described(file: Path, key: str) -> list[Any]:
    """Reads a list from a file that `save_to_disk` wrote."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return list(value[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "save the dataset again, or give the path of one data file"
        what = "the file does not describe a saved dataset"
        raise DataError(Problem(what, str(file), repr(error), mend)) from error


def _note(what: str, files: Sequence[Path], folder: Path) -> list[str]:
    return [f"{what} not read in {folder}: {_names(files, folder)}"] if files else []


def _names(files: Sequence[Path], folder: Path) -> str:
    names = [file.relative_to(folder).as_posix() for file in files]
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _paths(files: Iterable[Path]) -> str:
    """Writes the arguments that choose one of some files."""
    arguments = [shlex.quote(f"data.path={file}") for file in files]
    return " or ".join(arguments[:_NAMED])


def _no_data(folder: Path, there: Sequence[Path]) -> Problem:
    about = [refused(file) for file in there if not is_metadata(file)]
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:_NAMED])
    mend = f"give a folder with files that end in {READ}"
    if about:
        mend = f"{about[0].where}: {about[0].mend}"
    return Problem("the folder holds no data file", str(folder), found or "an empty folder", mend)


def _missing(path: Path) -> Problem:
    folder = path.parent
    if not folder.is_dir():
        mend = "correct the path, or say hub=true for a dataset on the Hub"
        return Problem("no such file", str(path), f"no folder {folder}", mend)
    names = sorted(entry.name for entry in folder.iterdir())
    near = close_matches(path.name, names, cutoff=0.5)
    near = near or [name for name in names if type_of(Path(name))][:3]
    mend = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
    return Problem("no such file", str(path), mend=mend or "correct the path")
