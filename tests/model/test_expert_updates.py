"""Expert updates that the package does not have, given in the place of the low-rank one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from expert_cases import (
    BACKENDS,
    GRADIENT_ERROR,
    NAMES,
    OUTPUT_ERROR,
    Case,
    assert_near,
    gradients,
    make_case,
)

from gptoss_ft.model.experts.backends.base import ExpertBackend, split_halves
from gptoss_ft.model.experts.low_rank import low_rank_update
from gptoss_ft.model.experts.update import ChunkContext, ExpertUpdate

EXPERTS, CHOSEN = 5, (1, 3)


@dataclass(frozen=True)
class DenseDelta(ExpertUpdate):
    """Adds a dense matrix to the weight of every expert.

    Attributes:
        delta: `[E, out, in]`.
    """

    delta: torch.Tensor

    def split_halves(self, halves: int) -> DenseDelta:
        return DenseDelta(split_halves(self.delta, halves).flatten(1, 2))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.delta,)

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> DenseDelta:
        return DenseDelta(*tensors)

    def add_output(self, at: ChunkContext, x: torch.Tensor, y: torch.Tensor) -> None:
        matrices = at.chunk.select(self.delta).to(at.dtype).transpose(1, 2)
        at.backend.add_product(y, x, matrices, at.chunk)

    def add_input_grad(
        self, at: ChunkContext, grad: torch.Tensor, grad_x: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        if grad_x is not None:
            matrices = at.chunk.select(self.delta).to(at.dtype)
            at.backend.add_product(grad_x, grad, matrices, at.chunk)
        return ()

    def write_grads(
        self,
        at: ChunkContext,
        saved: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        grad: torch.Tensor,
        row_weights: torch.Tensor | None,
        grads: Sequence[torch.Tensor | None],
    ) -> None:
        (to,) = grads
        assert to is not None and saved == ()
        weighted = grad if row_weights is None else grad * row_weights
        at.chunk.scatter(at.backend.outer(weighted, x, at.chunk), to)


@dataclass(frozen=True)
class ChosenLowRank(ExpertUpdate):
    """Adds `B @ A` to the weights of some experts, and leaves the others alone.

    Attributes:
        A: `[c, r, in]`.
        B: `[c, out, r]`.
        experts: their indices.
    """

    A: torch.Tensor
    B: torch.Tensor
    experts: tuple[int, ...] = CHOSEN

    def split_halves(self, halves: int) -> ChosenLowRank:
        return replace(self, B=split_halves(self.B, halves).flatten(1, 2))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.A, self.B

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> ChosenLowRank:
        return ChosenLowRank(*tensors, self.experts)

    def rows(self, at: ChunkContext) -> list[tuple[int, slice]]:
        """Returns the chosen experts of a chunk, by their place among the chosen, and the rows."""
        found, start = [], 0
        for expert, count in zip(at.chunk.experts, at.chunk.counts, strict=True):
            if expert in self.experts:
                found.append((self.experts.index(expert), slice(start, start + count)))
            start += count
        return found

    def add_output(self, at: ChunkContext, x: torch.Tensor, y: torch.Tensor) -> None:
        for i, rows in self.rows(at):
            y[rows] += x[rows] @ self.A[i].T @ self.B[i].T

    def add_input_grad(
        self, at: ChunkContext, grad: torch.Tensor, grad_x: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        low_grad = grad.new_zeros(len(grad), self.A.shape[1])
        for i, rows in self.rows(at):
            low_grad[rows] = grad[rows] @ self.B[i]
            if grad_x is not None:
                grad_x[rows] += low_grad[rows] @ self.A[i]
        return (low_grad,)

    def write_grads(
        self,
        at: ChunkContext,
        saved: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        grad: torch.Tensor,
        row_weights: torch.Tensor | None,
        grads: Sequence[torch.Tensor | None],
    ) -> None:
        weights = grad.new_ones(len(grad), 1) if row_weights is None else row_weights
        grad_A, grad_B = grads
        for i, rows in self.rows(at):
            weighted = x[rows] * weights[rows]
            if grad_A is not None:
                grad_A[i] += saved[0][rows].T @ weighted
            if grad_B is not None:
                grad_B[i] += grad[rows].T @ (weighted @ self.A[i].T)


Values = dict[str, torch.Tensor]


def dense_values(out: int, width: int) -> Values:
    """Returns a random dense change of every expert."""
    return {"delta": torch.randn(EXPERTS, out, width) / width**0.5}


def dense_change(values: Values) -> torch.Tensor:
    """Returns what `DenseDelta` adds, `[E, out, in]`."""
    return values["delta"]


def chosen_values(out: int, width: int) -> Values:
    """Returns random factors for the chosen experts."""
    A, B = torch.randn(len(CHOSEN), 3, width), torch.randn(len(CHOSEN), out, 3)
    return {"A": A / width**0.5, "B": B / 3**0.5}


def chosen_change(values: Values) -> torch.Tensor:
    """Returns what `ChosenLowRank` adds, `[E, out, in]`."""
    A, B = values["A"], values["B"]
    zeros = torch.zeros(EXPERTS, B.shape[1], A.shape[2])
    return zeros.index_add(0, torch.tensor(CHOSEN), B @ A)


KINDS: list[Any] = [
    pytest.param(DenseDelta, dense_values, dense_change, id="dense"),
    pytest.param(ChosenLowRank, chosen_values, chosen_change, id="chosen"),
]


def random_values(case: Case, make: Callable[[int, int], Values]) -> dict[str, Values]:
    """Returns the leaves of an update of each projection."""
    shapes = {name: getattr(case.dense, name).shape for name in NAMES}
    return {
        name: {key: leaf.requires_grad_() for key, leaf in make(shape[2], shape[1]).items()}
        for name, shape in shapes.items()
    }


def dense_output(case: Case, changes: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns transformers' output with `[E, out, in]` added to the weights, low rank included."""
    parameters = {name: case.weight(name) + changes[name].transpose(1, 2) for name in NAMES}
    parameters |= {f"{name}_bias": case.leaves[f"{name}_bias"] for name in NAMES}
    arguments = (case.leaves["x"], case.indices, case.leaves["weights"])
    return torch.func.functional_call(case.dense, parameters, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("ranks", [(), (2,)])
@pytest.mark.parametrize(("kind", "make", "change"), KINDS)
def test_an_update_of_ones_own_equals_dense_autograd(
    kind: Callable[..., ExpertUpdate],
    make: Callable[[int, int], Values],
    change: Callable[[Values], torch.Tensor],
    ranks: tuple[int, ...],
    keep: bool,
    backend: Callable[[], ExpertBackend],
) -> None:
    """Alone and after the low-rank one: output, and the gradient of every leaf."""
    case = make_case(experts=EXPERTS, ranks=ranks)
    case.packed.backend = lambda device: backend()
    case.packed.save_pre_activation = keep
    values = random_values(case, make)
    updates = [(*case.updates(name), kind(**values[name])) for name in NAMES]
    ours = case.packed(case.leaves["x"], case.indices, case.leaves["weights"], *updates)
    theirs = dense_output(case, {name: change(values[name]) for name in NAMES})
    assert_near(ours, theirs, OUTPUT_ERROR, "output")
    leaves = case.leaves | {
        f"{name}.{key}": leaf for name in NAMES for key, leaf in values[name].items()
    }
    found, expected = gradients(ours, leaves), gradients(theirs, leaves)
    for name in leaves:
        assert expected[name].norm() > 1e-3
        assert_near(found[name], expected[name], GRADIENT_ERROR, name)


def test_low_rank_pairs_as_updates_of_their_own_equal_dense_autograd() -> None:
    """The block adds them one after the other instead of side by side."""
    case = make_case(ranks=(2, 5))
    updates = [tuple(low_rank_update(pair) for pair in case.pairs(name)) for name in NAMES]
    apart = case.packed(case.leaves["x"], case.indices, case.leaves["weights"], *updates)
    theirs = case.theirs()
    assert_near(apart, theirs, OUTPUT_ERROR, "output")
    found, expected = gradients(apart, case.leaves), gradients(theirs, case.leaves)
    for name in case.leaves:
        assert_near(found[name], expected[name], GRADIENT_ERROR, name)


def test_a_frozen_update_costs_no_gradient() -> None:
    """`write_grads` is not called where no gradient is wanted: `DenseDelta`'s would raise."""
    case = make_case(experts=EXPERTS, ranks=())
    values = random_values(case, dense_values)
    updates = [(DenseDelta(values[name]["delta"].detach()),) for name in NAMES]
    ours = case.packed(case.leaves["x"], case.indices, case.leaves["weights"], *updates)
    theirs = dense_output(case, {name: values[name]["delta"].detach() for name in NAMES})
    found, expected = gradients(ours, case.leaves), gradients(theirs, case.leaves)
    for name in case.leaves:
        assert_near(found[name], expected[name], GRADIENT_ERROR, name)
