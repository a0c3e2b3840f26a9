"""Two answers behind one prompt that is there once, against stock attention of each by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_oracle import SCALING, assert_branches_equal_stock, attention_inputs, branches
from flash_arithmetic import flash_backward, flash_forward
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ft.model.attention import cpu as attention_cpu
from gptoss_ft.model.attention import cuda as attention_cuda
from gptoss_ft.model.attention import sinks as attention
from gptoss_ft.model.attention.sinks import sink_attention, sink_attention_forward

LENGTHS = st.tuples(st.integers(1, 300), st.integers(1, 200), st.integers(1, 200))
WINDOWS = [None, 1, 2, 7, 64, 100, 128]


def _on_kernels(*inputs: Any) -> torch.Tensor:
    *tensors, documents, window = inputs
    return sink_attention(*tensors, documents, SCALING, window)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=3),
    window=st.sampled_from(WINDOWS),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 4]),
    rows=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_output_and_gradients_equal_stock(
    lengths: list[tuple[int, int, int]],
    window: int | None,
    kv_heads: int,
    group: int,
    rows: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    heads = kv_heads * group, kv_heads
    assert_branches_equal_stock(lengths, window, _on_kernels, heads, rows)


@pytest.mark.parametrize("window", [None, 20, 400])
@pytest.mark.parametrize("second", [5, 19, 20, 21, 150])
def test_answers_around_the_window(window: int | None, second: int) -> None:
    torch.manual_seed(0)
    assert_branches_equal_stock([(150, 30, second), (10, 40, second)], window, _on_kernels)


@pytest.mark.parametrize("window", WINDOWS)
def test_cuda_composition_with_the_kernels_in_plain_arithmetic(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """Prompts' keys gathered before each answer's, and their gradients summed."""
    monkeypatch.setattr(attention_cuda, "_forward", flash_forward)
    monkeypatch.setattr(attention_cuda, "_backward", flash_backward)
    monkeypatch.setattr(attention_cpu, "attend", attention_cuda.attend)
    monkeypatch.setattr(attention_cpu, "attend_backward", attention_cuda.attend_backward)
    torch.manual_seed(0)
    assert_branches_equal_stock([(40, 9, 30), (3, 1, 2), (150, 4, 140)], window, _on_kernels)
    assert_branches_equal_stock([(40, 9, 30)], window, _on_kernels, rows=3)


@pytest.mark.parametrize("window", [None, 128])
def test_cuda_shapes_and_dtypes_on_meta_tensors(window: int | None) -> None:
    documents, _ = branches([(200, 50, 50)], rows=2)
    with torch.device("meta"):
        shapes = [(2, heads, 300, 64) for heads in (8, 1, 1)]
        leaves = [torch.empty(s, dtype=torch.bfloat16, requires_grad=True) for s in shapes]
        leaves.append(torch.empty(8, requires_grad=True))
    output = sink_attention(*leaves, documents, SCALING, window)
    assert output.shape == leaves[0].shape and output.dtype == torch.bfloat16
    gradients = torch.autograd.grad(output, leaves, torch.empty_like(output))
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype


@pytest.mark.parametrize("window", WINDOWS)
def test_dense_masks_where_no_kernel_fits(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    monkeypatch.setattr(attention, "_has_kernel", lambda query: False)
    torch.manual_seed(0)

    def eager(query: Any, key: Any, value: Any, sinks: Any, documents: Any, window: Any) -> Any:
        module: Any = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
        output, _ = sink_attention_forward(
            module, query, key, value, documents, SCALING, sliding_window=window, s_aux=sinks
        )
        return output.transpose(1, 2)

    assert_branches_equal_stock([(30, 9, 12), (5, 3, 40)], window, eager)


@pytest.mark.parametrize("window", [None, 64])
def test_one_answer_does_not_see_the_other(window: int | None) -> None:
    """Bit for bit: outputs and gradients of one answer while the other one changes."""
    torch.manual_seed(0)
    documents, _ = branches([(90, 40, 70)])
    for changed, kept in ((slice(90, 130), slice(130, 200)), (slice(130, 200), slice(0, 130))):
        first, other = (attention_inputs(1, 4, 2, documents.length) for _ in range(2))
        inside = torch.zeros(documents.length, dtype=torch.bool)
        inside[changed] = True
        mixed = [torch.where(inside[:, None], b, a) for a, b in zip(first, other, strict=True)][:3]
        results = []
        for tensors in (first[:3], mixed):
            leaves = [x.detach().requires_grad_() for x in tensors]
            output = sink_attention(*leaves, first[3], documents, SCALING, window)[:, :, kept]
            gradients = torch.autograd.grad(output.square().sum(), leaves)
            assert not any(x[:, :, changed].any() for x in gradients)
            results.append([output, *gradients])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_work_grows_with_the_answers_not_with_the_row() -> None:
    """In sliding layers a prompt costs its second answer a window of keys at most."""
    documents, _ = branches([(5_000, 10, 300)])
    (crossing,) = attention_cpu.crossings(documents, 128)
    assert crossing.queries == slice(5_010, 5_137) and crossing.keys == slice(4_873, 5_000)
    (whole,) = attention_cpu.crossings(documents, None)
    assert whole.queries == slice(5_010, 5_310) and whole.keys == slice(0, 5_000)
    lay = attention_cuda._layout(documents, 128, torch.device("cpu"))
    assert lay.most_keys == 5_010 and lay.key_offsets.tolist() == [0, 5_010, 5_437]
