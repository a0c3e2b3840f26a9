"""The expert GEMM backend: what the expert block asks of a device.

A backend multiplies with packed weights and with small matrices of each expert. It also owns what
lies between the products: the gather of a chunk's rows, the activation, and the weighted scatter of
the results. Those have defaults in plain torch; a backend with a kernel of its own overrides them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from gptoss_ft.model.experts.combine import Combine, GatherCombine, ScatterCombine
from gptoss_ft.model.experts.gate import Gate
from gptoss_ft.model.experts.routing import ExpertChunk, Routing
from gptoss_ft.mxfp4.codec import BLOCK_SIZE


@dataclass(frozen=True)
class PackedWeight:
    """One projection's MXFP4 weights of all experts, with output rows split into halves.

    Gate and up, whose rows are interleaved in the checkpoint, are each contiguous in the output
    that way; nothing is copied for it. The down projection has a single half.

    Attributes:
        blocks: uint8 `[E, halves, out / halves, in / 32, 16]`, a view.
        scales: uint8 `[E, halves, out / halves, in / 32]`, a view.
    """

    blocks: torch.Tensor
    scales: torch.Tensor

    @property
    def out(self) -> int:
        """Number of output rows."""
        return self.scales.shape[1] * self.scales.shape[2]

    @property
    def width(self) -> int:
        """Number of input columns."""
        return self.scales.shape[3] * BLOCK_SIZE


def split_halves(rows: torch.Tensor, halves: int) -> torch.Tensor:
    """Returns `[E, out, …]` as a view `[E, halves, out / halves, …]`; half h has rows h::halves."""
    return rows.unflatten(1, (-1, halves)).transpose(1, 2)


class ExpertBackend(ABC):
    """The inner loop of one pass through an expert block.

    The block makes a new one for the forward and for the backward pass, so buffers live no longer
    than a pass. Rows are those of one chunk, sorted by expert, in the compute dtype. What `gather`
    returns is read by the backend's own methods only, so a backend that gathers while it multiplies
    may return any handle from it.

    Attributes:
        rank_multiple: inner dimensions of small products are filled up to a multiple of it.
    """

    rank_multiple = 1

    @abstractmethod
    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        """Returns the dtype of all rows, given the block's input."""

    @abstractmethod
    def experts_at_once(self, *weights: PackedWeight) -> int:
        """Returns how many experts a chunk may have, given the weights of both projections."""

    @abstractmethod
    def project(
        self, rows: torch.Tensor, weight: PackedWeight, chunk: ExpertChunk, y: torch.Tensor
    ) -> None:
        """Writes `y = rows @ W.T`, `[n, in] -> [n, out]`."""

    @abstractmethod
    def project_back(
        self, rows: torch.Tensor, weight: PackedWeight, chunk: ExpertChunk, y: torch.Tensor
    ) -> None:
        """Writes `y = rows @ W`, `[n, out] -> [n, in]`."""

    @abstractmethod
    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> torch.Tensor:
        """Multiplies the rows of each expert by its own matrix, `[n, p] x [c, p, q] -> [n, q]`."""

    @abstractmethod
    def add_product(
        self, y: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> None:
        """Adds `multiply(rows, matrices, chunk)` to `y`."""

    @abstractmethod
    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: ExpertChunk) -> torch.Tensor:
        """Forms `left.T @ right` over each expert's rows, `[n, p] x [n, q] -> [c, p, q]`."""

    def gather(self, states: torch.Tensor, chunk: ExpertChunk) -> torch.Tensor:
        """Returns the rows of a chunk, `[tokens, width] -> [n, width]`."""
        return states.index_select(0, chunk.token)

    def activate(self, gate: Gate, z: torch.Tensor) -> torch.Tensor:
        """Returns the activation, `[n, 2 * I] -> [n, I]`; `z` has gate before up."""
        return gate(z)

    def activate_backward(
        self,
        gate: Gate,
        z: torch.Tensor,
        grad: torch.Tensor,
        row_weights: torch.Tensor,
        grad_weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Forms the activation again and goes back through it and through the routing weights.

        Args:
            gate: the activation.
            z: `[n, 2 * I]`.
            grad: `[n, I]`, gradient of the activation before the routing weight; overwritten.
            row_weights: `[n, 1]`, the routing weights.
            grad_weights: `[n]`, filled with `<grad, activation>` of each row.

        Returns:
            The activation `[n, I]`; the gradient of `z`.
        """
        activation, grad_z = gate.backward(grad, row_weights, z)
        torch.sum(grad.mul_(activation), dim=1, out=grad_weights)
        return activation, grad_z

    def combine(
        self,
        routing: Routing,
        at_once: int,
        width: int,
        like: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> Combine:
        """Returns empty sums over the rows of each token.

        Args:
            routing: the pairs.
            at_once: experts in a chunk, at most.
            width: of a row.
            like: a tensor of the dtype and device of rows and sums.
            weights: `[tokens, k]`, factors of the pairs; None for 1.
        """
        kind = GatherCombine if at_once > 1 else ScatterCombine
        return kind(routing, width, like, weights)
