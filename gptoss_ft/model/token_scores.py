"""Log-probabilities of tokens, never holding logits of more than a slice of the vocabulary.

The softmax is formed online, as in flash attention: a slice of the vocabulary at a time, with a
running maximum, so that every slice of the head is read and converted once. The gradient of a
token's log-probability to the hidden state before it,

    head_label - sum_v p_v head_v,

is formed on the way, while a slice's probabilities exist. It has one direction per token whatever
comes after, so nothing has to be known of the loss, and besides the two products with the head
nothing of the size of the vocabulary is computed twice, and nothing of it survives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from gptoss_ft.model.cpu.matmul import add_product, put_product

# With the vocabulary's slice this bounds the logits that exist together.
ROWS_AT_ONCE = 2_048
# On a CPU a slice's logits should stay in the cache from one pass to the next; on a GPU a slice
# should be work enough for every kernel launched on it.
CPU_SLICE = 1_024
GPU_SLICE = 16_384


class TokenScores(NamedTuple):
    """Scores of some tokens under the model, each `[n]` and float32 unless said otherwise.

    Only `log_probs` is differentiable, in the hidden states. TRL's trainers take the same names
    from models with a fused head. A plain tuple, so that wrappers such as DDP find its tensors.

    Attributes:
        log_probs: log-probability of the token.
        is_top1: bool, whether no token is likelier.
        entropy: of the distribution that the token was scored under, in nats.
        mean_logits: mean logit over the vocabulary.
        log_sum_sq_probs: log of the sum over the vocabulary of squared probabilities.
        aux_loss: load-balancing loss of the batch, a scalar, where the model was asked for router
            logits.
    """

    log_probs: torch.Tensor
    is_top1: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    log_sum_sq_probs: torch.Tensor
    aux_loss: torch.Tensor | None = None


def token_scores(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> TokenScores:
    """Scores tokens with everything that preference trainers log of them.

    Products are formed in the dtype of the hidden states, sums and softmax in float32.

    Args:
        hidden: `[n, hidden]`, after the final norm, of the position before each token.
        head: `[vocabulary, hidden]`, frozen, any floating dtype.
        labels: int64 `[n]`, the tokens.
    """
    return TokenScores(*_TokenScoresFunction.apply(hidden, head, labels, True))


def token_log_probs(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `log_probs` and `is_top1` of `token_scores`, without the cost of the others."""
    log_probs, is_top1, *_ = _TokenScoresFunction.apply(hidden, head, labels, False)
    return log_probs, is_top1


@dataclass
class _Moments:
    """Sums over the slices seen so far, for some rows, each `[n]`.

    Attributes:
        logits: sum of logits.
        weighted: sum of `exp(logit - largest) * logit`.
        squares: sum of `exp(logit - largest) ** 2`.
    """

    logits: torch.Tensor
    weighted: torch.Tensor
    squares: torch.Tensor

    def add(
        self, logits: torch.Tensor, exponentials: torch.Tensor, shrinkage: torch.Tensor
    ) -> None:
        """Takes in a slice, whose logits it destroys; `shrinkage` is of earlier exponentials."""
        self.logits += logits.sum(-1)
        self.weighted.mul_(shrinkage).add_(logits.mul_(exponentials).sum(-1))
        squares = torch.mul(exponentials, exponentials, out=logits)
        self.squares.mul_(shrinkage.square_()).add_(squares.sum(-1))


@dataclass
class _OnlineSoftmax:
    """The softmax over the slices seen so far, for some rows.

    Attributes:
        largest: `[n]`, the largest logit.
        total: `[n]`, sum of `exp(logit - largest)`.
        label_logit: `[n]`, 0 until the label's slice is seen.
        expectation: `[n, hidden]`, sum of `exp(logit - largest) * head_row`; None if not wanted.
        moments: None if not wanted.
    """

    largest: torch.Tensor
    total: torch.Tensor
    label_logit: torch.Tensor
    expectation: torch.Tensor | None
    moments: _Moments | None

    @classmethod
    def of_nothing(
        cls, hidden: torch.Tensor, with_expectation: bool, with_moments: bool
    ) -> _OnlineSoftmax:
        """Starts before the first slice; float32."""
        zeros = torch.zeros(len(hidden), dtype=torch.float32, device=hidden.device)
        expectation = torch.zeros_like(hidden, dtype=torch.float32) if with_expectation else None
        moments = _Moments(zeros.clone(), zeros.clone(), zeros.clone()) if with_moments else None
        largest = torch.full_like(zeros, -torch.inf)
        return cls(largest, zeros, zeros.clone(), expectation, moments)

    def add(
        self, logits: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, spare: torch.Tensor
    ) -> None:
        """Takes in a slice of the vocabulary.

        Args:
            logits: float32 `[n, s]`, destroyed.
            rows: the slice's rows of the head, `[s, hidden]`.
            labels: int64 `[n]`, counted from the slice's start, so often outside of it.
            spare: like `logits`, and not the same memory if there are moments; overwritten.
        """
        largest = torch.maximum(self.largest, logits.amax(-1))
        inside = (labels >= 0) & (labels < len(rows))
        at_label = logits.gather(-1, labels.clamp(0, len(rows) - 1)[:, None])[:, 0]
        self.label_logit = torch.where(inside, at_label, self.label_logit)
        exponentials = torch.sub(logits, largest[:, None], out=spare).exp_()
        shrinkage = self.largest.sub_(largest).exp_()
        self.total.mul_(shrinkage).add_(exponentials.sum(-1))
        if self.expectation is not None:
            self.expectation.mul_(shrinkage[:, None])
            _add_product(self.expectation, exponentials.to(rows.dtype), rows)
        if self.moments is not None:
            self.moments.add(logits, exponentials, shrinkage)
        self.largest = largest

    def scores(self, vocabulary: int) -> tuple[torch.Tensor, ...]:
        """Returns the fields of `TokenScores` after the last slice; without moments the first
        two.
        """
        log_total = self.total.log()
        normaliser = self.largest + log_total
        found = self.label_logit - normaliser, self.label_logit >= self.largest
        if self.moments is None:
            return found
        entropy = normaliser - self.moments.weighted / self.total
        squares = self.moments.squares.log() - 2 * log_total
        return *found, entropy, self.moments.logits / vocabulary, squares


class _TokenScoresFunction(torch.autograd.Function):
    """The fields of `TokenScores` for `[n, hidden]` rows; the last three only if asked for."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, moments: bool
    ) -> tuple[torch.Tensor, ...]:
        needs_gradient = ctx.needs_input_grad[0]
        direction = torch.empty_like(hidden) if needs_gradient else None
        parts = []
        for start in range(0, max(len(hidden), 1), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            softmax = _softmax(hidden[part], head, labels[part], needs_gradient, moments)
            parts.append(softmax.scores(len(head)))
            if direction is not None and softmax.expectation is not None:
                mean = softmax.expectation.div_(softmax.total[:, None])
                direction[part] = mean.neg_().add_(head[labels[part]])
        scores = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        if direction is not None:
            ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(*scores[1:])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (direction,) = ctx.saved_tensors
        return (direction * grads[0][:, None]).to(direction.dtype), None, None, None


def _softmax(
    hidden: torch.Tensor,
    head: torch.Tensor,
    labels: torch.Tensor,
    with_expectation: bool,
    with_moments: bool,
) -> _OnlineSoftmax:
    """Computes the softmax of `hidden @ head.T` over the whole vocabulary."""
    softmax = _OnlineSoftmax.of_nothing(hidden, with_expectation, with_moments)
    size = min(CPU_SLICE if hidden.device.type == "cpu" else GPU_SLICE, len(head))
    # Buffers that every slice uses again: a large one that is new has its pages faulted in anew.
    converted = None if head.dtype == hidden.dtype else hidden.new_empty(size, head.shape[1])
    flat = torch.empty(len(hidden) * size, dtype=torch.float32, device=hidden.device)
    spare = torch.empty_like(flat) if with_moments else flat
    for start in range(0, len(head), size):
        rows = head[start : start + size]
        if converted is not None:
            rows = converted[: len(rows)].copy_(rows)
        shape = len(hidden), len(rows)
        logits, other = (x[: shape[0] * shape[1]].view(shape) for x in (flat, spare))
        _multiply(hidden, rows.T, logits)
        softmax.add(logits, rows, labels - start, other)
    return softmax


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """Writes `out = left @ right` in float32, whatever the dtype of the factors, without rounding
    to it.
    """
    if left.device.type == "cpu":
        put_product(out, left.float(), right.float())
    elif left.dtype == torch.float32:
        torch.mm(left, right, out=out)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds `total += left @ right` in float32 as in `_multiply`."""
    if left.device.type == "cpu":
        add_product(total, left.float(), right.float())
    elif left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
