"""Checkpoints of a run that are whole or not there: written aside, found again, pruned.

transformers writes a checkpoint file by file under its final name, and removes old ones in the same
way. A process that is killed meanwhile leaves a folder that looks like a checkpoint. Here it writes
into a folder of another name, which is flushed, closed with a table of contents, and renamed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from gptoss_ft.errors import Problem, RunError
from gptoss_ft.files import discard_folder, remove_leftovers, settle_folder, write_json

CONTENTS = "contents.json"
# Named like the leftovers of `gptoss_ft.files`, and the same in all processes of a run.
STAGING = ".checkpoint.tmp0"
_NAME = re.compile(re.escape(PREFIX_CHECKPOINT_DIR) + r"-(\d+)")


def checkpoint_at(folder: Path, step: int) -> Path:
    """Returns the path of a step's checkpoint among a run's checkpoints."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """Returns the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """Folders named as checkpoints, whole or not, by step."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def is_whole(checkpoint: Path) -> bool:
    """Checks that every file that was written is there, in its size."""
    table = checkpoint / CONTENTS
    return table.is_file() and json.loads(table.read_text(encoding="utf-8")) == _sizes(checkpoint)


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Returns the bytes of every file by its path within the checkpoint, without the table
    itself.
    """
    return {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file != checkpoint / CONTENTS
    }


def newest_checkpoint(folder: Path) -> Path | None:
    """Finds the whole checkpoint of the highest step; None if there is no checkpoint at all.

    Raises:
        RunError: there are checkpoints, and none of them is whole.
    """
    found = checkpoints(folder)
    whole = [path for path in found if is_whole(path)]
    if found and not whole:
        raise RunError(
            Problem(
                "no checkpoint of this run is whole",
                str(folder),
                ", ".join(path.name for path in found),
                "bring back the missing files, or remove the folder to start the run over",
            )
        )
    return whole[-1] if whole else None


def clean(folder: Path, limit: int | None = None) -> None:
    """Finishes what a killed process was at: drops unfinished checkpoints, halves and surplus ones.

    Args:
        folder: the run's checkpoints.
        limit: how many are kept, as in `prune`.

    Raises:
        RunError: no checkpoint is whole; nothing is removed then.
    """
    newest = newest_checkpoint(folder)
    remove_leftovers(folder)
    for path in checkpoints(folder):
        if not is_whole(path):
            discard_folder(path)
    if newest is not None:
        state = TrainerState.load_from_json(str(newest / TRAINER_STATE_NAME))
        prune(folder, limit, state.best_model_checkpoint)


def publish(staged: Path, final: Path) -> None:
    """Makes a finished checkpoint appear under its name, in place of one that is there."""
    write_json(staged / CONTENTS, _sizes(staged))
    if final.exists():
        discard_folder(final)
    settle_folder(staged, final)


def prune(folder: Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints over `limit`, never the newest one or the best.

    Args:
        folder: the run's checkpoints.
        limit: how many are kept; None or 0 for all. The best and the newest count, and stay even
            where they are more.
        best: path or name of the best one, if any.
    """
    found = checkpoints(folder)
    kept = {found[-1].name, Path(best).name if best else ""} if found else set()
    older = [path for path in found if path.name not in kept]
    surplus = max(len(found) - limit, 0) if limit and limit > 0 else 0
    for path in older[:surplus]:
        discard_folder(path)


class WholeCheckpoints(Trainer):
    """A trainer whose checkpoints are whole or not there, and hold what an exact resume needs.

    It stands before another trainer class: `class T(WholeCheckpoints, SFTTrainer)`. What
    transformers saves beside the model, it loads with `weights_only=True`; everything else is JSON
    and safetensors.
    """

    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return folder if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        self._staging = folder / STAGING
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self._name_the_best(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            staged = checkpoint_at(folder / STAGING, step)
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            publish(staged, checkpoint_at(folder, step))
            shutil.rmtree(folder / STAGING)
            prune(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _name_the_best(self, folder: Path) -> None:
        """Gives the best checkpoint its final name; transformers looked for it in the staging
        folder.
        """
        step = self.state.best_global_step
        if step is None:
            return
        best = checkpoint_at(folder, step)
        if step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Saves the model alone: the base has the tokenizer, and the run its settings."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(
                output_dir or self.args.output_dir, state_dict=state_dict
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: it would lie among the checkpoints and speak of none of them."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Skips the epoch when a run is resumed that was killed after its last step.

        transformers looks for the end of a run after a step only, so it would take one too many.
        """
        patience_is_over = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if patience_is_over or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)
