"""Checks of an output's place: not over its inputs or other files, and only if it fits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gptoss_ft.errors import Problem
from gptoss_ft.files import is_empty


def place_problems(
    out: Path, inputs: Mapping[str, Iterable[Path]], *, is_file: bool = False, begun: bool = False
) -> Iterator[Problem]:
    """Checks whether `out` is one of the inputs, is in use, or cannot be written to.

    Args:
        out: what is to be created: a folder, or a file.
        inputs: the folders that are read, by the setting that names them.
        is_file: `out` is a file, and not even an empty folder may be there.
        begun: what is in `out` belongs to this very output.
    """
    where = f"out={out}"
    for name, paths in inputs.items():
        if out.resolve() in [path.resolve() for path in paths]:
            yield Problem(f"out is the {name} itself", where, mend="choose another place")
            return
    if not begun and (out.exists() if is_file else not is_empty(out)):
        what = "the folder is not empty" if out.is_dir() else "a file is in the way"
        yield Problem(what, where, mend="choose another place or remove it")
        return
    parent = existing_parent(out.parent if is_file else out)
    if not parent.is_dir():
        mend = "choose another place or remove it"
        yield Problem("a file is in the way", where, str(parent), mend)
        return
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        mend = "choose a folder that you may write to"
        yield Problem("the target cannot be written to", where, str(error), mend)


def space_problems(out: Path, needed: int, free: int) -> Iterator[Problem]:
    """Checks whether `needed` more bytes fit into the `free` ones of the disk of `out`."""
    if needed > free:
        yield Problem(
            "the disk has too little space",
            f"out={out}",
            f"{free / 1e9:.3f} GB free, {needed / 1e9:.3f} GB needed",
            "free some space or choose a folder on another disk",
        )


def free_bytes(out: Path) -> int:
    """Returns the free space on the disk of `out`, which need not exist yet."""
    return shutil.disk_usage(existing_parent(out)).free


def existing_parent(path: Path) -> Path:
    """Returns the path itself, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
