"""Updates of the packed weights of an expert projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.routing import ExpertChunk


@dataclass(frozen=True)
class ChunkContext:
    """The working set of a projection and its updates at one chunk of experts.

    Attributes:
        chunk: the experts and their rows.
        backend: multiplies.
        dtype: the compute dtype, that of all rows.
    """

    chunk: ExpertChunk
    backend: ExpertBackend
    dtype: torch.dtype


class ExpertUpdate(ABC):
    """A change of one projection of all experts or of some, `y = x (W + change)' + b`.

    The block calls `split_halves` under autograd, and everything else inside its own function, with
    no gradient recorded. The rows `x` and `grad` are for the backend's methods: one that gathers
    while it multiplies may hand out something else than tensors.
    """

    @abstractmethod
    def split_halves(self, halves: int) -> ExpertUpdate:
        """Returns the update with its output rows in the order of `PackedWeight`; differentiable.

        Args:
            halves: how many halves are interleaved in the rows given: 2 for gate_up, 1 for down.
        """

    @abstractmethod
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Returns the tensors that may have a gradient."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Self:
        """Returns the same update on other tensors, in the order of `tensors()`."""

    @abstractmethod
    def add_output(self, at: ChunkContext, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds `x change'` to the output rows, `[n, in] -> [n, out]`."""

    @abstractmethod
    def add_input_grad(
        self, at: ChunkContext, grad: torch.Tensor, grad_x: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Adds `grad change` to the gradient of the input.

        Args:
            at: the chunk.
            grad: `[n, out]`, gradient of the output rows.
            grad_x: `[n, in]`; None where the input needs no gradient.

        Returns:
            What `write_grads` wants to see again.
        """

    @abstractmethod
    def write_grads(
        self,
        at: ChunkContext,
        saved: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        grad: torch.Tensor,
        row_weights: torch.Tensor | None,
        grads: Sequence[torch.Tensor | None],
    ) -> None:
        """Writes what a chunk gives to the gradients of `tensors()`.

        It comes apart from `add_input_grad` because the input of the down projection is formed
        again together with its gradient.

        Args:
            at: the chunk.
            saved: what `add_input_grad` returned.
            x: `[n, in]`, the input rows.
            grad: `[n, out]`, as in `add_input_grad`.
            row_weights: `[n, 1]`, by which `grad` is still to be multiplied; None for 1.
            grads: one for each of `tensors()`, zero before the first chunk; None if not wanted.
        """
