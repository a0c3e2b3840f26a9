"""The folder of a run: made, refused or resumed; its configuration and its manifest."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_ft import __version__
from gptoss_ft.errors import Problem, RunError
from gptoss_ft.files import is_empty, whole_file, write_json

VERSIONED = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "tokenizers")


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
        return self.path / "adapter"

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
        """What the run was made of, and its outcome."""
        return self.path / "manifest.json"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step that is whole; the trainer's state is written last."""
        whole = [path.parent for path in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_run_folder(folder: RunFolder, resume: bool) -> None:
    """Refuses a folder in which something is, unless resuming; touches nothing.

    Raises:
        RunError: with what to do instead.
    """
    if is_empty(folder.path):
        return
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
    if folder.adapter.exists():
        raise RunError(
            Problem(
                "the run is complete; there is nothing to resume",
                str(folder.path),
                mend="choose another name=NAME for a new run",
            )
        )


def open_run(folder: RunFolder, manifest: dict[str, Any], config_yaml: str, resume: bool) -> None:
    """Creates the folder, or checks that a resumed run still has the same base, data and adapter.

    Raises:
        RunError: naming every difference.
    """
    if resume and folder.manifest.is_file():
        before = json.loads(folder.manifest.read_text(encoding="utf-8"))
        changed = [
            Problem(
                "this run was started with another value",
                key,
                f"{manifest[key]}, before: {before.get(key)}",
                "resume with the same model, data, adapter and seed, or start a new run",
            )
            for key in ("base_fingerprint", "data_fingerprint", "adapter", "seed")
            if before.get(key) != manifest[key]
        ]
        if changed:
            raise RunError(changed)
    folder.path.mkdir(parents=True, exist_ok=True)
    with whole_file(folder.path / "config.yaml") as temporary:
        temporary.write_text(config_yaml, encoding="utf-8")
    write_json(folder.manifest, manifest)


def trim_metrics(folder: RunFolder, step: int) -> None:
    """Drops the log lines after `step`: a run that resumes there logs those steps again."""
    if folder.metrics.is_file():
        lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        with whole_file(folder.metrics) as temporary:
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            temporary.write_text("".join(kept), encoding="utf-8")


def outcome(metrics: Path) -> dict[str, Any]:
    """Tokens seen and the first and last logged loss of a run."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "tokens_seen": int(sum(line.get("tokens", 0) for line in lines)),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide the numbers."""
    found = {"gptoss-ft": __version__}
    found.update({name: importlib.metadata.version(name) for name in VERSIONED})
    return found
