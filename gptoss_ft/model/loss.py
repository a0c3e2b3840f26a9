"""Weighted next-token loss that never holds logits of more than a slice of the vocabulary.

Only positions with weight are scored. Their softmax is formed online, as in flash attention: a
slice of the vocabulary at a time, with a running maximum, so that every slice of the head is read
and converted once. The gradient to the hidden states,

    weight * (sum_v p_v head_v - head_label),

is formed on the way, while a slice's probabilities exist. Besides the two products with the head
nothing of the size of the vocabulary is computed twice, and nothing of it survives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

# With the vocabulary's slice this bounds the logits that exist together.
ROWS_AT_ONCE = 2_048
# On a CPU a slice's logits should stay in the cache from one pass to the next; on a GPU a slice
# should be work enough for every kernel launched on it.
CPU_SLICE = 1_024
GPU_SLICE = 16_384


class WeightedLoss(NamedTuple):
    """Sums over the scored positions; divide by `weight` for a mean.

    Attributes:
        nll: sum of weight times negative log-likelihood, float32 scalar, differentiable.
        weight: sum of weights, float32 scalar.
        correct: sum of weights of positions at which no token is likelier than the label, float32
            scalar.
    """

    nll: torch.Tensor
    weight: torch.Tensor
    correct: torch.Tensor


def weighted_loss(
    hidden_states: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
) -> WeightedLoss:
    """Cross-entropy of every label given the hidden state before it.

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
    nll, correct = _WeightedCrossEntropy.apply(
        hidden_states[:, :-1][scored], head, labels[:, 1:][scored], weights
    )
    return WeightedLoss(nll, weights.sum(), correct)


@dataclass
class _OnlineSoftmax:
    """The softmax over the slices seen so far, for some rows.

    Attributes:
        largest: `[n]`, the largest logit.
        total: `[n]`, sum of `exp(logit - largest)`.
        label_logit: `[n]`, 0 until the label's slice is seen.
        expectation: `[n, hidden]`, sum of `exp(logit - largest) * head_row`; None if not wanted.
    """

    largest: torch.Tensor
    total: torch.Tensor
    label_logit: torch.Tensor
    expectation: torch.Tensor | None

    @classmethod
    def of_nothing(cls, hidden: torch.Tensor, with_expectation: bool) -> _OnlineSoftmax:
        """Before the first slice; float32."""
        zeros = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        expectation = torch.zeros_like(hidden, dtype=torch.float32) if with_expectation else None
        return cls(torch.full_like(zeros, -torch.inf), zeros, zeros.clone(), expectation)

    def add(self, logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes in a slice of the vocabulary.

        Args:
            logits: float32 `[n, s]`, destroyed.
            rows: the slice's rows of the head, `[s, hidden]`.
            labels: int64 `[n]`, counted from the slice's start, so often outside of it.
        """
        largest = torch.maximum(self.largest, logits.amax(-1))
        inside = (labels >= 0) & (labels < len(rows))
        at_label = logits.gather(-1, labels.clamp(0, len(rows) - 1)[:, None])[:, 0]
        self.label_logit = torch.where(inside, at_label, self.label_logit)
        exponentials = logits.sub_(largest[:, None]).exp_()
        shrinkage = self.largest.sub_(largest).exp_()
        self.total.mul_(shrinkage).add_(exponentials.sum(-1))
        if self.expectation is not None:
            self.expectation.mul_(shrinkage[:, None])
            _add_product(self.expectation, exponentials.to(rows.dtype), rows)
        self.largest = largest


class _WeightedCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies of `[n, hidden]` rows, and the weight of the right ones."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        nll = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros_like(nll)
        for start in range(0, len(hidden), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            label, weight = labels[part], weights[part]
            softmax = _softmax(hidden[part], head, label, needs_gradient)
            nll += (weight * (softmax.largest + softmax.total.log() - softmax.label_logit)).sum()
            correct += (weight * (softmax.label_logit >= softmax.largest)).sum()
            if gradient is not None and softmax.expectation is not None:
                difference = softmax.expectation.div_(softmax.total[:, None]) - head[label]
                gradient[part] = difference.mul_(weight[:, None])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return nll, correct

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None


def _softmax(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, with_expectation: bool
) -> _OnlineSoftmax:
    """The softmax of `hidden @ head.T` over the whole vocabulary."""
    softmax = _OnlineSoftmax.of_nothing(hidden, with_expectation)
    size = min(CPU_SLICE if hidden.device.type == "cpu" else GPU_SLICE, len(head))
    # Buffers that every slice uses again: a large one that is new has its pages faulted in anew.
    converted = None if head.dtype == hidden.dtype else hidden.new_empty(size, head.shape[1])
    flat = torch.empty(len(hidden) * size, dtype=torch.float32, device=hidden.device)
    for start in range(0, len(head), size):
        rows = head[start : start + size]
        if converted is not None:
            rows = converted[: len(rows)].copy_(rows)
        logits = flat[: len(hidden) * len(rows)].view(len(hidden), len(rows))
        _multiply(hidden, rows.T, logits)
        softmax.add(logits, rows, labels - start)
    return softmax


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """`out = left @ right`, float32 whatever the dtype of the factors, never rounded to it."""
    if left.dtype == torch.float32:
        torch.mm(left, right, out=out)
    elif left.device.type == "cpu":
        torch.mm(left.float(), right.float(), out=out)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right` in float32 as in `_multiply`."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.device.type == "cpu":
        total.addmm_(left.float(), right.float())
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
