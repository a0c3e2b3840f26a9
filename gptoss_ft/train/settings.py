"""Settings that go to TRL's configuration classes unchanged, checked before anything is loaded."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import TrainingArguments

from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.train.methods import Method, imported

if TYPE_CHECKING:
    from gptoss_ft.train.options import TrainOptions

Config = TypeVar("Config", bound=TrainingArguments)

# Settings of TRL that a run decides itself, and where to say it instead.
DECIDED = {
    "output_dir": "name=NAME decides the folder",
    "report_to": "choose tracker=none, tracker=wandb or tracker=tensorboard",
    "max_length": "set data.max_length",
    "packing": "set data.packing; TRL's own would mix documents with this attention",
    "padding_free": "set data.packing; TRL's own would mix documents with this attention",
    "dataset_kwargs": "rows are rendered before TRL sees them",
    "remove_unused_columns": "rows are rendered before TRL sees them",
    "seed": "set seed",
    "data_seed": "set seed",
    "resume_from_checkpoint": "set resume=true",
    "bf16": "weights are stored in bfloat16 and computed in it on a GPU, in float32 on a CPU",
    "fp16": "gpt-oss overflows in float16",
    "trust_remote_code": "remote code is never run",
    "push_to_hub": "nothing is uploaded",
    "disable_tqdm": "the progress bar follows the terminal",
    "use_liger_kernel": "the model brings its own loss",
    "save_only_model": "a checkpoint must be able to resume",
    "restore_callback_states_from_checkpoint": "a resumed run always restores them",
}
# Numbers with a lower bound; whether it is itself allowed.
_ABOVE_ZERO = {"learning_rate", "num_train_epochs", "max_grad_norm"}
_AT_LEAST_ONE = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
}
_AT_LEAST_ZERO = {"weight_decay", "warmup_steps", "warmup_ratio", "router_aux_loss_coef"}


def checkpoints_activations(trainer: dict[str, Any]) -> bool:
    """Whether the backward pass forms layers again; transformers has two names for the setting."""
    named = trainer.get("activation_checkpointing"), trainer.get("gradient_checkpointing")
    return bool(named[1] if named[0] is None else named[0])


def trainer_problems(
    trainer: Mapping[str, Any],
    config: type,
    decided: Mapping[str, str] = DECIDED,
    key: str = "trainer.",
) -> list[Problem]:
    """Unknown, fixed or out-of-range settings.

    Args:
        trainer: the settings.
        config: TRL's dataclass that takes them.
        decided: settings that the run decides itself, each with what to do instead.
        key: the config prefix.
    """
    known = {item.name for item in fields(config) if item.init}
    found = []
    for name, value in trainer.items():
        if name in decided:
            found.append(
                Problem("this is not a setting here", key + name, repr(value), decided[name])
            )
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mend = (
                f"did you mean {key}{near[0]}?"
                if near
                else f"see the documentation of TRL's {config.__name__}"
            )
            found.append(Problem("unknown setting", key + name, mend=mend))
        elif problem := _range_problem(name, value):
            found.append(Problem(problem, key + name, repr(value)))
    return found


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range_problem(name: str, value: Any) -> str:
    """What is wrong with a number, in words; empty when nothing is or it is not checked."""
    if name not in _ABOVE_ZERO | _AT_LEAST_ONE | _AT_LEAST_ZERO:
        return ""
    if not is_number(value):
        return "must be a number"
    if name in _ABOVE_ZERO and value <= 0:
        return "must be above 0"
    if name in _AT_LEAST_ONE and value < 1:
        return "must be at least 1"
    return "must not be negative" if value < 0 else ""


def configure(options: TrainOptions, method: Method, checkpoints: Path) -> TrainingArguments:
    """Returns the method's TRL configuration: the user's settings over ours, a run's over both.

    Args:
        options: without problems.
        method: decides the class.
        checkpoints: where the trainer writes.

    Raises:
        ConfigError: a value that TRL or transformers refuses.
    """
    settings = trainer_settings(options, checkpoints)
    if method.trl_config == "trl:SFTConfig":
        if not options.data.packing and options.trainer.get("per_device_train_batch_size") != 1:
            settings.setdefault("train_sampling_strategy", "group_by_length")
        skip = {"skip_prepare_dataset": True}
        settings |= {"packing": False, "padding_free": False, "dataset_kwargs": skip}
    else:
        settings["precompute_ref_log_probs"] = False
    if method.trl_config == "trl:DPOConfig":
        settings["padding_free"] = False
    if method.trl_config == "trl:KTOConfig" and options.trainer.get("loss_type", "kto") == "kto":
        settings["train_sampling_strategy"] = "sequential"
    return trl_configuration(imported(method.trl_config), settings)


def trainer_settings(options: TrainOptions, checkpoints: Path) -> dict[str, Any]:
    """What TRL's configurations have in common: ours, the user's over it, a run's over both."""
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
    if options.data.has_validation:
        ours |= _evaluation(options.trainer)
    decided: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "seed": options.seed,
        "data_seed": options.seed,
        "report_to": "wandb" if options.tracker.kind == "wandb" else "none",
        "run_name": options.name,
        "bf16": False,
        "fp16": False,
        "max_length": None,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping
    }
    return {**ours, **options.trainer, **decided}


def trl_configuration(kind: type[Config], settings: dict[str, Any]) -> Config:
    """A configuration of TRL's; to be made before anything expensive, as it checks values itself.

    Raises:
        ConfigError: a value that TRL or transformers refuses, in their words.
    """
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        what = "a setting of the trainer is refused"
        mend = f"see the documentation of {kind.__name__} for the values that it takes"
        raise ConfigError(Problem(what, "trainer", str(error), mend)) from error


def _evaluation(trainer: dict[str, Any]) -> dict[str, Any]:
    """Evaluates when checkpoints are saved, or after each epoch; the best checkpoint is kept.

    To be loaded at the end, it must have been evaluated: transformers wants the two in step.
    """
    saved = trainer.get("save_strategy", "epoch")
    evaluated = trainer.get("eval_strategy", "steps" if saved == "steps" else "epoch")
    ours: dict[str, Any] = {
        "save_strategy": saved,
        "eval_strategy": evaluated,
        "load_best_model_at_end": saved == evaluated,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    if saved == evaluated == "steps" and "save_steps" in trainer:
        ours["eval_steps"] = trainer["save_steps"]
    return ours
