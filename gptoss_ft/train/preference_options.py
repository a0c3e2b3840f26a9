"""Settings of preference tuning (config entry `preference`), and what contradicts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import Problem
from gptoss_ft.validation import (
    Range,
    dotted,
    field_problems,
    is_number,
    number_field,
    unknown_choice,
)

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
_AT_LEAST_ZERO = Range(least=0)


@dataclass
class PreferenceOptions:
    """Settings of training on pairs or ratings.

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
    simpo_gamma: float = number_field(0.5, least=0, finite=True)

    def problems(self, key: str = "preference") -> list[Problem]:
        """Lists settings out of range and those that belong to another method."""
        found = field_problems(self, key)
        if self.length_normalized and self.method in REFERENCE_FREE:
            mend = "leave it out"
            what = f"{self.method} takes means over tokens already"
            found.append(Problem(what, dotted(key, "length_normalized"), "true", mend))
        return found


def estimates_divergence(trainer: Mapping[str, Any]) -> bool:
    """Checks whether the loss of KTO's trainer needs mismatched completions."""
    return bool(trainer.get("loss_type", "kto") == "kto")


def preference_problems(
    options: PreferenceOptions, data: DataOptions, trainer: Mapping[str, Any]
) -> list[Problem]:
    """Lists what contradicts a preference run's method, in its data and in TRL's settings.

    Args:
        options: the method and its settings.
        data: of the run.
        trainer: the user's settings of TRL, of which `settings.trainer_problems` checks each alone.
    """
    found = options.problems()
    if data.without_analysis != "keep":
        what = "this is about conversations; pairs and ratings are taken as they are"
        mend = "leave it out, or clean the file"
        found.append(Problem(what, "data.without_analysis", repr(data.without_analysis), mend))
    if data.on_rated != "refuse":
        what = "this is about sft; a preference run trains both sides"
        found.append(Problem(what, "data.on_rated", repr(data.on_rated), "leave it out"))
    if options.method == "kto":
        return found + _kto_problems(data, trainer)
    if options.method == "dpo":
        found += _loss_problems(options, trainer)
    return found


def _kto_problems(data: DataOptions, trainer: Mapping[str, Any]) -> list[Problem]:
    """Refuses losses that do not exist, packing, and batches that no divergence comes from."""
    found = []
    loss = trainer.get("loss_type", "kto")
    if loss not in KTO_LOSSES:
        found.append(unknown_choice("unknown loss type", "trainer.loss_type", loss, KTO_LOSSES))
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
    """Refuses loss types that do not exist, or do not go with other settings."""
    given = trainer.get("loss_type", ["sigmoid"])
    losses = [given] if isinstance(given, str) else list(given or ())
    where = "trainer.loss_type"
    found = [
        unknown_choice("unknown loss type", where, loss, DPO_LOSSES)
        for loss in losses
        if loss not in DPO_LOSSES
    ]
    if not losses:
        found.append(Problem("no loss", where, repr(given), "write one, such as sigmoid"))
    found += _loss_weight_problems(losses, trainer.get("loss_weights"))
    found += _divergence_problems(losses, trainer.get("f_divergence_type", "reverse_kl"))
    if "exo_pair" in losses and not trainer.get("label_smoothing"):
        what, where = "the loss exo_pair needs smoothing", "trainer.label_smoothing"
        mend = "write a number above 0, such as 0.001"
        found.append(Problem(what, where, repr(trainer.get("label_smoothing", 0.0)), mend))
    if trainer.get("use_weighting") and {"aot", "aot_unpaired"} & set(losses):
        mend = "leave out one of the two"
        what = "weights of pairs are lost where a loss sorts them"
        found.append(Problem(what, "trainer.use_weighting", "true, with aot", mend))
    if options.length_normalized:
        found += _twice_normalised(losses, trainer)
    return found


def _divergence_problems(losses: Iterable[str], divergence: Any) -> list[Problem]:
    """Refuses a divergence that does not exist, or that a loss has no use for."""
    where = "trainer.f_divergence_type"
    if divergence not in _F_DIVERGENCES:
        return [unknown_choice("unknown divergence", where, divergence, _F_DIVERGENCES)]
    others = [loss for loss in losses if loss not in _F_DIVERGENCE_LOSSES]
    if divergence == "reverse_kl" or not others:
        return []
    mend = f"leave it at reverse_kl, or leave out {', '.join(others)}"
    what = "this divergence goes with losses of chosen against rejected only"
    return [Problem(what, where, repr(divergence), mend)]


def _twice_normalised(losses: Iterable[str], trainer: Mapping[str, Any]) -> list[Problem]:
    """Refuses to divide by lengths what is divided by them already."""
    named = [f"trainer.loss_type: {loss}" for loss in losses if loss in _NORMALISED]
    named += [f"trainer.{name}" for name in ("use_weighting", "ld_alpha") if trainer.get(name)]
    if not named:
        return []
    what = "lengths would be divided by twice"
    mend = "leave out one of them"
    return [Problem(what, "preference.length_normalized", f"true, with {', '.join(named)}", mend)]


def _loss_weight_problems(losses: list[str], weights: Any) -> list[Problem]:
    """Refuses weights that are negative, or not one for each loss."""
    if weights is None:
        return []
    where = "trainer.loss_weights"
    if not isinstance(weights, list | tuple) or len(weights) != len(losses):
        mend = f"write one weight for each of [{', '.join(map(str, losses))}]"
        return [Problem("not one weight for each loss", where, repr(weights), mend)]
    return [
        Problem("must be a number of at least 0", where, repr(weight))
        for weight in weights
        if not (is_number(weight) and weight in _AT_LEAST_ZERO)
    ]
