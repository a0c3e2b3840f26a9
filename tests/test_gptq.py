"""Error-compensated rounding against the textbook algorithm, and what it must never do."""

from __future__ import annotations

import math

import pytest
import torch

from gptoss_ft.adapters.combine import LoraFactors
from gptoss_ft.merge.calibrate import round_expert
from gptoss_ft.mxfp4 import gptq as gptq_module
from gptoss_ft.mxfp4.codec import floor_scales, pack, unpack
from gptoss_ft.mxfp4.gptq import bias_correction, gptq, on_grid
from gptoss_ft.mxfp4.rounding import nearest, per_value

OUT, WIDTH = 48, 160


def _matrix() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(0))
    scales = floor_scales(values / math.sqrt(WIDTH))
    return pack(values / math.sqrt(WIDTH), scales), scales


def _inputs(rows: int, seed: int = 1, mean: float = 1.0) -> torch.Tensor:
    """Correlated inputs around a mean, the same distribution for every seed."""
    fixed = torch.Generator().manual_seed(7)
    spread = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=fixed))[0]
    spread = spread * (4 / torch.arange(1, WIDTH + 1)).sqrt()
    centre = mean * torch.randn(WIDTH, generator=fixed) / 4
    noise = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return noise @ spread.T + centre


def _update(size: float = 0.03) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Aligned with the inputs, as training makes it."""
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(4, 300, generator=generator) @ _inputs(300)
    B = torch.randn(OUT, 4, generator=generator)
    return A, B, size * float(unpack(*_matrix()).norm() / (B @ A).norm())


def _textbook(wanted: torch.Tensor, steps: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """GPTQ as Frantar et al. state it: columns one by one, the inverse Hessian updated each time.

    Args:
        wanted, steps: float64 `[out, in]`.
        hessian: float64 `[in, in]`, damped.
    """
    weights, inverse = wanted.clone(), torch.linalg.inv(hessian)
    rounded = torch.empty_like(weights)
    for k in range(weights.shape[1]):
        rounded[:, k] = on_grid(weights[:, k] / steps[:, k]) * steps[:, k]
        error = (weights[:, k] - rounded[:, k]) / inverse[k, k]
        weights[:, k:] -= error[:, None] * inverse[k, k:]
        inverse -= torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return rounded


def _objective(lost: torch.Tensor, hessian: torch.Tensor) -> float:
    return float(((lost.double() @ hessian) * lost).sum())


def test_columns_are_rounded_as_gptq_rounds_them() -> None:
    blocks, scales = _matrix()
    A, B, scaling = _update(0.1)
    wanted = unpack(blocks, scales).double() + scaling * (B.double() @ A.double())
    steps = per_value(scales.int() - 127).double()
    inputs = _inputs(500).double()
    hessian = gptq_module._damped(inputs.T @ inputs)
    columns = wanted.T.clone()
    errors = gptq_module._round_columns(columns, steps.T, gptq_module._feedback(hessian))
    expected = _textbook(wanted, steps, hessian)
    assert torch.equal(columns.T, expected)
    assert torch.equal(errors, (wanted - expected).T)
    by_nearest = wanted - on_grid(wanted / steps) * steps
    once = _objective(wanted - expected, hessian)
    assert once < 0.5 * _objective(by_nearest, hessian)
    gptq_module._sweep(columns, errors, steps.T, hessian)
    assert torch.allclose(errors.T, wanted - columns.T, atol=1e-12)
    assert _objective(wanted - columns.T, hessian) < 0.95 * once


def test_zero_update_changes_no_bit() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(251, 1, 1)
    scales = torch.arange(2, 253, dtype=torch.uint8)[:, None].repeat(1, 16)
    hessian = torch.cov(torch.randn(512, 700, generator=torch.Generator().manual_seed(0)))
    rounded = gptq(blocks, scales, torch.ones(2, 512), torch.zeros(251, 2), 1.0, hessian)
    assert torch.equal(rounded.blocks, blocks) and rounded.changed_blocks == 0


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_correlation_it_is_nearest(scale: float) -> None:
    """Uncorrelated inputs leave nothing to compensate, and no inputs at all neither."""
    matrix, (A, B, scaling) = _matrix(), _update(0.3)
    rounded = gptq(*matrix, A, B, scaling, scale * torch.eye(WIDTH))
    expected = nearest(*matrix, A, B, scaling)
    assert torch.equal(rounded.blocks, expected.blocks)
    assert rounded.changed_blocks == expected.changed_blocks > 0
    assert rounded.max_error == pytest.approx(expected.max_error, rel=1e-5)


def test_nan_scale_is_refused() -> None:
    blocks, scales = _matrix()
    scales[3, 1] = 255
    with pytest.raises(ValueError, match="255"):
        gptq(blocks, scales, *_update(), torch.eye(WIDTH))


def test_bias_correction_makes_the_mean_output_right() -> None:
    inputs, lost = _inputs(50), torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(3))
    correction = bias_correction(lost, inputs.mean(0))
    assert torch.allclose((inputs @ lost.T).mean(0), correction, atol=1e-5)


def test_calibrated_expert_keeps_more_than_nearest() -> None:
    matrix, (A, B, scaling) = _matrix(), _update(0.02)
    delta = scaling * (B @ A)
    bias = torch.linspace(-1, 1, OUT)
    fresh = _inputs(400, seed=5)
    found = round_expert((_inputs(600), fresh), *matrix, LoraFactors(A, B, scaling), bias)
    effect = (fresh @ delta.T).square().sum()
    assert found.effect == pytest.approx(float(effect), rel=1e-4)

    def error(blocks: torch.Tensor, correction: torch.Tensor) -> float:
        lost = unpack(*matrix) + delta - unpack(blocks, matrix[1])
        return float((fresh @ lost.T - correction).square().sum())

    assert found.error == pytest.approx(error(found.rounded.blocks, found.correction), rel=1e-3)
    by_nearest = error(nearest(*matrix, A, B, scaling).blocks, torch.zeros(OUT))
    assert by_nearest > 0.9 * effect, "nearest keeps too much for a comparison"
    assert found.error < 0.25 * by_nearest
    stored = bias + found.correction
    assert torch.equal(stored, stored.to(torch.bfloat16).float())
    assert found.rows == 600


def test_held_out_rows_do_not_steer_the_rounding() -> None:
    matrix, update = _matrix(), LoraFactors(*_update(0.02))
    fit, bias = _inputs(300), torch.zeros(OUT)
    one = round_expert((fit, _inputs(40, seed=5)), *matrix, update, bias)
    other = round_expert((fit, _inputs(40, seed=6)), *matrix, update, bias)
    assert torch.equal(one.rounded.blocks, other.rounded.blocks)
    assert torch.equal(one.correction, other.correction)
    assert one.error != other.error


def test_expert_that_no_row_reaches_is_rounded_to_nearest() -> None:
    matrix, update = _matrix(), LoraFactors(*_update(0.3))
    none = torch.empty(0, WIDTH)
    found = round_expert((none, none), *matrix, update, torch.zeros(OUT))
    expected = nearest(*matrix, update.A, update.B, update.scaling)
    assert torch.equal(found.rounded.blocks, expected.blocks)
    assert not found.correction.any()
    assert (found.rows, found.error, found.effect) == (0, 0.0, 0.0)
