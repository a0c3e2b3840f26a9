"""One SFT run, from a checked configuration to an adapter on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, adapter_parameters, add_adapter
from gptoss_ft.data.collate import Collator
from gptoss_ft.data.dataset import PreparedData, check_data, prepare
from gptoss_ft.errors import gather
from gptoss_ft.files import is_empty, whole_folder, write_json
from gptoss_ft.harmony.vocabulary import load_vocabulary
from gptoss_ft.model.checkpoint import Checkpoint, fingerprint, open_checkpoint
from gptoss_ft.model.load import load_model
from gptoss_ft.model.locate import locate_checkpoint
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.checkpoints import clean, newest_checkpoint, step_of
from gptoss_ft.train.monitor import Monitor
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.run import (
    RunFolder,
    check_run_folder,
    open_run,
    outcome,
    trim_metrics,
    versions,
)
from gptoss_ft.train.trainer import WeightedSFTTrainer

Say = Callable[[str], None]


def train_sft(options: TrainOptions, config_yaml: str, say: Say = print) -> Path:
    """Runs supervised fine-tuning and returns the adapter's folder.

    Everything that can be refused is refused before the weights are loaded: the run folder, the
    base's headers and the data, all of their problems at once.

    Args:
        options: without problems (`options.problems()` is empty).
        config_yaml: the composed configuration, kept beside the results.
        say: where lines for people go.

    Raises:
        GptOssFtError: a run folder, checkpoint or data file that cannot be used.
    """
    folder = RunFolder(Path(options.output) / options.name)
    dry_run = options.model.tiny is not None and not Path(options.model.path).exists()
    _, checkpoint, _ = gather(
        lambda: check_run_folder(folder, options.resume),
        lambda: None if dry_run else open_base(options),
        lambda: check_data(options.data, options.hub),
    )
    if dry_run:
        write_tiny(Path(options.model.path), options.model.tiny or TinyOptions())
        checkpoint = open_base(options)
    vocabulary = load_vocabulary(checkpoint.path)
    data = prepare(options.data, vocabulary, checkpoint.path, options.hub)
    for line in data.summary.lines():
        say(line)
    manifest = run_manifest(options, checkpoint, data)
    open_run(folder, manifest, config_yaml, options.resume)

    set_seed(options.seed)
    model = build_model(options, checkpoint, manifest["base_fingerprint"])
    for part, count in adapter_parameters(model).items():
        say(f"training {count:,} parameters of {part}")
    trainer = build_trainer(options, model, checkpoint, data, folder)
    started = time.monotonic()
    newest = _resume_from(folder, options, say) if options.resume else None
    trainer.train(resume_from_checkpoint=newest)
    if trainer.is_world_process_zero():
        finish(folder, trainer, manifest, time.monotonic() - started, say)
    return folder.adapter


def _resume_from(folder: RunFolder, options: TrainOptions, say: Say) -> str | None:
    """The newest checkpoint, or None to start over; what is not whole or later is dropped."""
    clean(folder.checkpoints, options.trainer.get("save_total_limit"))
    newest = newest_checkpoint(folder.checkpoints)
    trim_metrics(folder, step_of(newest) if newest else -1)
    say(f"resuming from {newest}" if newest else "no checkpoint yet: starting over")
    return str(newest) if newest else None


def open_base(options: TrainOptions) -> Checkpoint:
    """The base's headers; its experts must be packed."""
    path = locate_checkpoint(options.model.path, options.hub, "model.path")
    return open_checkpoint(path).require_packed()


def run_manifest(
    options: TrainOptions, checkpoint: Checkpoint, data: PreparedData
) -> dict[str, Any]:
    """What the run is made of."""
    return {
        "name": options.name,
        "method": "sft",
        "status": "running",
        "base": str(options.model.path),
        "base_fingerprint": fingerprint(checkpoint),
        "data": [source.path for source in options.data.training_sources],
        "data_fingerprint": data.fingerprint,
        "adapter": asdict(options.adapter),
        "seed": options.seed,
        "data_summary": asdict(data.summary),
        "versions": versions(),
    }


def build_model(
    options: TrainOptions, checkpoint: Checkpoint, base_fingerprint: str
) -> AdaptedModel:
    """The base with a fresh adapter."""
    info = AdapterInfo(tuple(options.adapter.kinds), str(options.model.path), base_fingerprint)
    model = load_model(checkpoint, save_pre_activation=options.model.save_pre_activation)
    return add_adapter(model, options.adapter, info)


def build_trainer(
    options: TrainOptions,
    model: AdaptedModel,
    checkpoint: Checkpoint,
    data: PreparedData,
    folder: RunFolder,
) -> WeightedSFTTrainer:
    """TRL's trainer around our model, rows and monitor."""
    trainer = WeightedSFTTrainer(
        model=model,
        args=trainer_arguments(options, folder),
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True),
        data_collator=Collator(),
        callbacks=callbacks(options, folder),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def trainer_arguments(options: TrainOptions, folder: RunFolder) -> SFTConfig:
    """TRL's configuration: the user's settings over ours, and what a run decides itself."""
    on_cpu = not torch.cuda.is_available()
    ours: dict[str, Any] = {
        "gradient_checkpointing": False,
        "router_aux_loss_coef": 0.0,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # would wait for the GPU after every batch
        "dataloader_pin_memory": not on_cpu,
        "use_cpu": on_cpu,
    }
    if not options.data.packing and options.trainer.get("per_device_train_batch_size") != 1:
        ours["train_sampling_strategy"] = "group_by_length"
    if options.data.has_validation:
        ours |= {
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
    decided: dict[str, Any] = {
        "output_dir": str(folder.checkpoints),
        "seed": options.seed,
        "data_seed": options.seed,
        "report_to": "wandb" if options.tracker.kind == "wandb" else "none",
        "run_name": options.name,
        "bf16": False,
        "fp16": False,
        "packing": False,
        "padding_free": False,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
    }
    return SFTConfig(**{**ours, **options.trainer, **decided})


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


def finish(
    folder: RunFolder,
    trainer: WeightedSFTTrainer,
    manifest: dict[str, Any],
    seconds: float,
    say: Say,
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
    say(f"adapter written to {folder.adapter}")
