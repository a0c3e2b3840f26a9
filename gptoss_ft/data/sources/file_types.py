"""Types of files by their names: those that hold rows, those that never do, and those refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from gptoss_ft.data.sources.streams import COMPRESSIONS
from gptoss_ft.errors import Problem

JSON, CSV, TEXT, PARQUET, ARROW, EXCEL = "json", "csv", "text", "parquet", "arrow", "excel"
# Of each suffix the type; in a folder, one type is read.
TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".jsonl": JSON,
        ".ndjson": JSON,
        ".jsonlines": JSON,
        ".json": JSON,
        ".parquet": PARQUET,
        ".arrow": ARROW,
        ".feather": ARROW,
        ".csv": CSV,
        ".tsv": CSV,
        ".xlsx": EXCEL,
        ".txt": TEXT,
        ".md": TEXT,
    }
)
_UNPACKED = (PARQUET, ARROW, EXCEL)
READ = f"{', '.join(TYPES)}, the texts among them also with {', '.join(COMPRESSIONS)}"

_RUNS_CODE = "opening it could run code: write JSONL from the program that wrote it"
_ARCHIVE = "unpack it, and give the folder"
_OFFICE = "save it as .xlsx, or as CSV in UTF-8"
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"), _RUNS_CODE),
        **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
        **dict.fromkeys((".xls", ".xlsb", ".xlsm", ".ods"), _OFFICE),
    }
)
# Files about the data, in folders as the Hub and `datasets` write them.
_ABOUT_NAMES = """
    config.json dataset_info.json dataset_infos.json dataset_dict.json state.json croissant.json
    requirements.txt
"""
_ABOUT = frozenset(_ABOUT_NAMES.split())
_CARD = re.compile(
    r"(?:readme|licen[cs]e|copying|notice|citation|changelog|contributing|code_of_conduct|security"
    r"|dataset_?card|data_?card)(?:[-_.][\w.-]*)?",
    re.IGNORECASE,
)


def _plain(file: Path) -> Path:
    return Path(file.stem) if file.suffix.lower() in COMPRESSIONS else Path(file.name)


def type_of(file: Path) -> str:
    """Returns the type of a file by its name; empty where it has none of rows."""
    kind = TYPES.get(_plain(file).suffix.lower(), "")
    return "" if kind in _UNPACKED and file.suffix.lower() in COMPRESSIONS else kind


def stem_of(file: Path) -> str:
    """Returns a file's name without what says its type."""
    plain = _plain(file)
    return plain.stem if plain.suffix.lower() in TYPES else plain.name


def is_metadata(file: Path) -> bool:
    """Returns whether a Hub repository or a saved dataset has the file beside its data."""
    name = file.name.lower()
    is_card = type_of(file) in (TEXT, "") and _CARD.fullmatch(stem_of(file))
    return bool(name in _ABOUT or name.endswith(".lock") or is_card)


def is_hidden(file: Path, folder: Path) -> bool:
    """Returns whether a file below `folder` is hidden, or in a folder that is."""
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


def refused(file: Path) -> Problem:
    """Says why a file that has no type of rows cannot be read."""
    plain = _plain(file).suffix.lower()
    suffix = plain or file.suffix.lower()
    mend = _REFUSED.get(suffix, "")
    if not mend and type_of(Path(_plain(file).name)):
        mend = f"unpack it: only text files are read through {file.suffix}"
    if not mend:
        better = shlex.quote(f"{file}.jsonl")
        mend = f"if it holds JSON: cp {shlex.quote(str(file))} {better}; read are {READ}"
    what = f"a file of the type {suffix} is not read" if suffix else "the file's name has no type"
    return Problem(what, str(file), mend=mend)


def pointer(file: Path) -> Problem | None:
    """Finds a file that only stands for one that Git LFS has not brought yet."""
    with file.open("rb") as stream:
        if not stream.read(64).startswith(b"version https://git-lfs.github.com/spec"):
            return None
    mend = f"git -C {shlex.quote(str(file.parent))} lfs pull"
    found = "the address of its content in Git LFS"
    return Problem("the file has not been downloaded", str(file), found, mend)
