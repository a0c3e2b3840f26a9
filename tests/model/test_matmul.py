"""Products by oneDNN and by torch's usual library against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ft.model.cpu import matmul
from gptoss_ft.model.cpu.matmul import add_product, filled_up, multiply, put_product

ERROR = 1e-5


def _view(rows: int, columns: int, layout: str, generator: torch.Generator) -> torch.Tensor:
    """A matrix that is contiguous, transposed, or part of a wider one."""
    if layout == "transposed":
        return torch.randn(columns, rows, generator=generator).T
    extra = 3 if layout == "strided" else 0
    return torch.randn(rows, columns + extra, generator=generator)[:, :columns]


def _put(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    out = torch.full((len(left), right.shape[1] + 2), torch.nan)
    put_product(out[:, 1:-1], filled_up(left), right)
    assert out[:, [0, -1]].isnan().all()
    return out[:, 1:-1]


def _add(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    total = torch.full((len(left), right.shape[1]), 2.0)
    add_product(total, left, right)
    return total - 2


LAYOUTS = st.sampled_from(["contiguous", "transposed", "strided"])


@pytest.mark.parametrize("product", [multiply, _put, _add])
@pytest.mark.parametrize("has_onednn", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 200),
    inner=st.integers(1, 70),
    columns=st.integers(1, 70),
    layouts=st.tuples(LAYOUTS, LAYOUTS),
    piece=st.integers(1, 4_096),
    seed=st.integers(0, 2**31),
)
def test_products_equal_float64(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    has_onednn: bool,
    rows: int,
    inner: int,
    columns: int,
    layouts: tuple[str, str],
    piece: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = _view(rows, inner, layouts[0], generator)
    right = _view(inner, columns, layouts[1], generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "_has_onednn", lambda *_: has_onednn)
        patch.setattr(matmul, "PIECE_VALUES", piece)
        found = product(left, right)
    expected = left.double() @ right.double()
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).norm() <= ERROR * max(float(expected.norm()), 1.0)


def test_onednn_takes_large_products_unless_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    taken = []
    monkeypatch.setattr(
        matmul, "_onednn", lambda left, right: taken.append(len(left)) or left @ right
    )
    large, small = torch.randn(256, 128), torch.randn(255, 128)
    right = torch.randn(128, 128)
    multiply(large, right)
    multiply(small, right)
    multiply(large.double(), right.double())
    with torch.backends.mkldnn.flags(enabled=False):
        multiply(large, right)
    assert taken == [256]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    multiply(large, right)
    assert taken == [256]
