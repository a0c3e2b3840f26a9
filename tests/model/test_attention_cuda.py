"""Attention on CUDA: its composition in plain arithmetic, and its shapes on meta tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attention_oracle import SCALING, assert_equals_stock, attention_inputs
from flash_arithmetic import flash_backward, flash_forward

from gptoss_ft.model.attention import cpu as attention_cpu
from gptoss_ft.model.attention import cuda as attention_cuda
from gptoss_ft.model.attention.masks import documents_of
from gptoss_ft.model.attention.sinks import sink_attention


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("padded", [False, True])
def test_cuda_composition_with_the_kernels_in_plain_arithmetic(
    monkeypatch: pytest.MonkeyPatch, window: int | None, padded: bool
) -> None:
    """What surrounds the two flash operators: packing, windows, offsets, log-sum-exp."""
    monkeypatch.setattr(attention_cuda, "_forward", flash_forward)
    monkeypatch.setattr(attention_cuda, "_backward", flash_backward)
    monkeypatch.setattr(attention_cpu, "attend", attention_cuda.attend)
    monkeypatch.setattr(attention_cpu, "attend_backward", attention_cuda.attend_backward)
    torch.manual_seed(0)
    ids = torch.repeat_interleave(torch.tensor([1, 2, 3]), torch.tensor([30, 1, 19]))
    rows = [ids, ids, torch.ones_like(ids)]
    if padded:
        rows += [torch.where(ids == 2, 0, ids), F.pad(ids[:-9], (9, 0)), torch.zeros_like(ids)]
    assert_equals_stock(attention_inputs(len(rows), 4, 2, 50), torch.stack(rows), window)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("padding", [0, 7])
def test_cuda_shapes_and_dtypes_on_meta_tensors(window: int | None, padding: int) -> None:
    """The real operators' signatures, in bfloat16 with float32 sinks."""
    ids = F.pad(torch.ones(2, 300 - padding, dtype=torch.int64), (0, padding))
    documents = documents_of(ids)
    assert documents is not None
    with torch.device("meta"):
        query = torch.empty(2, 8, 300, 64, dtype=torch.bfloat16, requires_grad=True)
        key = torch.empty(2, 1, 300, 64, dtype=torch.bfloat16, requires_grad=True)
        value = torch.empty(2, 1, 300, 64, dtype=torch.bfloat16, requires_grad=True)
        sinks = torch.empty(8, requires_grad=True)
    output = sink_attention(query, key, value, sinks, documents, SCALING, window)
    assert output.shape == query.shape and output.dtype == torch.bfloat16
    output.backward(torch.empty_like(output))
    for leaf in (query, key, value, sinks):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype
