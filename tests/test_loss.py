"""The weighted, chunked loss against torch's cross-entropy on full logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptoss_ft.model import loss as loss_module
from gptoss_ft.model.loss import weighted_loss

VOCABULARY, HIDDEN = 1_000, 16


def _case(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 20, HIDDEN, generator=generator)
    head = (torch.randn(VOCABULARY, HIDDEN, generator=generator)).to(dtype)
    labels = torch.randint(0, VOCABULARY, (3, 20), generator=generator)
    weights = torch.rand(3, 20, generator=generator) * (
        torch.rand(3, 20, generator=generator) < 0.6
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


@pytest.mark.parametrize("vocabulary_chunk", [64, 333, 4096])
@pytest.mark.parametrize("rows", [2, 7, 1000])
def test_sums_and_gradient_equal_full_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows: int, vocabulary_chunk: int
) -> None:
    monkeypatch.setattr(loss_module, "LOGIT_CHUNK_BYTES", rows * 4 * VOCABULARY)
    monkeypatch.setattr(loss_module, "VOCABULARY_CHUNK", vocabulary_chunk)
    hidden, head, labels, weights = _case()
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()

    sums = weighted_loss(ours, head, labels, weights)
    nll, correct = _reference(theirs, head, labels, weights)
    assert sums.nll.item() == pytest.approx(nll.item(), rel=1e-6)
    assert sums.correct.item() == pytest.approx(correct.item(), rel=1e-6)
    assert sums.weight.item() == pytest.approx(weights[:, 1:].sum().item(), rel=1e-6)

    (sums.nll * 0.3).backward()
    (nll * 0.3).backward()
    assert (ours.grad - theirs.grad).norm() <= 1e-6 * theirs.grad.norm()
    assert ours.grad[:, -1].abs().max() == 0, "the last position predicts nothing"


def test_large_logits_do_not_overflow() -> None:
    hidden, head, labels, weights = _case()
    sums = weighted_loss(hidden * 1e4, head, labels, weights)
    nll, _ = _reference(hidden * 1e4, head, labels, weights)
    assert sums.nll.item() == pytest.approx(nll.item(), rel=1e-5)


def test_a_batch_without_weight_gives_zero_and_a_zero_gradient() -> None:
    hidden, head, labels, weights = _case()
    hidden.requires_grad_()
    sums = weighted_loss(hidden, head, labels, torch.zeros_like(weights))
    sums.nll.backward()
    assert sums.nll.item() == sums.weight.item() == sums.correct.item() == 0
    assert hidden.grad is not None and hidden.grad.abs().max() == 0


def test_bfloat16_head_is_read_exactly() -> None:
    """On a CPU the head is stored in bfloat16 and used in float32."""
    hidden, head, labels, weights = _case(dtype=torch.bfloat16)
    sums = weighted_loss(hidden, head, labels, weights)
    nll, _ = _reference(hidden, head.float(), labels, weights)
    assert sums.nll.item() == pytest.approx(nll.item(), rel=1e-6)


def test_bfloat16_hidden_states_stay_near() -> None:
    """The path of a GPU: multiplications in bfloat16, sums in float32, gradient in bfloat16."""
    hidden, head, labels, weights = _case(dtype=torch.bfloat16)
    ours = hidden.bfloat16().requires_grad_()
    theirs = hidden.bfloat16().float().requires_grad_()
    sums = weighted_loss(ours, head, labels, weights)
    nll, _ = _reference(theirs, head.float(), labels, weights)
    sums.nll.backward()
    nll.backward()
    assert sums.nll.dtype == torch.float32
    assert sums.nll.item() == pytest.approx(nll.item(), rel=1e-2)
    assert ours.grad.dtype == torch.bfloat16
    assert (ours.grad.float() - theirs.grad).norm() <= 2e-2 * theirs.grad.norm()


def test_logits_of_the_whole_batch_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak size of any tensor that is allocated stays within the chunk."""
    monkeypatch.setattr(loss_module, "LOGIT_CHUNK_BYTES", 5 * 4 * VOCABULARY)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    hidden, head, labels, weights = _case()
    with Watch():
        weighted_loss(hidden, head, labels, weights)
    assert max(sizes) <= max(5 * VOCABULARY, head.numel())
