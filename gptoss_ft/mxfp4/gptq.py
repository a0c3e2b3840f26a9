"""Error-compensated rounding of W + Δ to MXFP4 on the scales of W.

Rounding each weight to the nearest value forgets an update that is small against the spacing. Here
the columns (input features) are rounded one after another, and what one column loses, as far as
calibration inputs x can see it, is made good in the columns after it. With H = E[x xᵀ] factored as
(U + I) D (U + I)ᵀ, U strictly upper triangular, column k becomes

    Q(w_k + Σ_{j<k} (w_j - ŵ_j) U_jk)

which minimises tr((W - Ŵ) H (W - Ŵ)ᵀ) greedily. Source: Chee et al., "QuIP" (2023), section 3.2,
where it is called LDLQ and shown to equal GPTQ (Frantar et al., 2022) while needing one
factorisation and no inverse. Early columns are then rounded without knowing what later ones will
lose, so a sweep of coordinate descent follows, in which each column minds all others: an eighth
less error for twice the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptoss_ft.mxfp4.codec import SCALE_BIAS, pack, unpack
from gptoss_ft.mxfp4.rounding import (
    Rounded,
    check_scales,
    keep_zeros,
    numbers_of,
    per_value,
    products,
    summed,
)

DAMPING = 0.01
COLUMNS = 64


def gptq(
    blocks: torch.Tensor,
    scales: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    hessian: torch.Tensor,
) -> Rounded:
    """Rounds `W + scaling * B @ A` so that its outputs on calibration inputs change least.

    An entry that was zero and stays zero keeps its nibble, so that a zero update changes no bit.

    Args:
        blocks: uint8 `[out, G, 16]`.
        scales: uint8 `[out, G]`.
        A: float32 `[r, 32 * G]`, finite.
        B: float32 `[out, r]`, finite.
        scaling: factor of the update.
        hessian: float32 `[32 * G, 32 * G]`, second moments of the inputs; any multiple of them,
            centred where a bias takes up the mean error.

    Raises:
        ValueError: a scale byte is 255.
    """
    check_scales(scales)
    ones = torch.full_like(scales, SCALE_BIAS)
    wanted = unpack(blocks, scales).addmm_(B, A, alpha=scaling)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    columns = wanted.T[order]
    del wanted
    steps = per_value(scales.int() - SCALE_BIAS).T[order]
    damped = _damped(hessian[order][:, order])
    errors = _round_columns(columns, steps, _feedback(damped))
    _sweep(columns, errors, steps, damped)
    rounded = torch.empty_like(columns).T
    rounded[:, order] = columns.div_(steps).T
    out = keep_zeros(pack(rounded, ones), blocks)
    return summed(out, _numbers(blocks, scales, A, B * scaling, out))


def _damped(hessian: torch.Tensor) -> torch.Tensor:
    """Adds a fraction of the mean to the diagonal, in place."""
    mean = hessian.diagonal().mean()
    # Without any input every column is rounded to the nearest value.
    hessian.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    return hessian


def _feedback(hessian: torch.Tensor) -> torch.Tensor:
    """Returns U of the factorisation of H."""
    # Cholesky from the other end: H = R Rᵀ with R upper triangular.
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    return (upper / upper.diagonal()).triu_(1)


def _round_columns(
    columns: torch.Tensor, steps: torch.Tensor, feedback: torch.Tensor
) -> torch.Tensor:
    """Rounds in place, column by column; returns what was lost, exact minus rounded.

    Args:
        columns: float32 `[in, out]`, a column of the matrix per row.
        steps: float32 `[in, out]`, the scale of every entry.
        feedback: float32 `[in, in]`, strictly upper triangular.
    """
    errors = torch.empty_like(columns)
    for run in _runs(len(columns)):
        owed = feedback[: run.start, run].T @ errors[: run.start]
        for k in range(run.start, run.stop):
            since = slice(run.start, k)
            corrected = owed[k - run.start].addmv_(errors[since].T, feedback[since, k])
            exact = columns[k].clone()
            columns[k] = on_grid(corrected.add_(exact).div_(steps[k])).mul_(steps[k])
            torch.sub(exact, columns[k], out=errors[k])
    return errors


def _runs(count: int) -> Iterator[slice]:
    return (slice(start, min(start + COLUMNS, count)) for start in range(0, count, COLUMNS))


def _sweep(
    columns: torch.Tensor, errors: torch.Tensor, steps: torch.Tensor, hessian: torch.Tensor
) -> None:
    """Rounds every column again to what is best while all others stay, in place.

    Args:
        columns, errors: as `_round_columns` leaves and returns them.
        steps: float32 `[in, out]`.
        hessian: float32 `[in, in]`.
    """
    for run in _runs(len(columns)):
        gradient = hessian[run] @ errors
        for k in range(run.start, run.stop):
            best = columns[k] + gradient[k - run.start] / hessian[k, k]
            rounded = on_grid(best.div_(steps[k])).mul_(steps[k])
            change = rounded - columns[k]
            columns[k] = rounded
            errors[k] -= change
            gradient.addr_(hessian[run, k], change, alpha=-1)


def on_grid(values: torch.Tensor) -> torch.Tensor:
    """Rounds to the nearest E2M1 values, ties to the even mantissa, saturating at 6."""
    magnitude = values.abs().clamp_(max=6.0)
    spacing = 0.5 + 0.5 * (magnitude >= 2) + (magnitude >= 4)
    return magnitude.div_(spacing).round_().mul_(spacing).copysign_(values)


def _numbers(
    blocks: torch.Tensor, scales: torch.Tensor, A: torch.Tensor, B: torch.Tensor, out: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Yields `numbers_of` for runs of rows."""
    for rows, delta in products(scales, A, B):
        scaled = delta.mul_(per_value(SCALE_BIAS - scales[rows].int()))
        yield numbers_of(blocks[rows], scales[rows], scaled, out[rows])


def bias_correction(weight_error: torch.Tensor, mean_input: torch.Tensor) -> torch.Tensor:
    """Returns what to add to a bias so that a changed matrix gives the same mean output.

    Args:
        weight_error: `[out, in]`, wanted minus rounded weights.
        mean_input: `[in]`.

    Returns:
        `[out]`.
    """
    return weight_error @ mean_input
