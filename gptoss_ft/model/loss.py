"""Weighted next-token loss that never holds the logits of a whole batch.

Only positions with weight are scored. Their logits exist for one chunk of rows at a time, and the
gradient to the hidden states is formed while they do, so nothing of the size of the vocabulary
survives the forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

# Up to here an allocator hands the same memory out again; beyond, every call pages in new memory.
LOGIT_CHUNK_BYTES = 32 * 2**20
# Narrow enough that a slice of the head and its logits stay in a CPU's cache between two passes.
VOCABULARY_CHUNK = 4_096


class WeightedLoss(NamedTuple):
    """Sums over the scored positions; divide by `weight` for a mean.

    Attributes:
        nll: sum of weight times negative log-likelihood, float32 scalar, differentiable.
        weight: sum of weights, float32 scalar.
        correct: sum of weights of positions whose most likely token is the label, float32 scalar.
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


class _WeightedCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies of `[n, hidden]` rows, float32 inside."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if needs_gradient else None
        nll = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros_like(nll)
        rows = _rows_at_once(hidden.shape[0], head)
        buffer = torch.empty(rows, head.shape[0], dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], max(rows, 1)):
            part = slice(start, start + rows)
            logits = buffer[: hidden[part].shape[0]]
            label, weight = labels[part], weights[part]
            largest, best = _fill_logits(logits, hidden[part], head)
            label_logit = logits.gather(-1, label[:, None])[:, 0]
            total, expectation = _reduce_logits(logits, largest, head, hidden.dtype, needs_gradient)
            nll += (weight * (largest + total.log() - label_logit)).sum()
            correct += (weight * (best == label)).sum()
            if gradient is not None:
                # d nll / d hidden = weight * (sum_v p_v head_v - head_label)
                difference = expectation / total[:, None] - head[label].float()
                gradient[part] = (weight[:, None] * difference).to(hidden.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return nll, correct

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None


def _rows_at_once(rows: int, head: torch.Tensor) -> int:
    """Rows whose logits exist together; with a wide head more, as each chunk converts all of it."""
    vocabulary, width = head.shape
    return min(rows, max(1, LOGIT_CHUNK_BYTES // (4 * vocabulary), width // 8))


def _slices(vocabulary: int) -> Iterator[slice]:
    for start in range(0, vocabulary, VOCABULARY_CHUNK):
        yield slice(start, min(start + VOCABULARY_CHUNK, vocabulary))


def _fill_logits(
    logits: torch.Tensor, hidden: torch.Tensor, head: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes `hidden @ head.T`, converting the head a slice at a time.

    Returns:
        largest logit of every row, `[n]` float32, and its token, `[n]` int64.
    """
    largest = torch.full_like(logits[:, 0], -torch.inf)
    best = torch.zeros_like(largest, dtype=torch.int64)
    for part in _slices(head.shape[0]):
        rows = head[part].to(hidden.dtype)
        if hidden.dtype == logits.dtype:
            torch.mm(hidden, rows.T, out=logits[:, part])  # without a temporary
        else:
            logits[:, part] = hidden @ rows.T
        value, index = logits[:, part].max(-1)
        best = torch.where(value > largest, index + part.start, best)
        largest = torch.maximum(largest, value)
    return largest, best


def _reduce_logits(
    logits: torch.Tensor,
    largest: torch.Tensor,
    head: torch.Tensor,
    dtype: torch.dtype,
    with_expectation: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of `exp(logit - largest)` over the vocabulary, destroying the logits.

    Returns:
        the sum, `[n]`, and the sum times the rows of the head, `[n, hidden]`, zero unless asked
        for; both float32. Their quotient is the expected row of the head.
    """
    total = torch.zeros_like(largest)
    expectation = torch.zeros(
        logits.shape[0], head.shape[1], dtype=torch.float32, device=head.device
    )
    for part in _slices(head.shape[0]):
        exponentials = logits[:, part].sub_(largest[:, None]).exp_()
        total += exponentials.sum(-1)
        if with_expectation:
            expectation += exponentials.to(dtype) @ head[part].to(dtype)
    return total, expectation
