"""The steps of a prepared run: model, trainer, training, results."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.integrations import TensorBoardCallback

from gptoss_ft.adapters.files import Adapter
from gptoss_ft.adapters.model import (
    AdaptedModel,
    AdapterInfo,
    adapter_parameters,
    add_adapter,
    load_adapter,
)
from gptoss_ft.context import Say
from gptoss_ft.files import atomic_folder, is_empty
from gptoss_ft.model.load import load_model
from gptoss_ft.train.callbacks.monitor import Monitor
from gptoss_ft.train.checkpoints import clean, newest_checkpoint, step_of
from gptoss_ft.train.folder import RunFolder, trim_metrics
from gptoss_ft.train.manifest import COMPLETE, Manifest, RunResult, result_of, write_manifest
from gptoss_ft.train.methods import imported
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.prepare import Base, PreparedRun


def build_model(options: TrainOptions, base: Base, start: Adapter | None = None) -> AdaptedModel:
    """Loads the base with a fresh adapter, or with a saved one that is trained further.

    Args:
        options: the run's.
        base: written.
        start: the adapter to go on from.
    """
    kinds, path = tuple(options.adapter.kinds), str(options.model.path)
    info = AdapterInfo(kinds, path, base.fingerprint, base.digests)
    save = options.model.save_pre_activation
    model = load_model(base.checkpoint, save_pre_activation=save)
    if start is not None:
        return load_adapter(model, start, trainable=True, info=info)
    return add_adapter(model, options.adapter, info)


def say_parameters(model: AdaptedModel, say: Say) -> None:
    """Says how many parameters are trained, by part."""
    for part, count in adapter_parameters(model).items():
        say(f"training {count:,} parameters of {part}")


def build_trainer(
    run: PreparedRun, model: AdaptedModel, say: Say, more: Sequence[TrainerCallback] = ()
) -> Trainer:
    """Returns the method's trainer around our model, rows and callbacks.

    Args:
        run: opened.
        model: what `build_model` returned.
        say: prints a line for people.
        more: callbacks to run after ours.
    """
    options, method = run.options, run.method
    train, validation = imported(method.datasets)(run, model, say)
    further = imported(method.arguments)(options) if method.arguments else {}
    path = run.base.checkpoint.path
    trainer: Trainer = imported(method.trainer)(
        model=model,
        args=run.arguments,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=AutoTokenizer.from_pretrained(path, local_files_only=True),
        data_collator=imported(method.collator)(options),
        callbacks=[*callbacks(options, run.folder), *more],
        **further,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def callbacks(options: TrainOptions, folder: RunFolder) -> list[TrainerCallback]:
    """Returns monitor, early stopping and trackers. W&B reads its settings from the environment."""
    found: list[TrainerCallback] = [Monitor(folder.metrics)]
    if options.early_stopping:
        found.append(EarlyStoppingCallback(early_stopping_patience=options.early_stopping))
    if options.tracker.kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        found.append(TensorBoardCallback(SummaryWriter(str(folder.path / "tensorboard"))))
    if options.tracker.kind == "wandb":
        os.environ["WANDB_PROJECT"] = options.tracker.project
        os.environ["WANDB_MODE"] = options.tracker.mode
        os.environ["WANDB_DIR"] = str(folder.path)
    return found


def run_trainer(trainer: Trainer, run: PreparedRun, say: Say) -> float:
    """Trains, or goes on from the newest checkpoint; returns the seconds that it took."""
    started = time.monotonic()
    newest = _resume_from(run.folder, run.options, say) if run.options.resume else None
    trainer.train(resume_from_checkpoint=newest)
    return time.monotonic() - started


def _resume_from(folder: RunFolder, options: TrainOptions, say: Say) -> str | None:
    """Returns the newest checkpoint, or None to start over; drops what is broken or later."""
    clean(folder.checkpoints, options.trainer.get("save_total_limit"))
    newest = newest_checkpoint(folder.checkpoints)
    trim_metrics(folder, step_of(newest) if newest else -1)
    say(f"resuming from {newest}" if newest else "no checkpoint yet: starting over")
    return str(newest) if newest else None


def write_result(
    trainer: Trainer, folder: RunFolder, manifest: Manifest, seconds: float, say: Say
) -> RunResult:
    """Writes the adapter, then the manifest that says the run is complete."""
    state = trainer.state
    if trainer.is_world_process_zero():
        with atomic_folder(folder.adapter) as temporary:
            model: Any = trainer.accelerator.unwrap_model(trainer.model)
            model.save_pretrained(str(temporary))
        if folder.checkpoints.is_dir() and is_empty(folder.checkpoints):
            folder.checkpoints.rmdir()  # the trainer makes it even when it saves nothing
    best = state.best_model_checkpoint
    result = result_of(folder.adapter, folder.metrics, state.global_step, seconds, best)
    if trainer.is_world_process_zero():
        write_manifest(folder.manifest, replace(manifest, status=COMPLETE, result=result))
        _say_result(result, folder, say)
    return result


def _say_result(result: RunResult, folder: RunFolder, say: Say) -> None:
    if result.first_loss is not None:
        say(f"loss {result.first_loss:.4f} → {result.last_loss:.4f}")
    if result.reward_accuracy is not None:
        say(f"reward accuracy in the last epoch {result.reward_accuracy:.1%}")
    say(f"adapter written to {folder.adapter}")
