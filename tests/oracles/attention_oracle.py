"""transformers' eager attention, one document at a time: the reference of our attention."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers.masking_utils import (
    causal_mask_function,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from gptoss_ft.documents import Documents, DocumentSpan
from gptoss_ft.model.attention.masks import documents_of
from gptoss_ft.model.attention.sinks import (
    sink_attention,
)

SCALING = 0.125
Tensors = list[torch.Tensor]
Kernel = Callable[..., torch.Tensor]


def stock_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    ids: torch.Tensor,
    window: int | None,
) -> torch.Tensor:
    """Stock attention of every document alone, `[batch, heads, length, d]`; zero in padding."""
    groups = query.shape[1] // key.shape[1]
    module: Any = SimpleNamespace(sinks=sinks, num_key_value_groups=groups, training=False)
    rule = causal_mask_function
    if window is not None:
        rule = sliding_window_causal_mask_function(window)
    output = 0 * (query + key.sum() + value.sum() + sinks.sum())  # all padding has gradients too
    for row in range(ids.shape[0]):
        for number in ids[row].unique():
            if number:
                at = torch.where(ids[row] == number)[0]
                part = [x[row : row + 1, :, at] for x in (query, key, value)]
                mask = eager_mask(1, len(at), len(at), mask_function=rule, dtype=query.dtype)
                out, _ = eager_attention_forward(module, *part, mask, SCALING)
                output[row, :, at] = out[0].transpose(0, 1)
    return output


def attention_inputs(
    batch: int, heads: int, kv_heads: int, length: int, width: int = 16, dtype: Any = torch.float32
) -> Tensors:
    """Query, key and value in the memory order of gpt-oss, and sinks near the scores' size."""
    shapes = [(batch, length, h, width) for h in (heads, kv_heads, kv_heads)]
    made = [2 * torch.randn(shape, dtype=dtype) for shape in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in made] + [
        (2 * torch.randn(heads, dtype=dtype) + 1).requires_grad_()
    ]


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
    assert error <= 1e-4, f"{name}: {error:.1e}"


def assert_equals_stock(inputs: Tensors, ids: torch.Tensor, window: int | None) -> None:
    documents = documents_of(ids)
    assert documents is not None
    ours = sink_attention(*inputs, documents, SCALING, window)
    theirs = stock_attention(*inputs, ids, window)
    assert_near(ours, theirs, "output")
    assert not ours.detach().movedim(1, -1)[ids == 0].any(), "padding has an output"
    direction = torch.randn_like(ours)
    gradients = zip(
        ("query", "key", "value", "sinks"),
        torch.autograd.grad(ours, inputs, direction),
        torch.autograd.grad(theirs, inputs, direction),
        strict=True,
    )
    for name, mine, reference in gradients:
        assert_near(mine, reference, f"gradient of {name}")


def branches(
    lengths: list[tuple[int, int, int]], rows: int = 1, padding: int = 0
) -> tuple[Documents, list[torch.Tensor]]:
    """Rows of `[prompt][first][second]` groups, and each answer's tokens behind its prompt.

    Returns:
        the documents, and for every answer the places of prompt and answer within a row.
    """
    spans, places, at = [], [], 0
    for prompt, first, second in lengths:
        middle, stop = at + prompt + first, at + prompt + first + second
        spans += [
            DocumentSpan(slice(0, rows), at, middle),
            DocumentSpan(slice(0, rows), middle, stop, slice(at, at + prompt)),
        ]
        places += [
            torch.arange(at, middle),
            torch.cat([torch.arange(at, at + prompt), torch.arange(middle, stop)]),
        ]
        at = stop
    return Documents(rows, at + padding, tuple(spans)), places


def stock_branches(
    inputs: Tensors, documents: Documents, places: list[torch.Tensor], window: int | None
) -> torch.Tensor:
    """Stock attention of every answer behind its prompt, as a document by itself."""
    query, key, value, sinks = inputs
    output = 0 * (query + key.sum() + value.sum() + sinks.sum())
    for place in places:
        ids = torch.ones(documents.batch, len(place), dtype=torch.int64)
        parts = [x[:, :, place] for x in (query, key, value)]
        output[:, :, place] = stock_attention(*parts, sinks, ids, window)
    return output


def assert_branches_equal_stock(
    lengths: list[tuple[int, int, int]],
    window: int | None,
    attend: Kernel,
    heads: tuple[int, int] = (4, 2),
    rows: int = 1,
) -> None:
    """Output and gradients of `attend(*inputs, documents, window)`."""
    documents, places = branches(lengths, rows, padding=3)
    inputs = attention_inputs(rows, *heads, documents.length)
    ours = attend(*inputs, documents, window)
    theirs = stock_branches(inputs, documents, places, window)
    direction = torch.randn_like(ours)
    direction[:, :, -3:] = 0  # what dense masks make of padding is not looked at
    assert_near(ours[:, :, :-3], theirs[:, :, :-3], "output")
    gradients = zip(
        ("query", "key", "value", "sinks"),
        torch.autograd.grad(ours, inputs, direction),
        torch.autograd.grad(theirs, inputs, direction),
        strict=True,
    )
    for name, mine, reference in gradients:
        assert_near(mine, reference, f"gradient of {name}")
