"""ORPO and SimPO: losses over mean log-probabilities of pairs, without a reference.

TRL has them as experiments that build full logits. Here they stand on `trainers/dpo.py`, whose
settings they share: `beta` is ORPO's lambda and SimPO's beta.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F

from gptoss_ft.data.collate_pairs import Batch
from gptoss_ft.model.token_scores import TokenScores
from gptoss_ft.train.metrics import over_processes
from gptoss_ft.train.trainers.dpo import PairTrainer
from gptoss_ft.train.trainers.preference_batch import TINY, completion_scores, tokens


class ReferenceFreeTrainer(PairTrainer):
    """Scores a batch and logs what TRL logs of it; subclasses say the loss."""

    channel_values = "logps"

    @abstractmethod
    def losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss of each pair and what is logged of each, by name, all `[pairs]`.

        Args:
            chosen, rejected: weighted mean log-probability of each completion.
        """

    def batch_loss(self, log_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns what is added to the pairs' mean loss.

        Args:
            log_probs: weighted, of all completions, `[completions, longest]`.
            weights: likewise.
        """
        return log_probs.new_zeros(())

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        scores = completion_scores(model, inputs, self.aux_loss_enabled)
        weights = inputs["weights"]
        log_probs = scores.log_probs * weights
        means = log_probs.sum(1) / weights.sum(1).clamp(min=TINY)
        chosen, rejected = means.chunk(2)
        losses, noted = self.losses(chosen, rejected)
        extra = self.batch_loss(log_probs, weights)
        loss = losses.mean() + extra
        if scores.aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * scores.aux_loss
            noted["aux_loss"] = scores.aux_loss.detach().expand(len(chosen))
        self._note_pairs(inputs, scores, chosen.detach(), rejected.detach(), noted)
        self.note_channels(inputs, scores.log_probs.detach())
        return loss

    def _note_pairs(
        self,
        batch: Batch,
        scores: TokenScores,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        noted: dict[str, torch.Tensor],
    ) -> None:
        """Adds the metrics of TRL's trainers of these methods to those of the method itself."""
        counted = batch["weights"] != 0
        logits = (scores.mean_logits * counted).sum(1) / counted.sum(1).clamp(min=1)
        values = {
            "rewards/chosen": self.beta * chosen,
            "rewards/rejected": self.beta * rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": self.beta * (chosen - rejected),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            **dict(zip(("logits/chosen", "logits/rejected"), logits.chunk(2), strict=True)),
            **noted,
        }
        pairs = self.examples(batch)
        self.note_totals(pairs, {name: value.detach().sum() for name, value in values.items()})
        if self.mode == "train":
            (count,) = over_processes([tokens(batch).sum()], self.accelerator).tolist()
            self._total_train_tokens += int(count)


class ORPOTrainer(ReferenceFreeTrainer):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691).

    The likelihood term is the mean over the weighted tokens of the batch's chosen completions.
    TRL's includes those of prompts, which are never trained here.
    """

    def losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns `-beta log sigmoid` of the log odds ratio."""
        log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        ratio = F.logsigmoid(log_odds)
        return -self.beta * ratio, {"log_odds_ratio": ratio, "log_odds_chosen": log_odds}

    def batch_loss(self, log_probs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the mean negative log-likelihood of the chosen completions' tokens."""
        pairs = len(weights) // 2
        return -log_probs[:pairs].sum() / weights[:pairs].sum().clamp(min=TINY)


class SimPOTrainer(ReferenceFreeTrainer):
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734).

    Args:
        gamma: the margin that the reward of chosen is to have over rejected.
    """

    def __init__(self, *args: Any, gamma: float, **kwargs: Any) -> None:
        self.gamma = gamma
        super().__init__(*args, **kwargs)

    def losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the sigmoid loss of the rewards' margin, with TRL's label smoothing."""
        margin = self.beta * (chosen - rejected) - self.gamma
        kept, flipped = F.logsigmoid(margin), F.logsigmoid(-margin)
        return -(1 - self.label_smoothing) * kept - self.label_smoothing * flipped, {}


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Computes `log(1 - exp(x))` for x < 0, accurate at both ends (Mächler 2012); 0 is taken as
    -1e-7.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near_zero = x > -math.log(2)
    # The other branch's argument is kept away from where its gradient is infinite.
    small = torch.where(near_zero, x, -1.0)
    large = torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
