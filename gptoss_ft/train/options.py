"""Settings of a run that are ours, and the check of those that go to TRL unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.model.tiny_options import TinyOptions
from gptoss_ft.train.methods import METHODS, Method, imported, method_named
from gptoss_ft.train.preference_options import PreferenceOptions
from gptoss_ft.validation import (
    choice_field,
    dotted,
    field_problems,
    number_field,
    path_field,
    text_field,
)

TRACKERS = ("none", "wandb", "tensorboard")


@dataclass
class ModelOptions:
    """The base to train.

    Attributes:
        path: a checkpoint folder, or a Hub id with `hub=true`.
        tiny: sizes of a random model that is written to `path` when nothing is there; a dry run.
        save_pre_activation: keep what the experts' gate acts on, `experts_per_token * 2 *
            intermediate` numbers for each token and layer, until the backward pass. Without it
            their first product is formed twice, a third more work in the experts. With
            `trainer.gradient_checkpointing=true` it is kept for one layer at a time anyway.
    """

    path: str = path_field()
    tiny: TinyOptions | None = None
    save_pre_activation: bool = True

    def problems(self, key: str = "") -> list[Problem]:
        """Returns a missing path and tiny sizes that cannot be built."""
        found = self.tiny.problems(dotted(key, "tiny")) if self.tiny else []
        if not self.path:
            mend = "say model.path=DIR, or model=tiny for a dry run"
            found.append(Problem("no base model", dotted(key, "path"), mend=mend))
        return found


@dataclass
class TrackerOptions:
    """The tracker of metrics besides the screen and metrics.jsonl.

    Attributes:
        kind: none, wandb or tensorboard.
        project: W&B project.
        mode: W&B mode; offline keeps everything in the run folder until `wandb sync`.
    """

    kind: str = choice_field("none", TRACKERS, "unknown tracker")
    project: str = "gptoss-ft"
    mode: str = choice_field("offline", ("offline", "online"), "unknown W&B mode")

    def problems(self, key: str = "") -> list[Problem]:
        """Returns an unknown tracker or mode."""
        return field_problems(self, key)


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
        model: the base.
        adapter: what is trained.
        data: where the rows are and how they become training rows.
        preference: how pairs or ratings are trained on; None for supervised fine-tuning.
        trainer: settings of the method's TRL configuration (`SFTConfig`, `DPOConfig`, `KTOConfig`),
            unchanged.
        tracker: where metrics go.
    """

    name: str = text_field()
    output: str = path_field("outputs")
    resume: bool = False
    hub: bool = False
    seed: int = 0
    early_stopping: int = number_field(0, least=0)
    model: ModelOptions = field(default_factory=ModelOptions)
    adapter: AdapterOptions = field(default_factory=AdapterOptions)
    data: DataOptions = field(default_factory=DataOptions)
    preference: PreferenceOptions | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    tracker: TrackerOptions = field(default_factory=TrackerOptions)

    @property
    def method(self) -> str:
        """Name of the training method."""
        return self.preference.method if self.preference else "sft"

    @property
    def checkpoints_activations(self) -> bool:
        """True if the backward pass computes layers again; transformers has two names for it."""
        given = self.trainer.get("activation_checkpointing")
        return bool(self.trainer.get("gradient_checkpointing") if given is None else given)

    def problems(self, methods: Sequence[Method] = METHODS) -> list[Problem]:
        """Lists everything that is wrong with the settings, before anything is read or loaded.

        Args:
            methods: the table that the method is looked up in.
        """
        found = [
            *self.model.problems("model"),
            *self.adapter.problems("adapter"),
            *self.data.problems("data"),
            *self._method_problems(methods),
            *self.tracker.problems("tracker"),
        ]
        if not self.model.save_pre_activation and self.checkpoints_activations:
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
        found += field_problems(self)
        if self.early_stopping and not self.data.has_validation:
            found.append(
                Problem(
                    "early stopping needs validation rows",
                    "early_stopping",
                    str(self.early_stopping),
                    "set data.validation_split, data.validation_count or data.validation.path",
                )
            )
        return found

    def _method_problems(self, methods: Sequence[Method]) -> list[Problem]:
        """Lists what the method refuses, or that there is no such method."""
        try:
            method = method_named(self.method, methods)
        except ConfigError as error:
            return list(error.problems)
        found: list[Problem] = imported(method.problems)(self, method)
        return found
