"""The expert block as one autograd function: nothing dense outlives a product.

Forward, for the rows of each expert, with W unpacked for the product and dropped after it:

    z = x W1' + b1 + updates        y = act(z) W2' + b2 + updates        out += w y

Backward unpacks again. With g = dout (W2 + updates), the gradient before the routing weight, the
gradient of act is w g and that of w is <g, act> + <dout, b2>, so y is never needed again. Only z is
saved, or formed anew where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.combine import Combine
from gptoss_ft.model.experts.gate import Gate
from gptoss_ft.model.experts.projection import ExpertProjection
from gptoss_ft.model.experts.routing import Routing
from gptoss_ft.model.experts.update import ChunkContext


@dataclass(frozen=True)
class ExpertCall:
    """Everything about a call of the expert block besides the tensors that have gradients.

    Attributes:
        routing: the sorted pairs.
        new_backend: makes a backend for one pass; its buffers end with the pass.
        gate: the activation.
        gate_up, down: the projections.
        keep: save the pre-activation for the backward pass; else it is formed again.
    """

    routing: Routing
    new_backend: Callable[[], ExpertBackend]
    gate: Gate
    gate_up: ExpertProjection
    down: ExpertProjection
    keep: bool

    def at_once(self, backend: ExpertBackend) -> int:
        """Returns how many experts the backend takes at once."""
        return backend.experts_at_once(self.gate_up.weight, self.down.weight)

    def chunks(self, backend: ExpertBackend, dtype: torch.dtype) -> Iterator[ChunkContext]:
        """Yields the experts that are hit, as many at a time."""
        for chunk in self.routing.chunks(self.at_once(backend)):
            yield ChunkContext(chunk, backend, dtype)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Returns what may have a gradient: the tensors of gate_up, then those of down."""
        return (*self.gate_up.tensors(), *self.down.tensors())

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> ExpertCall:
        """Returns the same call on other tensors, in the order of `tensors()`."""
        split = len(self.gate_up.tensors())
        return replace(
            self,
            gate_up=self.gate_up.with_tensors(tensors[:split]),
            down=self.down.with_tensors(tensors[split:]),
        )


def forward_experts(
    call: ExpertCall, backend: ExpertBackend, x: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes the block's output, and the pre-activation of all pairs if it is to be kept.

    Args:
        call: the call.
        backend: a new one.
        x: `[tokens, hidden]` in the compute dtype.
        weights: `[tokens, k]` in the compute dtype.

    Returns:
        `[tokens, hidden]`; `[pairs, 2 * intermediate]`, gate before up, or None.
    """
    pairs = len(call.routing.token)
    kept = x.new_empty(pairs, call.gate_up.weight.out) if call.keep else None
    sums = backend.combine(call.routing, call.at_once(backend), call.down.weight.out, x, weights)
    for at in call.chunks(backend, x.dtype):
        z = _room(call, at, x) if kept is None else kept[at.chunk.rows]
        call.gate_up.forward(at, backend.gather(x, at.chunk), z)
        y = sums.rows(at.chunk)
        call.down.forward(at, backend.activate(call.gate, z), y)
        sums.scatter(at.chunk, y)
    return sums.result(), kept


def _room(call: ExpertCall, at: ChunkContext, like: torch.Tensor) -> torch.Tensor:
    """Returns room for a chunk's pre-activation."""
    return like.new_empty(len(at.chunk), call.gate_up.weight.out)


@dataclass(frozen=True)
class Wanted:
    """Gradients to form: those of the input, the routing weights, and `tensors()` of each."""

    x: bool
    weights: bool
    gate_up: tuple[bool, ...]
    down: tuple[bool, ...]


def backward_experts(
    call: ExpertCall,
    backend: ExpertBackend,
    wanted: Wanted,
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    """Computes the gradients of `x`, `weights`, and `call.tensors()`; None if not wanted.

    Args:
        call: the call.
        backend: a new one.
        wanted: which gradients are needed.
        grad: `[tokens, hidden]`, gradient of the output, in the compute dtype.
        x, weights, kept: what `forward_experts` took and gave.
    """
    routing = call.routing
    row_weights = routing.permute(weights)
    grad_row_weights = torch.zeros_like(row_weights)
    at_once, hidden = call.at_once(backend), x.shape[1]
    sums = backend.combine(routing, at_once, hidden, x) if wanted.x else None
    gate_up = call.gate_up.zero_grads(wanted.gate_up)
    down = call.down.zero_grads(wanted.down)
    for at in call.chunks(backend, x.dtype):
        rows = backend.gather(x, at.chunk)
        if kept is None:
            z = _room(call, at, x)
            call.gate_up.forward(at, rows, z)
        else:
            z = kept[at.chunk.rows]
        grad_z = _backward_down(
            call,
            at,
            z,
            backend.gather(grad, at.chunk),
            row_weights[at.chunk.rows, None],
            grad_row_weights[at.chunk.rows],
            down,
        )
        _backward_gate_up(call, at, rows, grad_z, sums, gate_up)
    return (
        None if sums is None else sums.result(),
        grad_row_weights[routing.inverse] if wanted.weights else None,
        *gate_up,
        *down,
    )


def _backward_down(
    call: ExpertCall,
    at: ChunkContext,
    z: torch.Tensor,
    grad: torch.Tensor,
    row_weights: torch.Tensor,
    grad_row_weights: torch.Tensor,
    grads: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Returns the gradient of `z`; writes those of the routing weights and of down's tensors."""
    g = z.new_empty(len(z), call.down.weight.width)
    saved = call.down.backward_input(at, grad, g)
    activation, grad_z = at.backend.activate_backward(
        call.gate, z, g, row_weights, grad_row_weights
    )
    grad_row_weights.add_(call.down.bias_products(at, grad))
    call.down.backward_tensors(at, saved, activation, grad, row_weights, grads)
    return grad_z


def _backward_gate_up(
    call: ExpertCall,
    at: ChunkContext,
    rows: torch.Tensor,
    grad_z: torch.Tensor,
    sums: Combine | None,
    grads: Sequence[torch.Tensor | None],
) -> None:
    """Adds the gradients of the input's rows to `sums`; writes those of gate_up's tensors."""
    grad_rows = None if sums is None else sums.rows(at.chunk)
    saved = call.gate_up.backward_input(at, grad_z, grad_rows)
    if sums is not None and grad_rows is not None:
        sums.scatter(at.chunk, grad_rows)
    call.gate_up.backward_tensors(at, saved, rows, grad_z, None, grads)


def run_experts(call: ExpertCall, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the weighted sum of the outputs of each token's experts, with its gradients.

    Args:
        call: the call.
        x: `[tokens, hidden]`.
        weights: `[tokens, k]`.

    Returns:
        `[tokens, hidden]`, dtype of `x`.
    """
    return _Experts.apply(call, x, weights, *call.tensors())


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Keeps autocast from converting what is in the compute dtype already."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _Experts(torch.autograd.Function):
    """Saves its inputs and, if asked to, the pre-activation; the packed weights are constants."""

    @staticmethod
    def forward(
        ctx: Any, call: ExpertCall, x: torch.Tensor, weights: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        backend = call.new_backend()
        dtype = backend.compute_dtype(x)
        with _without_autocast(x.device):
            output, kept = forward_experts(call, backend, x.to(dtype), weights.to(dtype))
        ctx.save_for_backward(x, weights, kept, *tensors)
        # Tensors are left to save_for_backward, so that checkpointing can drop them.
        ctx.call = call.with_tensors([torch.empty(0)] * len(tensors))
        ctx.dtype = dtype
        return output.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weights, kept, *tensors = ctx.saved_tensors
        call: ExpertCall = ctx.call.with_tensors(tensors)
        _, needs_x, needs_weights, *needs = ctx.needs_input_grad
        split = len(call.gate_up.tensors())
        wanted = Wanted(needs_x, needs_weights, tuple(needs[:split]), tuple(needs[split:]))
        x, weights, grad = (tensor.to(ctx.dtype) for tensor in (x, weights, grad))
        backend = call.new_backend()
        with _without_autocast(x.device):
            return None, *backward_experts(call, backend, wanted, grad, x, weights, kept)
