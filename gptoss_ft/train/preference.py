"""The preference methods' part of the table of methods: pairs, ratings, and their reference."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
from trl import KTOConfig

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.context import Say
from gptoss_ft.data.collate_pairs import PairCollator, RatedCollator
from gptoss_ft.data.options import cache_folder
from gptoss_ft.data.preferences import Groups, PreferenceData, prepare_pairs, prepare_ratings
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.vocabulary import Vocabulary
from gptoss_ft.train.methods import Method
from gptoss_ft.train.preference_options import (
    PreferenceOptions,
    estimates_divergence,
    preference_problems,
)
from gptoss_ft.train.reference import Reference, training_rows
from gptoss_ft.train.settings import trainer_problems

if TYPE_CHECKING:
    from gptoss_ft.train.options import TrainOptions
    from gptoss_ft.train.prepare import PreparedRun

# Weighted good completions for one weighted bad one, of which KTO works well (Ethayarajh et al.
# 2024, equation 8).
BALANCE = (1.0, 4 / 3)


def problems(options: TrainOptions, method: Method) -> list[Problem]:
    """Lists what a preference method refuses of its own settings, the data's and TRL's."""
    preference = _preference(options)
    found = trainer_problems(options, method)
    return found + preference_problems(preference, options.data, options.trainer)


def pairs(options: TrainOptions, vocabulary: Vocabulary, model: Path | None) -> PreferenceData:
    """Returns the rendered pairs; see `prepare_pairs` for arguments and errors."""
    return prepare_pairs(options.data, vocabulary, model, options.hub)


def ratings(options: TrainOptions, vocabulary: Vocabulary, model: Path | None) -> PreferenceData:
    """Returns the rendered ratings, grouped where the loss estimates a divergence from a batch.

    See `prepare_ratings` for arguments and errors.
    """
    groups = None
    if estimates_divergence(options.trainer):
        groups = Groups(*(_batch_size(options.trainer, part) for part in ("train", "eval")))
    return prepare_ratings(options.data, vocabulary, groups, model, options.hub)


def _batch_size(trainer: dict[str, Any], part: str) -> int:
    """Returns the rows of a batch in training or evaluation, by default TRL's own number."""
    name = f"per_device_{part}_batch_size"
    (default,) = (item.default for item in fields(KTOConfig) if item.name == name)
    return int(trainer.get(name, default))


def imbalance(options: TrainOptions, data: PreferenceData) -> list[str]:
    """Warns when good and bad completions do not weigh about the same."""
    good = data.summary.good
    if good is None or not 0 < good < data.summary.train_rows:
        return []
    bad = data.summary.train_rows - good
    names = ("desirable_weight", "undesirable_weight")
    weights = [options.trainer.get(name, 1.0) for name in names]
    ratio = good * weights[0] / (bad * weights[1])
    if BALANCE[0] <= ratio <= BALANCE[1]:
        return []
    wanted = [bad * weights[1] / good * bound for bound in BALANCE]
    return [
        f"warning: good completions weigh {ratio:.2f} times what bad ones do; KTO works best "
        f"between {BALANCE[0]:.2f} and {BALANCE[1]:.2f}: set trainer.desirable_weight between "
        f"{wanted[0]:.2f} and {wanted[1]:.2f}"
    ]


def datasets_with_reference(
    run: PreparedRun, model: AdaptedModel, say: Say
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Returns the rows to train and to validate on, scored by the reference if there is one.

    The reference is the base, or the adapter that training goes on from.

    Args:
        run: with its data.
        model: before its first step.
        say: prints a line for people.
    """
    options, cache = run.options, cache_folder(run.options.data.cache)
    reference = None
    if run.method.needs_reference:
        reference = Reference(
            base=run.base.fingerprint,
            adapter=run.start_fingerprint or "",
            home=cache / "reference",
            shared_prompt=_preference(options).shared_prompt,
            tokens_at_once=options.data.max_length,
        )
    return training_rows(run.rendered, model, reference, cache / "preference", say)


def pair_collator(options: TrainOptions) -> PairCollator:
    """Returns the collator of pairs."""
    preference = _preference(options)
    return PairCollator(preference.shared_prompt, preference.length_normalized)


def rated_collator(options: TrainOptions) -> RatedCollator:
    """Returns the collator of ratings."""
    return RatedCollator(_preference(options).length_normalized)


def simpo_arguments(options: TrainOptions) -> dict[str, Any]:
    """Returns what `SimPOTrainer` takes besides the arguments of every trainer."""
    return {"gamma": _preference(options).simpo_gamma}


def _preference(options: TrainOptions) -> PreferenceOptions:
    return options.preference or PreferenceOptions()
