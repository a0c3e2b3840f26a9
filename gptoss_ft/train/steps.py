"""The steps that every run takes, whatever it trains: base, model, settings, resume, results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.integrations import TensorBoardCallback

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import Adapter
from gptoss_ft.adapters.model import (
    AdaptedModel,
    AdapterInfo,
    adapter_parameters,
    add_adapter,
    load_adapter,
)
from gptoss_ft.adapters.start import adapter_fingerprint, continued, described, open_start
from gptoss_ft.checkpoint.digests import fingerprint, tensor_digests
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.checkpoint.locate import locate_checkpoint
from gptoss_ft.data.dataset import check_data
from gptoss_ft.errors import gather
from gptoss_ft.files import is_empty, whole_folder, write_json
from gptoss_ft.model.load import load_model
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.callbacks.monitor import Monitor
from gptoss_ft.train.checkpoints import clean, newest_checkpoint, step_of
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.run import RunFolder, check_run_folder, outcome, trim_metrics, versions

Say = Callable[[str], None]


class Prepared(Protocol):
    """Data of any method."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def summary(self) -> Any: ...


def find_base(
    options: TrainOptions, folder: RunFolder, say: Say
) -> tuple[TrainOptions, Checkpoint, Adapter | None]:
    """Refuses what can be refused before weights are loaded, and opens base and first adapter.

    Looked at are the run folder, the base's headers, the adapter to go on from, and the data's
    first rows, with the problems of all of them. A tiny base for a dry run is written.

    Returns:
        the options, their `adapter` as the adapter to go on from has it; the base; that adapter.

    Raises:
        GptOssFtError: with every problem.
    """
    tiny, path = options.model.tiny, Path(options.model.path)
    dry_run = tiny is not None and not path.exists()
    _, checkpoint, adapter, _ = gather(
        lambda: check_run_folder(folder, options.resume),
        lambda: None if dry_run else open_base(options),
        lambda: open_start(options.adapter),
        lambda: check_data(options.data, options.hub),
    )
    if dry_run:
        write_tiny(path, tiny or TinyOptions())
        checkpoint = open_base(options)
    if adapter is not None:
        check_adapter(adapter, checkpoint)
        options = replace(options, adapter=continued(options.adapter, adapter))
        say(f"going on from {adapter.path} ({described(options.adapter)})")
    return options, checkpoint, adapter


def open_base(options: TrainOptions) -> Checkpoint:
    """The base's headers; its experts must be packed."""
    path = locate_checkpoint(options.model.path, options.hub, "model.path")
    return open_checkpoint(path).require_packed()


def run_manifest(
    options: TrainOptions, checkpoint: Checkpoint, data: Prepared, adapter: Adapter | None
) -> dict[str, Any]:
    """What the run is made of."""
    return {
        "name": options.name,
        "method": options.preference.method if options.preference else "sft",
        "status": "running",
        "base": str(options.model.path),
        "base_fingerprint": fingerprint(checkpoint),
        "data": [source.path for source in options.data.training_sources],
        "data_fingerprint": data.fingerprint,
        "adapter": asdict(options.adapter),
        "init_fingerprint": adapter_fingerprint(adapter) if adapter else None,
        "seed": options.seed,
        "data_summary": asdict(data.summary),
        "versions": versions(),
    }


def build_model(
    options: TrainOptions,
    checkpoint: Checkpoint,
    base_fingerprint: str,
    adapter: Adapter | None = None,
) -> AdaptedModel:
    """The base with a fresh adapter, or with a saved one that is trained further."""
    kinds, base = tuple(options.adapter.kinds), str(options.model.path)
    info = AdapterInfo(kinds, base, base_fingerprint, tensor_digests(checkpoint))
    model = load_model(checkpoint, save_pre_activation=options.model.save_pre_activation)
    if adapter is not None:
        return load_adapter(model, adapter, trainable=True, info=info)
    return add_adapter(model, options.adapter, info)


def callbacks(options: TrainOptions, folder: RunFolder) -> list[TrainerCallback]:
    """Monitor, early stopping and trackers. W&B reads its settings from the environment."""
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


def say_parameters(model: AdaptedModel, say: Say) -> None:
    """What is trained, by part."""
    for part, count in adapter_parameters(model).items():
        say(f"training {count:,} parameters of {part}")


def run_trainer(
    trainer: Trainer, folder: RunFolder, options: TrainOptions, manifest: dict[str, Any], say: Say
) -> Path:
    """Trains or goes on training, and writes the results; returns the adapter's folder."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    started = time.monotonic()
    newest = _resume_from(folder, options, say) if options.resume else None
    trainer.train(resume_from_checkpoint=newest)
    if trainer.is_world_process_zero():
        _finish(folder, trainer, manifest, time.monotonic() - started, say)
    return folder.adapter


def _resume_from(folder: RunFolder, options: TrainOptions, say: Say) -> str | None:
    """The newest checkpoint, or None to start over; what is not whole or later is dropped."""
    clean(folder.checkpoints, options.trainer.get("save_total_limit"))
    newest = newest_checkpoint(folder.checkpoints)
    trim_metrics(folder, step_of(newest) if newest else -1)
    say(f"resuming from {newest}" if newest else "no checkpoint yet: starting over")
    return str(newest) if newest else None


def _finish(
    folder: RunFolder, trainer: Trainer, manifest: dict[str, Any], seconds: float, say: Say
) -> None:
    """Writes the adapter, then the manifest that says the run is complete."""
    with whole_folder(folder.adapter) as temporary:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(temporary))
    if folder.checkpoints.is_dir() and is_empty(folder.checkpoints):
        folder.checkpoints.rmdir()  # the trainer makes it even when it saves nothing
    result = {
        "status": "complete",
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "best_eval_loss": trainer.state.best_metric,
        **outcome(folder.metrics),
    }
    write_json(folder.manifest, {**manifest, **result})
    if result["first_loss"] is not None:
        say(f"loss {result['first_loss']:.4f} → {result['last_loss']:.4f}")
    if "reward_accuracy" in result:
        say(f"reward accuracy in the last epoch {result['reward_accuracy']:.1%}")
    say(f"adapter written to {folder.adapter}")
