"""The folder of a run: its paths, whether it may be used, and its record of the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gptoss_ft.data.bad import DROPPED
from gptoss_ft.errors import Problem, RunError
from gptoss_ft.files import atomic_file, discard_folder, is_empty, leftovers, remove_leftovers
from gptoss_ft.train import checkpoints
from gptoss_ft.train.manifest import ADAPTER, COMPLETE, Manifest, read_manifest


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Attributes:
        path: `output/name`.
    """

    path: Path

    @property
    def adapter(self) -> Path:
        """The trained adapter, PEFT layout."""
        return self.path / ADAPTER

    @property
    def checkpoints(self) -> Path:
        """Checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object per log line."""
        return self.path / "metrics.jsonl"

    @property
    def manifest(self) -> Path:
        """The run's inputs, and its result."""
        return self.path / "manifest.json"

    @property
    def dropped(self) -> Path:
        """The bad rows that were left out of the data, one JSON object for each; may be absent."""
        return self.path / DROPPED

    @property
    def config(self) -> Path:
        """The configuration that the run was started with, and a comment for each resume."""
        return self.path / "config.yaml"


def check_run_folder(folder: RunFolder, resume: bool) -> Manifest | None:
    """Refuses a folder that is not empty, unless it holds a run to resume; touches nothing.

    Returns:
        the manifest of the run to resume; None for a run that starts.

    Raises:
        RunError: with what to do instead.
    """
    if is_empty(folder.path):
        return None
    if resume and len(leftovers(folder.path)) == len(list(folder.path.iterdir())):
        return None  # killed before it wrote its first file
    if not resume:
        raise RunError(
            Problem(
                "the run folder is not empty",
                str(folder.path),
                mend="choose another name=NAME, say resume=true to go on with it, or remove it",
            )
        )
    if not folder.manifest.is_file():
        raise RunError(
            Problem(
                "there is no manifest.json, so this is not a run that can be resumed",
                str(folder.path),
                mend="choose another name=NAME",
            )
        )
    before = read_manifest(folder.manifest)
    if folder.adapter.exists() and before.status == COMPLETE:
        raise RunError(
            Problem(
                "the run is complete; there is nothing to resume",
                str(folder.path),
                mend="choose another name=NAME for a new run",
            )
        )
    checkpoints.newest_checkpoint(folder.checkpoints)
    return before


def make_folder(folder: RunFolder) -> None:
    """Makes the folder, and removes what a killed process left unfinished in it.

    An adapter that was written before the manifest could say so is removed as well.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.path)
    if folder.adapter.exists():
        discard_folder(folder.adapter)


def keep_config(folder: RunFolder, config_yaml: str, changed: Mapping[str, Any] | None) -> None:
    """Keeps the configuration of the start, with a comment for each time the run is resumed.

    Args:
        folder: the run.
        config_yaml: the composed configuration.
        changed: settings of a resumed run that differ from the start; None when it starts.
    """
    if changed is not None and folder.config.is_file():
        config_yaml = folder.config.read_text(encoding="utf-8") + _resumed(folder, changed)
    with atomic_file(folder.config) as temporary:
        temporary.write_text(config_yaml, encoding="utf-8")


def _resumed(folder: RunFolder, changed: Mapping[str, Any]) -> str:
    """Returns a YAML comment that says when and where a run was resumed, and what was changed."""
    newest = checkpoints.newest_checkpoint(folder.checkpoints)
    where = newest.name if newest else "the start"
    values = [f"{name}={json.dumps(value)}" for name, value in changed.items()]
    settings = " ".join(values) or "nothing changed"
    return f"# resumed {datetime.now(UTC).isoformat(timespec='seconds')} from {where}: {settings}\n"


def trim_metrics(folder: RunFolder, step: int) -> None:
    """Drops the log lines that a run which resumes after `step` writes again.

    Those are the lines of later steps, the totals at the end, and a last line that was cut off.
    """
    if folder.metrics.is_file():
        lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        kept = [text for text, log in whole if log["step"] <= step and "train_runtime" not in log]
        with atomic_file(folder.metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
