"""Our norm against transformers'."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from gptoss_ft.model.norm import FrozenNorm


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_norm_and_its_gradients_equal_transformers(
    weight_dtype: torch.dtype, trained: bool
) -> None:
    torch.manual_seed(0)
    ours, theirs = FrozenNorm(96), GptOssRMSNorm(96)
    weight = torch.randn(96).to(weight_dtype)
    for norm in (ours, theirs):
        norm.weight = torch.nn.Parameter(weight.clone(), requires_grad=trained)
    x, direction = torch.randn(2, 7, 96), torch.randn(2, 7, 96)
    # One row of nearly nothing, where eps decides.
    x[0, 0] *= 1e-4
    found = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        y.backward(direction)
        found.append((y.detach(), leaf.grad, norm.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    for mine, reference in zip(*found, strict=True):
        if reference is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)
