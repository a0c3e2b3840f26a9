"""Scores of tokens, formed by slices of the vocabulary, against all logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ft.model import token_scores as module
from gptoss_ft.model.token_scores import TokenScores, token_log_probs, token_scores

VOCABULARY, HIDDEN = 1_000, 16


def _reference(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> TokenScores:
    logits = hidden.double() @ head.double().T
    log_p = logits.log_softmax(-1)
    found = log_p.gather(-1, labels[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    squares = (2 * log_p).logsumexp(-1)
    return TokenScores(found, logits.argmax(-1) == labels, entropy, logits.mean(-1), squares)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 60),
    rows=st.integers(5, 70),
    vocabulary_slice=st.integers(60, 1_200),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_scores_and_gradient_equal_those_of_all_logits(
    count: int, rows: int, vocabulary_slice: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(count, HIDDEN, generator=generator)
    head = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    best = (hidden @ head.T).argmax(-1)
    random = torch.randint(0, VOCABULARY, (count,), generator=generator)
    labels = torch.where(random < VOCABULARY // 2, best, random)
    upstream = torch.randn(count, generator=generator)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_AT_ONCE", rows)
        patch.setattr(module, "CPU_SLICE", vocabulary_slice)
        found = token_scores(ours, head, labels)
        few, is_top1 = token_log_probs(hidden, head, labels)
        with torch.no_grad():
            again = token_scores(ours, head, labels)
    expected = _reference(theirs, head, labels)
    for name in TokenScores._fields[:-1]:
        mine, reference = getattr(found, name).detach(), getattr(expected, name).detach()
        torch.testing.assert_close(mine, reference.to(mine.dtype), rtol=1e-4, atol=1e-3 * scale)
        assert torch.equal(getattr(again, name), mine), name
    assert torch.equal(few, found.log_probs.detach()) and torch.equal(is_top1, found.is_top1)
    (mine,) = torch.autograd.grad(found.log_probs, ours, upstream)
    (reference,) = torch.autograd.grad(expected.log_probs, theirs, upstream.double())
    # A difference of rows of the head, which may cancel to nothing but their rounding.
    rounding = 1e-6 * float(upstream.norm())
    assert (mine - reference).norm() <= 1e-4 * reference.norm() + rounding
    assert not any(score.requires_grad for score in found[1:-1])
