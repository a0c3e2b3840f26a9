"""Settings of a run that are ours, and the check of those that go to TRL unchanged."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import Any

from trl import SFTConfig

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import Problem
from gptoss_ft.model.tiny import TinyOptions

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

TRACKERS = ("none", "wandb", "tensorboard")


@dataclass
class ModelOptions:
    """Which base to train.

    Attributes:
        path: a checkpoint folder, or a Hub id with `hub=true`.
        tiny: sizes of a random model that is written to `path` when nothing is there; a dry run.
        save_pre_activation: keep what the experts' gate acts on, `experts_per_token * 2 *
            intermediate` numbers for each token and layer, until the backward pass. Without it
            their first product is formed twice, a third more work in the experts. With
            `trainer.gradient_checkpointing=true` it is kept for one layer at a time anyway.
    """

    path: str = ""
    tiny: TinyOptions | None = None
    save_pre_activation: bool = True

    def problems(self, key: str = "model.") -> list[Problem]:
        """Missing path, impossible tiny sizes."""
        found = self.tiny.problems(f"{key}tiny.") if self.tiny else []
        if not self.path:
            found.append(
                Problem(
                    "no base model",
                    f"{key}path",
                    mend="say model.path=DIR, or model=tiny for a dry run",
                )
            )
        return found


@dataclass
class TrackerOptions:
    """Where metrics go besides the screen and metrics.jsonl.

    Attributes:
        kind: none, wandb or tensorboard.
        project: W&B project.
        mode: W&B mode; offline keeps everything in the run folder until `wandb sync`.
    """

    kind: str = "none"
    project: str = "gptoss-ft"
    mode: str = "offline"

    def problems(self, key: str = "tracker.") -> list[Problem]:
        """Unknown tracker or mode."""
        found = []
        if self.kind not in TRACKERS:
            mend = f"use one of {', '.join(TRACKERS)}"
            found.append(Problem("unknown tracker", f"{key}kind", repr(self.kind), mend))
        if self.mode not in ("offline", "online"):
            mend = "use offline or online"
            found.append(Problem("unknown W&B mode", f"{key}mode", repr(self.mode), mend))
        return found


@dataclass
class TrainOptions:
    """One training run.

    Attributes:
        name: the run's name; it writes `output/name/`.
        output: folder of all runs.
        resume: go on from the newest checkpoint of the run, or from the start when it has none.
        hub: whether the network may be used to fetch a model by its Hub id.
        seed: of adapter initialisation, data order and data split.
        early_stopping: evaluations without improvement before the run stops; 0 never stops it.
        trainer: settings of TRL's `SFTConfig`, unchanged.
    """

    name: str = ""
    output: str = "outputs"
    resume: bool = False
    hub: bool = False
    seed: int = 0
    early_stopping: int = 0
    model: ModelOptions = field(default_factory=ModelOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    data: DataOptions = field(default_factory=DataOptions)
    trainer: dict[str, Any] = field(default_factory=dict)
    tracker: TrackerOptions = field(default_factory=TrackerOptions)

    def problems(self) -> list[Problem]:
        """Everything that is wrong with the settings, before anything is read or loaded."""
        found = [
            *self.model.problems(),
            *self.adapter.problems(),
            *self.data.problems("data"),
            *trainer_problems(self.trainer),
            *self.tracker.problems(),
        ]
        if not self.model.save_pre_activation and checkpoints_activations(self.trainer):
            found.append(
                Problem(
                    "gradient checkpointing forms the pre-activation again already; forming it a "
                    "third time saves nothing",
                    "model.save_pre_activation",
                    "false, with trainer.gradient_checkpointing=true",
                    "leave out one of the two; without checkpointing a step is faster",
                )
            )
        if not self.name or self.name in (".", "..") or "/" in self.name:
            found.append(
                Problem(
                    "not a name for a run",
                    "name",
                    repr(self.name),
                    "say name=NAME, without slashes",
                )
            )
        if self.early_stopping < 0:
            found.append(
                Problem("must not be negative", "early_stopping", str(self.early_stopping))
            )
        if self.early_stopping and not self.data.has_validation:
            found.append(
                Problem(
                    "early stopping needs validation rows",
                    "early_stopping",
                    str(self.early_stopping),
                    "set data.validation_split, data.validation_count or data.validation_path",
                )
            )
        return found


def checkpoints_activations(trainer: dict[str, Any]) -> bool:
    """Whether the backward pass forms layers again; transformers has two names for the setting."""
    named = trainer.get("activation_checkpointing"), trainer.get("gradient_checkpointing")
    return bool(named[1] if named[0] is None else named[0])


def trainer_problems(trainer: dict[str, Any], key: str = "trainer.") -> list[Problem]:
    """Unknown, fixed or out-of-range settings for TRL's `SFTConfig`."""
    known = {item.name for item in fields(SFTConfig) if item.init}
    found = []
    for name, value in trainer.items():
        if name in DECIDED:
            found.append(
                Problem("this is not a setting here", key + name, repr(value), DECIDED[name])
            )
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mend = (
                f"did you mean {key}{near[0]}?"
                if near
                else "see the documentation of TRL's SFTConfig"
            )
            found.append(Problem("unknown setting", key + name, mend=mend))
        elif problem := _range_problem(name, value):
            found.append(Problem(problem, key + name, repr(value)))
    return found


def _range_problem(name: str, value: Any) -> str:
    """What is wrong with a number, in words; empty when nothing is or it is not checked."""
    above_zero = {"learning_rate", "num_train_epochs", "max_grad_norm"}
    at_least_one = {
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
    }
    at_least_zero = {"weight_decay", "warmup_steps", "warmup_ratio", "router_aux_loss_coef"}
    if name not in above_zero | at_least_one | at_least_zero:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    if name in above_zero and value <= 0:
        return "must be above 0"
    if name in at_least_one and value < 1:
        return "must be at least 1"
    return "must not be negative" if value < 0 else ""
