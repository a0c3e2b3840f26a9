"""The weighted, sliced loss against torch's cross-entropy on full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_ft.model import token_scores as scores_module
from gptoss_ft.model.loss import weighted_loss
from gptoss_ft.model.token_scores import token_scores

VOCABULARY, HIDDEN = 1_000, 16


def _case(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    batch: int = 3,
    length: int = 20,
    share: float = 0.6,
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, HIDDEN, generator=generator)
    head = (torch.randn(VOCABULARY, HIDDEN, generator=generator)).to(dtype)
    labels = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    weights = torch.rand(batch, length, generator=generator) * (
        torch.rand(batch, length, generator=generator) < share
    )
    labels[weights == 0] = -100  # no label is looked at where there is no weight
    return hidden, head, labels, weights


def _reference(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of negative log-likelihoods, and of hits, from all logits at once."""
    logits = (hidden[:, :-1].double() @ head.double().T).flatten(0, 1)
    targets, scale = labels[:, 1:].flatten(), weights[:, 1:].flatten()
    nll = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    return (nll * scale).sum(), ((logits.argmax(-1) == targets) * scale).sum()


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(5, 70),
    vocabulary_slice=st.integers(60, 1_200),
    batch=st.integers(1, 3),
    length=st.integers(1, 24),
    share=st.sampled_from([0.1, 0.6, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_sums_and_gradient_equal_full_cross_entropy(
    rows: int, vocabulary_slice: int, **sizes: Any
) -> None:
    hidden, head, labels, weights = _case(**sizes)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores_module, "ROWS_AT_ONCE", rows)
        patch.setattr(scores_module, "CPU_SLICE", vocabulary_slice)
        sums = weighted_loss(ours, head, labels, weights)
    nll, correct = _reference(theirs, head, labels, weights)
    assert sums.loss.item() == pytest.approx(nll.item(), rel=1e-5)
    assert sums.correct.item() == pytest.approx(correct.item(), rel=1e-6)
    assert sums.weight.item() == pytest.approx(weights[:, 1:].sum().item(), rel=1e-6)

    (sums.loss * 0.3).backward()
    (nll * 0.3).backward()
    assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()
    assert ours.grad[:, -1].abs().max() == 0, "the last position predicts nothing"


def test_token_accuracy_counts_labels_that_are_likeliest() -> None:
    """Random labels are hardly ever right; these are, in a known half."""
    hidden, head, _, _ = _case()
    best = (hidden @ head.T).argmax(-1)
    labels = torch.full((3, 20), -100)
    labels[:, 1:] = best[:, :-1]
    labels[:, 1::2] = (labels[:, 1::2] + 1) % VOCABULARY
    weights = torch.ones(3, 20)
    assert weighted_loss(hidden, head, labels, weights).correct.item() == 3 * 9


def test_large_logits_do_not_overflow() -> None:
    """In whatever order the slices bring the larger ones."""
    hidden, head, labels, weights = _case()
    for order in (torch.arange(VOCABULARY), (hidden[0, 0] @ head.T).argsort()):
        sums = weighted_loss(hidden * 1e4, head[order], labels, weights)
        nll, _ = _reference(hidden * 1e4, head[order], labels, weights)
        assert sums.loss.item() == pytest.approx(nll.item(), rel=1e-5)


def test_a_batch_without_weight_gives_zero_and_a_zero_gradient() -> None:
    hidden, head, labels, weights = _case()
    hidden.requires_grad_()
    sums = weighted_loss(hidden, head, labels, torch.zeros_like(weights))
    sums.loss.backward()
    assert sums.loss.item() == sums.weight.item() == sums.correct.item() == 0
    assert hidden.grad is not None and hidden.grad.abs().max() == 0


def test_bfloat16_head_is_read_exactly() -> None:
    """On a CPU the head is stored in bfloat16 and used in float32."""
    hidden, head, labels, weights = _case(dtype=torch.bfloat16)
    sums = weighted_loss(hidden, head, labels, weights)
    nll, _ = _reference(hidden, head.float(), labels, weights)
    assert sums.loss.item() == pytest.approx(nll.item(), rel=1e-6)


def test_bfloat16_hidden_states_stay_near() -> None:
    """A GPU's dtypes: factors in bfloat16, sums in float32, gradient in bfloat16."""
    hidden, head, labels, weights = _case(dtype=torch.bfloat16)
    ours = hidden.bfloat16().requires_grad_()
    theirs = hidden.bfloat16().float().requires_grad_()
    sums = weighted_loss(ours, head, labels, weights)
    nll, _ = _reference(theirs, head.float(), labels, weights)
    sums.loss.backward()
    nll.backward()
    assert sums.loss.dtype == torch.float32
    assert sums.loss.item() == pytest.approx(nll.item(), rel=1e-5)
    assert ours.grad.dtype == torch.bfloat16
    assert (ours.grad.float() - theirs.grad).norm() <= 5e-3 * theirs.grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpus_products_on_meta_tensors(dtype: torch.dtype) -> None:
    """Shapes, dtypes and operators of the path that no CPU takes; values are not looked at."""
    hidden = torch.empty(7, HIDDEN, dtype=dtype, device="meta", requires_grad=True)
    head = torch.empty(VOCABULARY, HIDDEN, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(7, dtype=torch.int64, device="meta")
    scores = token_scores(hidden, head, labels)
    assert all(found.shape == (7,) for found in scores[:-1])
    assert scores.is_top1.dtype == torch.bool
    assert {found.dtype for found in scores[:-1]} == {torch.bool, torch.float32}
    (gradient,) = torch.autograd.grad(scores.log_probs.sum(), hidden)
    assert (gradient.shape, gradient.dtype) == (hidden.shape, dtype)


class _Sizes(TorchDispatchMode):
    """The largest tensor that any operator returns in memory of its own."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.largest = max(self.largest, storage.nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_slices_of_logits_and_head_exist(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(scores_module, "ROWS_AT_ONCE", 20)
    monkeypatch.setattr(scores_module, "CPU_SLICE", 50)
    hidden, head, labels, weights = _case(dtype=dtype)
    hidden.requires_grad_()
    with _Sizes(hidden, head, labels, weights) as sizes:
        weighted_loss(hidden, head, labels, weights).loss.backward()
    # A slice of logits or of the head, or the gradient; never logits of all rows or of all tokens.
    assert 0 < sizes.largest <= max(20 * 50, 50 * HIDDEN, hidden.numel()) * 4
