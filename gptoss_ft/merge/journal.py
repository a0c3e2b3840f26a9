"""The record of a merge under way, so that a killed one goes on where it stopped.

The journal lies in the output folder from the first shard on and is removed when the manifest is
there. It names what goes into the merge, and each finished file with its SHA-256 and the statistics
of its tensors. A file counts as finished only if its bytes still have that hash. The manifest
names the same inputs and the hash of every file: it is the sign of completion.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptoss_ft.errors import MergeError, Problem
from gptoss_ft.files import sha256_file, write_json
from gptoss_ft.merge.statistics import TensorStatistics

JOURNAL_NAME = "merge_journal.json"
MANIFEST_NAME = "manifest.json"
FORMAT = 1
_REMOVE = "remove the folder, or choose another one"


@dataclass(frozen=True)
class FinishedShard:
    """A file that is whole.

    Attributes:
        sha256: of its bytes, hexadecimal.
        statistics: by tensor, for those that the merge changed.
    """

    sha256: str
    statistics: dict[str, TensorStatistics] = field(default_factory=dict)


@dataclass
class Journal:
    """The finished files of an output folder.

    Attributes:
        folder: the output folder.
        inputs: what determines every byte of the output, as JSON values.
        shards: the finished files by name.
    """

    folder: Path
    inputs: dict[str, Any]
    shards: dict[str, FinishedShard] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self.folder / JOURNAL_NAME

    def add(self, file: str, shard: FinishedShard) -> None:
        """Records a file that is whole and under its final name."""
        self.shards[file] = shard
        self.save()

    def save(self) -> None:
        """Writes the journal."""
        shards = {file: asdict(shard) for file, shard in self.shards.items()}
        write_json(self.path, {"format": FORMAT, "inputs": self.inputs, "shards": shards})

    def drop_damaged(self) -> None:
        """Forgets the files that are gone or no longer have their hash."""
        for file, shard in list(self.shards.items()):
            path = self.folder / file
            if not path.is_file() or sha256_file(path) != shard.sha256:
                del self.shards[file]


def open_journal(folder: Path, inputs: dict[str, Any]) -> Journal:
    """Opens the journal of a merge begun in `folder`, or starts a new one.

    Raises:
        MergeError: the folder holds a merge of something else.
    """
    journal = Journal(folder, inputs)
    if not journal.path.is_file():
        return journal
    value = require_same(journal.path, inputs)
    for file, shard in value["shards"].items():
        statistics = {name: TensorStatistics(**item) for name, item in shard["statistics"].items()}
        journal.shards[file] = FinishedShard(shard["sha256"], statistics)
    return journal


def is_complete(folder: Path, inputs: dict[str, Any]) -> bool:
    """Checks whether `folder` holds this very merge, finished; every file is hashed again.

    Raises:
        MergeError: the folder holds another checkpoint, or a file of this one was changed.
    """
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        return False
    value = require_same(manifest, inputs)
    changed = [
        Problem("a file of this finished merge was changed", str(folder / file), mend=_REMOVE)
        for file, sha256 in value["files"].items()
        if not (folder / file).is_file() or sha256_file(folder / file) != sha256
    ]
    if changed:
        raise MergeError(changed)
    return True


def require_same(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Reads a journal or manifest and refuses one of other inputs.

    Raises:
        MergeError: it is none, or one of other inputs; each that differs is named.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergeError(
            Problem("this is not valid JSON", str(path), str(error), _REMOVE)
        ) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or "inputs" not in value:
        raise MergeError(Problem("the folder holds another checkpoint", str(path), mend=_REMOVE))
    there = value["inputs"]
    problems = [
        Problem(
            f"the folder holds a merge with another `{name}`",
            str(path),
            f"{there.get(name)!r} there, {inputs.get(name)!r} now",
            f"say the same as before, or {_REMOVE}",
        )
        for name in sorted(there.keys() | inputs.keys())
        if there.get(name) != inputs.get(name)
    ]
    if problems:
        raise MergeError(problems)
    return value


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second merge out of `folder`; the lock ends with the process.

    Raises:
        MergeError: another process is writing there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        problem = Problem("another merge is writing here", f"out={folder}", mend="wait for it")
        raise MergeError(problem) from error
    finally:
        os.close(descriptor)
