"""The folder of a run: made, refused or resumed; its configuration and its manifest."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_ft import __version__
from gptoss_ft.errors import Problem, RunError
from gptoss_ft.files import (
    discard_folder,
    is_empty,
    leftovers,
    remove_leftovers,
    whole_file,
    write_json,
)
from gptoss_ft.train import checkpoints

# What a run that is resumed must have been started with.
SAME = ("base_fingerprint", "data_fingerprint", "adapter", "init_fingerprint", "seed")
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

    def status(self) -> str:
        """What the manifest says of the run: `running`, `complete`, or nothing."""
        if not self.manifest.is_file():
            return ""
        found: str = json.loads(self.manifest.read_text(encoding="utf-8")).get("status", "")
        return found


def check_run_folder(folder: RunFolder, resume: bool) -> None:
    """Refuses a folder in which something is, unless resuming; touches nothing.

    Raises:
        RunError: with what to do instead.
    """
    if is_empty(folder.path):
        return
    if resume and len(leftovers(folder.path)) == len(list(folder.path.iterdir())):
        return  # killed before it wrote its first file
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
    if folder.adapter.exists() and folder.status() == "complete":
        raise RunError(
            Problem(
                "the run is complete; there is nothing to resume",
                str(folder.path),
                mend="choose another name=NAME for a new run",
            )
        )
    checkpoints.newest_checkpoint(folder.checkpoints)


def open_run(folder: RunFolder, manifest: dict[str, Any], config_yaml: str, resume: bool) -> None:
    """Creates the folder, or checks that a resumed run still has the same base, data and adapter.

    Files that a killed process left unfinished are removed, and an adapter that was written before
    the manifest could say so.

    Raises:
        RunError: naming every difference.
    """
    if resume and folder.manifest.is_file():
        before = json.loads(folder.manifest.read_text(encoding="utf-8"))
        changed = [
            Problem(
                "this run was started with another value",
                key,
                f"{manifest.get(key)}, before: {before.get(key)}",
                "resume with the same model, data, adapter and seed, or start a new run",
            )
            for key in SAME
            if before.get(key) != manifest.get(key)
        ]
        if changed:
            raise RunError(changed)
    folder.path.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.path)
    if folder.adapter.exists():
        discard_folder(folder.adapter)
    write_json(folder.manifest, manifest)  # first: it is what makes the folder a run
    with whole_file(folder.path / "config.yaml") as temporary:
        temporary.write_text(config_yaml, encoding="utf-8")


def trim_metrics(folder: RunFolder, step: int) -> None:
    """Drops the log lines that a run which resumes after `step` writes again.

    Those are the lines of later steps, the totals at the end, and a last line that was cut off.
    """
    if folder.metrics.is_file():
        lines = folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [(line, json.loads(line)) for line in lines if line.endswith("\n")]
        kept = [text for text, log in whole if log["step"] <= step and "train_runtime" not in log]
        with whole_file(folder.metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def outcome(metrics: Path) -> dict[str, Any]:
    """Tokens seen, first and last logged loss; of preference runs the last epoch's accuracy.

    The accuracy is the share of comparisons in which the reward is on the right side, as a mean
    over the log lines of the last epoch.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    found = {
        "tokens_seen": int(sum(line.get("tokens", 0) for line in lines)),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
    ratings = [line for line in lines if "rewards/accuracies" in line]
    if ratings:
        last = [line for line in ratings if line["epoch"] > ratings[-1]["epoch"] - 1]
        found["reward_accuracy"] = sum(line["rewards/accuracies"] for line in last) / len(last)
    return found


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide the numbers."""
    found = {"gptoss-ft": __version__}
    found.update({name: importlib.metadata.version(name) for name in VERSIONED})
    return found
