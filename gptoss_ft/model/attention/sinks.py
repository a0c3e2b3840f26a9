"""Attention with sinks for gpt-oss, exact forward and backward on flash kernels.

A sink is a learned score per head that takes part in the softmax without a value. With `lse` the
log-sum-exp of the scores and `out` the attention without the sink, both of which a flash kernel
returns,

    lse' = logaddexp(lse, sink)
    out' = out * exp(lse - lse')

is the attention with it. The kernel's backward pass recomputes probabilities as
`exp(score - lse)` and needs the output only for `<grad, out>` per query; called with `out'` and
`lse'` it therefore gives the gradients of query, key and value with the sink, and the sink's own is
`-sum(exp(sink - lse') * <grad, out'>)` over batch and queries.

In transformers it is the attention implementation `gptoss_sink`. Batches whose queries are their
keys run on the flash kernels of `attention_cpu` and `attention_cuda`, with `Documents` in the place
of masks. Everything else (decoding with a cache, masks with holes, dropout, devices without such a
kernel) runs as transformers' eager attention on dense masks, which is slower and just as exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, eager_mask
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from gptoss_ft.documents import Documents, whole_rows
from gptoss_ft.model.attention import cpu as attention_cpu
from gptoss_ft.model.attention import cuda as attention_cuda
from gptoss_ft.model.attention.masks import dense_masks, documents_of

SINK_ATTENTION = "gptoss_sink"


def register_sink_attention() -> None:
    """Registers `gptoss_sink` with transformers; doing so again changes nothing."""
    AttentionInterface.register(SINK_ATTENTION, sink_attention_forward)
    AttentionMaskInterface.register(SINK_ATTENTION, sink_attention_mask)


class _SinkAttention(torch.autograd.Function):
    """`sink_attention`; saves what a flash kernel saves, linear in the length."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor,
        documents: Documents,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        kernel = attention_cpu if query.device.type == "cpu" else attention_cuda
        output, lse = kernel.attend(query, key, value, documents, scaling, window)
        sink = sinks.to(lse.dtype)[:, None]
        # exp(lse - lse'), also where the log-sum-exp of padding is infinite
        output = output.mul_(torch.sigmoid(lse - sink)[..., None])
        ctx.save_for_backward(query, key, value, sinks, output, torch.logaddexp(lse, sink))
        ctx.kernel, ctx.arguments = kernel, (documents, scaling, window)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, output, lse = ctx.saved_tensors
        gradients = ctx.kernel.attend_backward(grad, query, key, value, output, lse, *ctx.arguments)
        grad_sinks = None
        if ctx.needs_input_grad[3]:
            probability = torch.exp(sinks.to(lse.dtype)[:, None] - lse)
            product = (grad.to(lse.dtype) * output.to(lse.dtype)).sum(-1)
            grad_sinks = -(probability * product).sum((0, 2)).to(sinks.dtype)
        return (*gradients, grad_sinks, None, None, None)


def sink_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    documents: Documents,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Computes causal attention within documents, with sinks.

    Args:
        query: `[batch, heads, length, head_dim]`; float32 or float64 on a CPU, bfloat16 or float16
            on CUDA.
        key, value: `[batch, kv_heads, length, head_dim]`; `kv_heads` divides `heads`, and keys are
            not repeated.
        sinks: `[heads]`, any floating point dtype, in which its gradient comes back.
        documents: what sees what.
        scaling: factor of the scores.
        window: how many keys a query sees, itself included; None for all before it.

    Returns:
        like `query`, zero in padding. Differentiable once in query, key, value and sinks.

    Raises:
        ValueError: the documents are of another shape than query and key.
    """
    shape = (documents.batch, documents.length)
    if shape != (query.shape[0], query.shape[2]) or shape != (key.shape[0], key.shape[2]):
        raise ValueError(
            f"documents of shape {shape} for queries {tuple(query.shape)}, keys {tuple(key.shape)}"
        )
    return _SinkAttention.apply(query, key, value, sinks, documents, scaling, window)


def sink_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Documents | torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Serves as the attention function of transformers' interface.

    Args:
        module: gpt-oss' attention, for eager attention.
        query, key, value: `[batch, heads or kv_heads, length, head_dim]`.
        attention_mask: what `sink_attention_mask` returned, or an additive mask.
        s_aux: the sinks, `[heads]`.

    Returns:
        `[batch, length, heads, head_dim]`, and None for the attention weights.
    """
    if isinstance(attention_mask, Documents):
        if s_aux is not None and dropout == 0.0 and _has_kernel(query):
            output = sink_attention(
                query, key, value, s_aux, attention_mask, scaling, sliding_window
            )
            return output.transpose(1, 2), None
        layer = "full_attention" if sliding_window is None else "sliding_attention"
        window = sliding_window or query.shape[2]
        attention_mask = dense_masks(attention_mask, window, query.dtype, query.device)[layer]
    output, _ = eager_attention_forward(
        module, query, key, value, attention_mask, scaling, dropout, **kwargs
    )
    return output, None


def _has_kernel(query: torch.Tensor) -> bool:
    if query.device.type == "cpu":
        return query.dtype in (torch.float32, torch.float64)
    return attention_cuda.is_supported(query)


def sink_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Documents | torch.Tensor:
    """Serves as the mask function of transformers' interface.

    Returns:
        `Documents` where the queries are the keys and a row's tokens are in one piece, as in
        training and when a prompt is read; the window comes with the layer. Else eager's mask.
    """
    # A tensor as offset belongs to a cache of fixed size, whose keys outnumber the queries.
    own = q_length == kv_length and all(
        isinstance(offset, int) and offset == 0 for offset in (q_offset, kv_offset)
    )
    if own and not use_vmap:
        if attention_mask is None:
            return whole_rows(batch_size, q_length)
        if attention_mask.shape == (batch_size, q_length):
            documents = documents_of(attention_mask)
            if documents is not None:
                return documents
    return eager_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        use_vmap=use_vmap,
        **kwargs,
    )
