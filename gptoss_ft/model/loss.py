"""Weighted next-token loss, which scores the positions with weight and no others."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gptoss_ft.model.token_scores import token_log_probs


class WeightedLoss(NamedTuple):
    """Sums over the scored positions; divide by `weight` for a mean.

    Only `loss` is differentiable, in the hidden states. A plain tuple, so that wrappers such as DDP
    find the tensors in it.

    Attributes:
        loss: sum of weight times negative log-likelihood, float32 scalar.
        weight: sum of weights, float32 scalar.
        correct: sum of weights of positions at which no token is likelier than the label, float32
            scalar.
        aux_loss: load-balancing loss of the batch, where the model was asked for router logits.
    """

    loss: torch.Tensor
    weight: torch.Tensor
    correct: torch.Tensor
    aux_loss: torch.Tensor | None = None


def weighted_loss(
    hidden_states: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
) -> WeightedLoss:
    """Computes the cross-entropy of every label given the hidden state before it.

    Products are formed in the dtype of the hidden states, sums and softmax in float32.

    Args:
        hidden_states: `[batch, length, hidden]` after the final norm.
        head: `[vocabulary, hidden]`, frozen, any floating dtype.
        labels: int64 `[batch, length]`; `labels[:, t]` is the token to predict at position t, that
            is from `hidden_states[:, t - 1]`.
        loss_weights: `[batch, length]`; positions with weight 0 are not scored, whatever their
            label.
    """
    scored = loss_weights[:, 1:] != 0
    weights = loss_weights[:, 1:][scored].float()
    log_probs, is_top1 = token_log_probs(hidden_states[:, :-1][scored], head, labels[:, 1:][scored])
    return WeightedLoss(-(weights * log_probs).sum(), weights.sum(), (weights * is_top1).sum())
