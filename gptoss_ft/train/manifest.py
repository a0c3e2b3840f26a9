"""manifest.json of a run: what it was made of and its result; one writer and one reader."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gptoss_ft import __version__
from gptoss_ft.errors import Problem, RunError
from gptoss_ft.files import write_json

FORMAT = 1
ADAPTER = "adapter"  # folder of the trained adapter, beside the manifest
RUNNING, COMPLETE = "running", "complete"
VERSIONED = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "tokenizers")


@dataclass(frozen=True)
class RunResult:
    """The result of a run. In manifest.json all but `adapter` stand beside the manifest's own."""

    adapter: Path
    """Folder of the trained adapter."""

    steps: int
    """Optimizer steps."""

    seconds: float
    """Wall-clock time of this process's training, without loading."""

    best_checkpoint: str | None
    """Folder of the checkpoint that the adapter was taken from; None where no best one was kept."""

    best_eval_loss: float | None
    """Lowest loss on the validation rows; None where none was taken."""

    tokens_seen: int
    """Tokens that went through the model, padding left out."""

    first_loss: float | None
    """First logged training loss; None where none was logged."""

    last_loss: float | None
    """Last logged training loss."""

    reward_accuracy: float | None = None
    """For preference methods, the share of comparisons in the last epoch with the reward on the
    right side, a mean over log lines."""

    @property
    def objective(self) -> float | None:
        """The number that a sweep makes small: the best validation loss, else the last loss."""
        return self.last_loss if self.best_eval_loss is None else self.best_eval_loss


@dataclass(frozen=True)
class Manifest:
    """The inputs of a run, and its result once it is complete."""

    name: str
    """The run's name."""

    method: str
    """Name of the training method."""

    status: str
    """`running` or `complete`."""

    base: str
    """The base as the user named it."""

    base_fingerprint: str
    """Identifies the base's weights."""

    data: list[str]
    """The training sources as the user named them."""

    data_fingerprint: str
    """Identifies what the rows hold and how they were rendered."""

    adapter: dict[str, Any]
    """`AdapterOptions`, as the adapter to go on from has them."""

    init_fingerprint: str | None
    """Identifies the adapter to go on from; None for a fresh one."""

    seed: int
    """Seed of initialisation, order and split."""

    data_summary: dict[str, Any]
    """Counts of rows and tokens."""

    versions: dict[str, str]
    """Versions of this package and of those that decide the numbers."""

    settings: dict[str, Any]
    """Every setting that the run was started with, by dotted key; see `resume.settings_of`."""

    result: RunResult | None = None
    """None while the run is not complete."""


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Writes a manifest atomically; the result's fields stand among the manifest's."""
    content = {"format": FORMAT, **asdict(manifest)}
    del content["result"]
    if manifest.result is not None:
        result = asdict(manifest.result)
        del result["adapter"]  # a setting of the run has this name, and a folder can be moved
        if manifest.result.reward_accuracy is None:
            del result["reward_accuracy"]
        content |= result
    write_json(file, content)


def read_manifest(file: Path) -> Manifest:
    """Reads a manifest.

    Raises:
        RunError: the file is broken, or of another format than this version writes.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        mend = "bring back the file, or start the run over under another name=NAME"
        raise RunError(
            Problem("the manifest is not valid JSON", str(file), str(error), mend)
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise RunError(_other_format(file, found))
    missing = [name for name in _names(Manifest) if name not in content and name != "result"]
    if missing:
        mend = "bring back the file, or start the run over under another name=NAME"
        what = "the manifest is not whole"
        raise RunError(Problem(what, str(file), f"no {', '.join(missing)}", mend))
    parts = {name: content[name] for name in _names(Manifest) if name in content}
    if content["status"] == COMPLETE:
        result = {name: content[name] for name in _names(RunResult) if name in content}
        parts["result"] = RunResult(**result | {"adapter": file.parent / ADAPTER})
    return Manifest(**parts)


def _names(kind: type[Manifest] | type[RunResult]) -> list[str]:
    return [item.name for item in fields(kind)]


def _other_format(file: Path, found: Any) -> Problem:
    """Returns the problem of a manifest that another version of this package has written."""
    if isinstance(found, int) and found > FORMAT:
        what = "a newer version of gptoss-ft has written this manifest"
        return Problem(what, str(file), f"format {found}", "update gptoss-ft")
    return Problem(
        "an older version of gptoss-ft has written this manifest, without the settings that a "
        "resumed run must share with its start",
        str(file),
        f"format {found}" if found is not None else "no format",
        "resume with the version that the manifest names, or start the run over under another "
        "name=NAME",
    )


def result_of(
    adapter: Path, metrics: Path, steps: int, seconds: float, best_checkpoint: str | None
) -> RunResult:
    """Returns the result of a run that has ended, from its log lines and what the trainer knows."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluated = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return RunResult(
        adapter=adapter,
        steps=steps,
        seconds=round(seconds, 1),
        best_checkpoint=best_checkpoint,
        best_eval_loss=min(evaluated, default=None),
        tokens_seen=int(sum(line.get("tokens", 0) for line in lines)),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        reward_accuracy=_reward_accuracy(lines),
    )


def _reward_accuracy(lines: list[dict[str, Any]]) -> float | None:
    ratings = [line for line in lines if "rewards/accuracies" in line]
    if not ratings:
        return None
    last = [line for line in ratings if line["epoch"] > ratings[-1]["epoch"] - 1]
    return float(sum(line["rewards/accuracies"] for line in last) / len(last))


def versions() -> dict[str, str]:
    """Returns the versions of this package and of those that decide the numbers."""
    found = {"gptoss-ft": __version__}
    found.update({name: importlib.metadata.version(name) for name in VERSIONED})
    return found
