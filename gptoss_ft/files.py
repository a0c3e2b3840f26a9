"""Files that are whole or not there at all: write beside the target, flush, rename."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_LEFTOVER = re.compile(r"\..+\.tmp\d+")
_PACKAGE = Path(__file__).parent
_CODE = (".py", ".c")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` when the block succeeds.

    The bytes are flushed to the disk before the rename. If the block raises, nothing stays behind.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it to `path` when the block succeeds.

    `path` must not exist or be an empty folder. If the block raises, nothing stays behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()
        settle_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle_folder(temporary: Path, path: Path) -> None:
    """Flushes a finished folder to the disk and renames it to `path`, where nothing may be."""
    for file in (*temporary.rglob("*"), temporary):
        _fsync(file)
    temporary.replace(path)
    _fsync(path.parent)


def discard_folder(path: Path) -> None:
    """Removes a folder; if that is interrupted, what is left is not under its name."""
    doomed = path.with_name(f".{path.name}.tmp{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


def leftovers(folder: Path) -> list[Path]:
    """Finds files and folders in `folder` that a killed process of this package left unfinished."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if _LEFTOVER.fullmatch(path.name)]


def remove_leftovers(folder: Path) -> None:
    """Removes `leftovers`; to be called where no other process is writing."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON with a final newline, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def sha256_file(path: Path) -> str:
    """Computes the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_empty(path: Path) -> bool:
    """Returns whether nothing is at `path`, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@cache
def code_digest(*places: str) -> str:
    """Returns 16 hexadecimal digits that change with every line of some of this package's code.

    Caches carry it in their keys: what older code computed is not found again. Paths count as well
    as contents, and folders are read with all of their subfolders.

    Args:
        places: folders and files, relative to the package; all must exist.

    Raises:
        FileNotFoundError: a place does not exist, which means that it has been moved.
    """
    digest = hashlib.sha256()
    for place in places:
        root = _PACKAGE / place
        if not root.exists():
            raise FileNotFoundError(root)
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            path = file.relative_to(_PACKAGE)
            if file.suffix in _CODE:
                digest.update(f"{path.as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:16]
