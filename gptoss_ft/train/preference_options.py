"""How pairs or ratings are trained on (config entry `preference`), and what contradicts it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, KTOConfig

from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import Problem
from gptoss_ft.train.settings import DECIDED, is_number, trainer_problems

METHODS = ("dpo", "kto", "orpo", "simpo")
# Methods that compare with nothing but the model itself.
REFERENCE_FREE = ("orpo", "simpo")
DPO_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
KTO_LOSSES = ("kto", "apo_zero_unpaired")
# Losses of differences, for which alone other divergences than KL make sense (TRL).
_F_DIVERGENCE_LOSSES = {
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"),
}
_F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# Losses that divide by the completion's length themselves.
_NORMALISED = ("ipo", "sigmoid_norm", "sft")
PREFERENCE_DECIDED = {
    **DECIDED,
    "precompute_ref_log_probs": "the reference is always computed once and cached",
    "precompute_ref_batch_size": "the reference is scored in batches of data.max_length tokens",
    "sync_ref_model": "the reference stays what it is when the run begins",
    "ref_model_mixup_alpha": "the reference stays what it is when the run begins",
    "ref_model_sync_steps": "the reference stays what it is when the run begins",
    "model_init_kwargs": "set model.path",
    "dataset_num_proc": "set data.workers",
    "truncation_mode": "set data.on_too_long",
    "pad_to_multiple_of": "rows are laid end to end, without padding",
    "pad_token": "rows are laid end to end, without padding",
}
_OWN_LOSS = "the method is the loss; use preference.method=dpo for TRL's loss types"
_REFERENCE_FREE_DECIDED = dict.fromkeys(
    (
        "loss_type",
        "loss_weights",
        "ld_alpha",
        "f_divergence_type",
        "f_alpha_divergence_coef",
        "use_weighting",
        "discopop_tau",
    ),
    _OWN_LOSS,
)


@dataclass
class PreferenceOptions:
    """How pairs or ratings are trained on.

    Attributes:
        method: dpo (with TRL's loss types, `trainer.loss_type`), kto (rated completions), orpo or
            simpo (both without a reference).
        shared_prompt: compute the prompt of a pair once, both completions behind it; otherwise a
            pair is two rows of its own. The result is the same.
        length_normalized: compare means over tokens instead of sums, in the losses of dpo and kto
            that do not do so themselves.
        simpo_gamma: of simpo, the margin by which the chosen reward is to exceed the rejected one.

    How much each channel counts is `data.render.weights`; analysis: 0 prefers answers without
    judging the thought that led there.
    """

    method: str = "dpo"
    shared_prompt: bool = True
    length_normalized: bool = False
    simpo_gamma: float = 0.5

    def problems(self, key: str = "preference.") -> list[Problem]:
        """Unknown method, settings that belong to another one."""
        found = []
        if self.method not in METHODS:
            found.append(_unknown("unknown method", f"{key}method", self.method, METHODS))
        if not (is_number(self.simpo_gamma) and self.simpo_gamma >= 0):
            mend = "write a number of at least 0"
            where = f"{key}simpo_gamma"
            found.append(Problem("out of range", where, repr(self.simpo_gamma), mend))
        if self.length_normalized and self.method in REFERENCE_FREE:
            mend = "leave it out"
            what = f"{self.method} takes means over tokens already"
            found.append(Problem(what, f"{key}length_normalized", "true", mend))
        return found

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference."""
        return self.method not in REFERENCE_FREE

    @property
    def is_rated(self) -> bool:
        """Whether single completions with a label are trained on, not pairs."""
        return self.method == "kto"


def estimates_divergence(trainer: Mapping[str, Any]) -> bool:
    """Whether a loss of KTO's trainer needs mismatched completions."""
    return bool(trainer.get("loss_type", "kto") == "kto")


def preference_problems(
    options: PreferenceOptions, data: DataOptions, trainer: Mapping[str, Any]
) -> list[Problem]:
    """Everything that is wrong with a preference run's method, its data and TRL's settings."""
    found = options.problems()
    if data.without_analysis != "keep":
        what = "this is about conversations; pairs and ratings are taken as they are"
        mend = "leave it out, or clean the file"
        found.append(Problem(what, "data.without_analysis", repr(data.without_analysis), mend))
    if options.method == "kto":
        return found + _kto_problems(data, trainer)
    decided = PREFERENCE_DECIDED
    if options.method in REFERENCE_FREE:
        decided = {**PREFERENCE_DECIDED, **_REFERENCE_FREE_DECIDED}
        if options.method == "orpo":
            decided |= {"label_smoothing": "ORPO has none"}
    found += trainer_problems(trainer, DPOConfig, decided)
    found += _number_problems(trainer, {"beta", "discopop_tau"}, "must be above 0")
    found += _smoothing_problems(trainer)
    if options.method == "dpo":
        found += _loss_problems(options, trainer)
    return found


def _kto_problems(data: DataOptions, trainer: Mapping[str, Any]) -> list[Problem]:
    decided = dict(PREFERENCE_DECIDED)
    if estimates_divergence(trainer):
        decided["train_sampling_strategy"] = (
            "the rows are shuffled once; mismatched completions come from the same batch"
        )
    found = trainer_problems(trainer, KTOConfig, decided)
    positive = {"beta", "desirable_weight", "undesirable_weight"}
    found += _number_problems(trainer, positive, "must be above 0")
    loss = trainer.get("loss_type", "kto")
    if loss not in KTO_LOSSES:
        found.append(_unknown("unknown loss type", "trainer.loss_type", loss, KTO_LOSSES))
    if data.packing:
        what = "rated completions are not packed: they share a row without padding anyway"
        found.append(Problem(what, "data.packing", "true", "say data.packing=false"))
    if estimates_divergence(trainer) and trainer.get("per_device_train_batch_size", 8) == 1:
        what = "the loss estimates a divergence from the other completions of the batch"
        where = "trainer.per_device_train_batch_size"
        mend = "write 2 or more, or say trainer.loss_type=apo_zero_unpaired"
        found.append(Problem(what, where, "1", mend))
    return found


def _loss_problems(options: PreferenceOptions, trainer: Mapping[str, Any]) -> list[Problem]:
    """Loss types that do not exist, or do not go with other settings."""
    given = trainer.get("loss_type", ["sigmoid"])
    losses = [given] if isinstance(given, str) else list(given or ())
    where = "trainer.loss_type"
    found = [
        _unknown("unknown loss type", where, loss, DPO_LOSSES)
        for loss in losses
        if loss not in DPO_LOSSES
    ]
    if not losses:
        found.append(Problem("no loss", where, repr(given), "write one, such as sigmoid"))
    found += _loss_weight_problems(losses, trainer.get("loss_weights"))
    divergence = trainer.get("f_divergence_type", "reverse_kl")
    others = [loss for loss in losses if loss not in _F_DIVERGENCE_LOSSES]
    if divergence not in _F_DIVERGENCES:
        key = "trainer.f_divergence_type"
        found.append(_unknown("unknown divergence", key, divergence, _F_DIVERGENCES))
    elif divergence != "reverse_kl" and others:
        mend = f"leave it at reverse_kl, or leave out {', '.join(others)}"
        what = "this divergence goes with losses of chosen against rejected only"
        found.append(Problem(what, "trainer.f_divergence_type", repr(divergence), mend))
    if trainer.get("use_weighting") and {"aot", "aot_unpaired"} & set(losses):
        mend = "leave out one of the two"
        what = "weights of pairs are lost where a loss sorts them"
        found.append(Problem(what, "trainer.use_weighting", "true, with aot", mend))
    alpha = trainer.get("ld_alpha")
    if alpha is not None and not (is_number(alpha) and 0 <= alpha <= 1):
        found.append(Problem("must be between 0 and 1", "trainer.ld_alpha", repr(alpha)))
    if options.length_normalized:
        found += _twice_normalised(losses, trainer)
    return found


def _twice_normalised(losses: Iterable[str], trainer: Mapping[str, Any]) -> list[Problem]:
    named = [f"trainer.loss_type: {loss}" for loss in losses if loss in _NORMALISED]
    named += [f"trainer.{name}" for name in ("use_weighting", "ld_alpha") if trainer.get(name)]
    if not named:
        return []
    what = "lengths would be divided by twice"
    mend = "leave out one of them"
    return [Problem(what, "preference.length_normalized", f"true, with {', '.join(named)}", mend)]


def _loss_weight_problems(losses: list[str], weights: Any) -> list[Problem]:
    if weights is None:
        return []
    where = "trainer.loss_weights"
    if not isinstance(weights, list | tuple) or len(weights) != len(losses):
        mend = f"write one weight for each of [{', '.join(map(str, losses))}]"
        return [Problem("not one weight for each loss", where, repr(weights), mend)]
    return [
        Problem("must be a number of at least 0", where, repr(weight))
        for weight in weights
        if not (is_number(weight) and weight >= 0)
    ]


def _smoothing_problems(trainer: Mapping[str, Any]) -> list[Problem]:
    """Label smoothing is the chance of a flipped label: at one half, a pair says nothing."""
    where, given = "trainer.label_smoothing", trainer.get("label_smoothing", 0.0)
    if not (is_number(given) and 0 <= given < 0.5):
        mend = "write a number from 0 to below 0.5, such as 0.1"
        return [Problem("out of range", where, repr(given), mend)]
    loss = trainer.get("loss_type")
    if not given and "exo_pair" in (loss if isinstance(loss, list) else [loss]):
        mend = "write a number above 0, such as 0.001"
        return [Problem("the loss exo_pair needs smoothing", where, repr(given), mend)]
    return []


def _number_problems(trainer: Mapping[str, Any], names: Iterable[str], what: str) -> list[Problem]:
    """Of some settings, those that are given and not above 0."""
    mends = {"beta": "write a number above 0, such as 0.1: at 0 the pairs would teach nothing"}
    return [
        Problem(what, f"trainer.{name}", repr(trainer[name]), mends.get(name, ""))
        for name in sorted(names)
        if name in trainer and not (is_number(trainer[name]) and trainer[name] > 0)
    ]


def _unknown(what: str, where: str, found: Any, choices: tuple[str, ...]) -> Problem:
    near = difflib.get_close_matches(str(found), choices, 1)
    mend = f"did you mean {near[0]}? " if near else ""
    return Problem(what, where, repr(found), f"{mend}write one of {', '.join(choices)}")
