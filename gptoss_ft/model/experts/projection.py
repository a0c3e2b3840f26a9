"""One of an expert block's two projections: packed weights, bias, updates, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from gptoss_ft.model.experts.backends.base import PackedWeight
from gptoss_ft.model.experts.update import ChunkContext, ExpertUpdate

T = TypeVar("T")


@dataclass(frozen=True)
class ExpertProjection:
    """`y = x W' + b`, plus what each update adds.

    Attributes:
        weight: the packed weights of all experts; they have no gradient.
        bias: `[E, out]`, in the order of the halves.
        updates: any number of them, in the order of the halves.
    """

    weight: PackedWeight
    bias: torch.Tensor
    updates: tuple[ExpertUpdate, ...] = ()

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Returns what may have a gradient: the bias, then the tensors of each update."""
        return (self.bias, *(tensor for update in self.updates for tensor in update.tensors()))

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> ExpertProjection:
        """Returns the same projection on other tensors, in the order of `tensors()`."""
        updates = [update.with_tensors(own) for update, own in self._by_update(tensors)]
        return replace(self, bias=tensors[0], updates=tuple(updates))

    def forward(self, at: ChunkContext, x: torch.Tensor, y: torch.Tensor) -> None:
        """Writes the output rows of a chunk, `[n, in] -> [n, out]`."""
        at.backend.project(x, self.weight, at.chunk, y)
        y.add_(at.chunk.repeat(self._chunk_bias(at)))
        for update in self.updates:
            update.add_output(at, x, y)

    def zero_grads(self, wanted: Sequence[bool]) -> list[torch.Tensor | None]:
        """Returns a zero for each of `tensors()`, None where it is not wanted."""
        pairs = zip(self.tensors(), wanted, strict=True)
        return [torch.zeros_like(tensor) if want else None for tensor, want in pairs]

    def backward_input(
        self, at: ChunkContext, grad: torch.Tensor, grad_x: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, ...]]:
        """Writes the gradient of the input, and returns what `backward_tensors` goes on with.

        Args:
            at: the chunk.
            grad: `[n, out]`, gradient of the output rows.
            grad_x: `[n, in]`, written; None where it is not wanted.
        """
        if grad_x is not None:
            at.backend.project_back(grad, self.weight, at.chunk, grad_x)
        return [update.add_input_grad(at, grad, grad_x) for update in self.updates]

    def backward_tensors(
        self,
        at: ChunkContext,
        saved: list[tuple[torch.Tensor, ...]],
        x: torch.Tensor,
        grad: torch.Tensor,
        row_weights: torch.Tensor | None,
        grads: Sequence[torch.Tensor | None],
    ) -> None:
        """Writes what a chunk gives to the gradients of `tensors()`.

        Args:
            at: the chunk.
            saved: what `backward_input` returned.
            x: `[n, in]`, the input rows.
            grad: `[n, out]`, as in `backward_input`.
            row_weights: `[n, 1]`, by which `grad` is still to be multiplied; None for 1.
            grads: from `zero_grads`.
        """
        if grads[0] is not None:
            self._write_bias_grad(at, grad, row_weights, grads[0])
        for (update, own), kept in zip(self._by_update(grads), saved, strict=True):
            if any(found is not None for found in own):
                update.write_grads(at, kept, x, grad, row_weights, own)

    def bias_products(self, at: ChunkContext, grad: torch.Tensor) -> torch.Tensor:
        """Returns the scalar product of each row `[n, out]` with its expert's bias, `[n]`."""
        bias = self._chunk_bias(at)[:, :, None]
        columns = bias.expand(-1, -1, at.backend.rank_multiple).contiguous()
        return at.backend.multiply(grad, columns, at.chunk)[:, 0]

    def _chunk_bias(self, at: ChunkContext) -> torch.Tensor:
        return at.chunk.select(self.bias).to(at.dtype)

    def _write_bias_grad(
        self,
        at: ChunkContext,
        grad: torch.Tensor,
        row_weights: torch.Tensor | None,
        to: torch.Tensor,
    ) -> None:
        # A sum over the rows of each expert is a product with ones.
        ones = to.new_ones(len(at.chunk), 1, dtype=at.dtype) if row_weights is None else row_weights
        columns = ones.expand(-1, at.backend.rank_multiple).contiguous()
        at.chunk.scatter(at.backend.outer(columns, grad, at.chunk)[:, 0], to)

    def _by_update(self, values: Sequence[T]) -> Iterator[tuple[ExpertUpdate, Sequence[T]]]:
        """Yields each update and its own among values in the order of `tensors()`."""
        start = 1
        for update in self.updates:
            stop = start + len(update.tensors())
            yield update, values[start:stop]
            start = stop
