"""The expert block as one autograd function: nothing dense outlives a product.

Forward, for the rows of each expert, with W unpacked for the product and dropped after it:

    z = x W1' + b1 + s (x A1') B1'      y = act(z) W2' + b2 + s (act A2') B2'      out += w y

Backward unpacks again. With g = dout W2 + s (dout B2) A2, the gradient before the routing weight,
the gradient of act is w g and that of w is <g, act> + <dout, b2>, so y is never needed again. Only
z is saved, or formed anew where memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gptoss_ft.model.experts.gate import Gate
from gptoss_ft.model.experts.products import Products
from gptoss_ft.model.experts.projection import Projection, factors_of, put_columns
from gptoss_ft.model.experts.routing import Chunk, Routing, TokenSums


@dataclass(frozen=True)
class Block:
    """Everything about a call of the expert block besides the tensors that have gradients.

    Attributes:
        routing: the sorted pairs.
        products: the device's inner loop.
        gate: the activation.
        gate_up, down: the projections.
        keep: save the pre-activation for the backward pass; else it is formed again.
    """

    routing: Routing
    products: Products
    gate: Gate
    gate_up: Projection
    down: Projection
    keep: bool

    def at_once(self) -> int:
        """How many experts the device's inner loop takes at once."""
        return self.products.experts_at_once(self.gate_up.packed, self.down.packed)

    def chunks(self) -> Iterator[Chunk]:
        """The experts that are hit, as many at a time."""
        return self.routing.chunks(self.at_once())

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What may have a gradient: the tensors of gate_up, then those of down."""
        return (*self.gate_up.tensors(), *self.down.tensors())

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Block:
        """The same call on other tensors, and with no buffers yet."""
        split = len(self.gate_up.tensors())
        return replace(
            self,
            products=type(self.products)(),
            gate_up=self.gate_up.with_tensors(tensors[:split]),
            down=self.down.with_tensors(tensors[split:]),
        )


def _project(
    x: torch.Tensor,
    projection: Projection,
    bias: torch.Tensor,
    chunk: Chunk,
    block: Block,
    y: torch.Tensor,
) -> None:
    """`y = x W' + b + s (x A') B'`, rows of W in the order of the parts; `bias` of all experts."""
    products = block.products
    products.project(x, projection.packed, chunk, y)
    y.add_(chunk.spread(chunk.pick(bias)))
    factors = factors_of(projection, chunk, block.products, x)
    if factors is not None:
        low = products.multiply(x, factors.A.transpose(1, 2), chunk).mul_(factors.scaling)
        products.add_product(y, low, factors.B, chunk)


def forward_rows(
    block: Block, x: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The block's output, and the pre-activation of all pairs if it is to be kept.

    Args:
        block: the call.
        x: `[tokens, hidden]` in the compute dtype.
        weights: `[tokens, k]` in the compute dtype.

    Returns:
        `[tokens, hidden]`; `[pairs, 2 * intermediate]`, gate before up, or None.
    """
    pairs, routing = len(block.routing.token), block.routing
    kept = x.new_empty(pairs, block.gate_up.packed.out) if block.keep else None
    sums = TokenSums(routing, block.at_once(), x, block.down.packed.out, weights)
    up_bias, down_bias = block.gate_up.bias.to(x.dtype), block.down.bias.to(x.dtype)
    for chunk in block.chunks():
        rows = x.index_select(0, routing.token[chunk.rows])
        z = _pre_activation(block, up_bias, chunk, rows, kept)
        y = sums.rows(chunk)
        _project(block.gate(z), block.down, down_bias, chunk, block, y)
        sums.add(chunk, y)
    return sums.total(), kept


def _pre_activation(
    block: Block,
    bias: torch.Tensor,
    chunk: Chunk,
    rows: torch.Tensor,
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    out = block.gate_up.packed.out
    z = rows.new_empty(len(rows), out) if kept is None else kept[chunk.rows]
    _project(rows, block.gate_up, bias, chunk, block, z)
    return z


@dataclass(frozen=True)
class Wanted:
    """Gradients to form: those of the input, the routing weights, and `tensors()` of each."""

    x: bool
    weights: bool
    gate_up: tuple[bool, ...]
    down: tuple[bool, ...]


class _Gradients:
    """Gradients of one projection's tensors, filled expert by expert; zero where none is hit."""

    def __init__(
        self, projection: Projection, wanted: tuple[bool, ...], counts: tuple[int, ...]
    ) -> None:
        self.projection = projection
        new = torch.empty_like if all(counts) else torch.zeros_like
        self.tensors = [
            new(tensor) if want else None
            for tensor, want in zip(projection.tensors(), wanted, strict=True)
        ]

    def wanted(self) -> bool:
        """Whether any of the low-rank factors needs its gradient."""
        return any(tensor is not None for tensor in self.tensors[1:])

    def put_bias(
        self, chunk: Chunk, grad: torch.Tensor, weight: torch.Tensor | None, block: Block
    ) -> None:
        """From the gradient `[n, out]` of the projection's output, times `weight` `[n, 1]`."""
        if self.tensors[0] is None:
            return
        # A sum over the rows of each expert is a product with ones.
        ones = grad.new_ones(len(grad), 1) if weight is None else weight
        columns = ones.expand(-1, block.products.rank_multiple).contiguous()
        sums = block.products.outer(columns, grad, chunk)[:, 0]
        chunk.put(self.tensors[0], sums)

    def put_factors(self, chunk: Chunk, grad_A: torch.Tensor, grad_B: torch.Tensor) -> None:
        """From the gradients of `Factors`."""
        start = 0
        for number, update in enumerate(self.projection.updates):
            columns = slice(start, start + update.A.shape[1])
            start = columns.stop
            to_A, to_B = self.tensors[1 + 2 * number : 3 + 2 * number]
            if to_A is not None:
                chunk.put(to_A, grad_A[:, columns])
            if to_B is not None:
                put_columns(to_B, chunk, grad_B[:, columns])


def backward_rows(
    block: Block,
    wanted: Wanted,
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of `x`, `weights`, and the `tensors()` of gate_up and down; None if not wanted.

    Args:
        block: the call.
        wanted: which gradients are needed.
        grad: `[tokens, hidden]`, gradient of the output, in the compute dtype.
        x, weights, kept: what `forward_rows` took and gave.
    """
    routing = block.routing
    sorted_weights = routing.sorted_weights(weights)
    grad_x = TokenSums(routing, block.at_once(), x, x.shape[1]) if wanted.x else None
    grad_weights = torch.zeros_like(sorted_weights)
    gate_up, down = (
        _Gradients(projection, wants, routing.counts)
        for projection, wants in ((block.gate_up, wanted.gate_up), (block.down, wanted.down))
    )
    up_bias, down_bias = block.gate_up.bias.to(x.dtype), block.down.bias.to(x.dtype)
    for chunk in block.chunks():
        token = routing.token[chunk.rows]
        rows = x.index_select(0, token)
        z = _pre_activation(block, up_bias, chunk, rows) if kept is None else kept[chunk.rows]
        grad_z = _backward_down(
            block,
            down_bias,
            chunk,
            down,
            grad.index_select(0, token),
            sorted_weights[chunk.rows, None],
            z,
            grad_weights[chunk.rows],
        )
        gate_up.put_bias(chunk, grad_z, None, block)
        _backward_gate_up(block, chunk, gate_up, grad_z, rows, grad_x)
    return (
        None if grad_x is None else grad_x.total(),
        grad_weights[routing.places] if wanted.weights else None,
        *gate_up.tensors,
        *down.tensors,
    )


def _backward_down(
    block: Block,
    bias: torch.Tensor,
    chunk: Chunk,
    gradients: _Gradients,
    grad: torch.Tensor,
    weight: torch.Tensor,
    z: torch.Tensor,
    grad_weight: torch.Tensor,
) -> torch.Tensor:
    """Gradient of the pre-activation; writes those of the routing weights and of down."""
    products, projection = block.products, block.down
    g = grad.new_empty(len(grad), projection.packed.width)
    products.project_back(grad, projection.packed, chunk, g)
    factors = factors_of(projection, chunk, block.products, grad)
    if factors is not None:
        low_grad = products.multiply(grad, factors.B.transpose(1, 2), chunk).mul_(factors.scaling)
        products.add_product(g, low_grad, factors.A, chunk)
    activation, grad_z = block.gate.backward(g, weight, z)
    torch.sum(g.mul_(activation), dim=1, out=grad_weight)
    column = chunk.pick(bias)[:, :, None].expand(-1, -1, products.rank_multiple).contiguous()
    grad_weight.add_(products.multiply(grad, column, chunk)[:, 0])
    gradients.put_bias(chunk, grad, weight, block)
    if factors is not None and gradients.wanted():
        low = products.multiply(activation, factors.A.transpose(1, 2), chunk)
        low.mul_(factors.scaling)
        gradients.put_factors(
            chunk,
            products.outer(low_grad * weight, activation, chunk),
            products.outer(low * weight, grad, chunk),
        )
    return grad_z


def _backward_gate_up(
    block: Block,
    chunk: Chunk,
    gradients: _Gradients,
    grad_z: torch.Tensor,
    rows: torch.Tensor,
    grad_x: TokenSums | None,
) -> None:
    """Writes the gradients of gate_up and adds those of the rows of the input."""
    products, projection = block.products, block.gate_up
    factors = factors_of(projection, chunk, block.products, grad_z)
    if factors is not None:
        low_grad = products.multiply(grad_z, factors.B.transpose(1, 2), chunk)
        low_grad.mul_(factors.scaling)
    if grad_x is not None:
        dx = grad_x.rows(chunk)
        products.project_back(grad_z, projection.packed, chunk, dx)
        if factors is not None:
            products.add_product(dx, low_grad, factors.A, chunk)
        grad_x.add(chunk, dx)
    if factors is not None and gradients.wanted():
        low = products.multiply(rows, factors.A.transpose(1, 2), chunk).mul_(factors.scaling)
        gradients.put_factors(
            chunk, products.outer(low_grad, rows, chunk), products.outer(low, grad_z, chunk)
        )


def run_experts(block: Block, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the outputs of the experts of each token, with its gradients.

    Args:
        block: the call.
        x: `[tokens, hidden]`.
        weights: `[tokens, k]`.

    Returns:
        `[tokens, hidden]`, dtype of `x`.
    """
    return _Experts.apply(block, x, weights, *block.tensors())


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Keeps autocast from converting what is in the compute dtype already."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _Experts(torch.autograd.Function):
    """Saves its inputs and, if asked to, the pre-activation; the packed weights are constants."""

    @staticmethod
    def forward(
        ctx: Any, block: Block, x: torch.Tensor, weights: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        dtype = block.products.compute_dtype(x)
        with _without_autocast(x.device):
            output, kept = forward_rows(block, x.to(dtype), weights.to(dtype))
        ctx.save_for_backward(x, weights, kept, *tensors)
        # Tensors are left to save_for_backward, so that checkpointing can drop them.
        ctx.block = block.with_tensors([torch.empty(0)] * len(tensors))
        ctx.dtype = dtype
        return output.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weights, kept, *tensors = ctx.saved_tensors
        block: Block = ctx.block.with_tensors(tensors)
        _, needs_x, needs_weights, *needs = ctx.needs_input_grad
        split = len(block.gate_up.tensors())
        wanted = Wanted(needs_x, needs_weights, tuple(needs[:split]), tuple(needs[split:]))
        x, weights, grad = (tensor.to(ctx.dtype) for tensor in (x, weights, grad))
        with _without_autocast(x.device):
            return None, *backward_rows(block, wanted, grad, x, weights, kept)
