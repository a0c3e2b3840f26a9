"""The training methods: one row of a table for each, read by everything that depends on the method.

A new method is a new row: its trainer, the function that makes its rows, and so on are named as
`module:attribute` and imported when a run needs them, so this module itself is cheap to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptoss_ft.errors import ConfigError
from gptoss_ft.validation import unknown_choice


@dataclass(frozen=True)
class Method:
    """One way to train. Fields that hold `module:attribute` are read with `imported`."""

    name: str
    """Its name in `preference.method`; `sft` is the method of a run without `preference`."""

    recipes: str
    """Recipe group: a folder of `recipes/`, and the setting that chooses a recipe from it."""

    trl_config: str
    """TRL's dataclass of settings, which the user's `trainer` goes to."""

    trainer: str
    """Trainer class; called with model, args, datasets, processing_class, data_collator, callbacks
    and `arguments`."""

    data: str
    """`f(options: TrainOptions, vocabulary: Vocabulary, model: Path | None)` returns the rendered
    data with a `fingerprint` and a `summary`; `model` is None for the packaged vocabulary."""

    datasets: str
    """`f(run: PreparedRun, model: AdaptedModel, say: Say)` returns the datasets to train and to
    validate on, the latter or None; called before the first step."""

    collator: str
    """`f(options: TrainOptions)` returns the data collator."""

    problems: str
    """`f(options: TrainOptions, method: Method)` lists what this method refuses: its settings, and
    TRL's."""

    arguments: str = ""
    """`f(options: TrainOptions)` returns further arguments of the trainer; empty for none."""

    warnings: str = ""
    """`f(options: TrainOptions, data)` lists warnings about the data; empty for none."""

    needs_reference: bool = False
    """True if the loss compares with the model before the first step."""


_SFT = "gptoss_ft.train.sft"
_PREFERENCE = "gptoss_ft.train.preference"
_DPO = Method(
    name="dpo",
    recipes="dpo",
    trl_config="trl:DPOConfig",
    trainer="gptoss_ft.train.trainers.dpo:PairDPOTrainer",
    data=f"{_PREFERENCE}:pairs",
    datasets=f"{_PREFERENCE}:datasets_with_reference",
    collator=f"{_PREFERENCE}:pair_collator",
    problems=f"{_PREFERENCE}:problems",
    needs_reference=True,
)

METHODS: tuple[Method, ...] = (
    Method(
        name="sft",
        recipes="sft",
        trl_config="trl:SFTConfig",
        trainer="gptoss_ft.train.trainers.sft:WeightedSFTTrainer",
        data=f"{_SFT}:conversations",
        datasets=f"{_SFT}:conversation_datasets",
        collator=f"{_SFT}:collator",
        problems=f"{_SFT}:problems",
    ),
    _DPO,
    replace(
        _DPO,
        name="kto",
        trl_config="trl:KTOConfig",
        trainer="gptoss_ft.train.trainers.kto:RatedKTOTrainer",
        data=f"{_PREFERENCE}:ratings",
        collator=f"{_PREFERENCE}:rated_collator",
        warnings=f"{_PREFERENCE}:imbalance",
    ),
    replace(
        _DPO,
        name="orpo",
        trainer="gptoss_ft.train.trainers.reference_free:ORPOTrainer",
        needs_reference=False,
    ),
    replace(
        _DPO,
        name="simpo",
        trainer="gptoss_ft.train.trainers.reference_free:SimPOTrainer",
        arguments=f"{_PREFERENCE}:simpo_arguments",
        needs_reference=False,
    ),
)


def imported(reference: str) -> Any:
    """Returns what `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def method_named(name: str, methods: Sequence[Method] = METHODS) -> Method:
    """Returns the method of a name.

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    found = {method.name: method for method in methods}
    if name in found:
        return found[name]
    raise ConfigError(unknown_choice("unknown method", "preference.method", name, list(found)))


def recipe_groups(methods: Sequence[Method] = METHODS) -> tuple[str, ...]:
    """Returns the recipe groups of all methods, each once, in the table's order."""
    return tuple(dict.fromkeys(method.recipes for method in methods))
