"""Products of matrices on a CPU, by whichever of torch's two libraries is the faster one.

torch multiplies float32 matrices with MKL, which uses AVX-512 on Intel's processors only. oneDNN,
which torch brings along too, uses it on all of them: on an AMD EPYC it is twice as fast. Its matrix
product is reached through the operator that torch.compile puts in the place of a linear layer. Both
form the same sums in float32, in another order.

Small products stay with MKL, which prepares nothing. oneDNN compiles code for every new shape, half
a millisecond and half a megabyte each, so rows are filled up to one of a few numbers of them.
`torch.backends.mkldnn.flags(enabled=False)` leaves everything to MKL.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

SMALLEST = 1 << 22  # multiply-adds, from which on oneDNN is faster
# Results of oneDNN are new tensors; larger ones would have their pages faulted in anew every time.
PIECE_VALUES = 15 << 16
PIECE_ROWS = 512


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns `left @ right`, `[n, k] x [k, m] -> [n, m]`, in any strides."""
    if _has_onednn(left, right):
        return _onednn(left, right)
    if right.shape[1] < left.shape[0]:
        # A narrow result is formed transposed, up to 7 times faster in MKL.
        return (right.T @ left.T).T
    return left @ right


def put_product(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Writes `out = left @ right`; `out` `[n, m]` may be a view of any strides.

    `left` may be what `filled_up` made of n rows, which saves doing so for every `right`.
    """
    if not _has_onednn(left, right):
        torch.mm(left[: len(out)], right, out=out)
        return
    for place, part in _pieces(out, left):
        place.copy_(_onednn(part, right)[: len(place)])


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds `total += left @ right`, as in `put_product`."""
    if not _has_onednn(left, right):
        total.addmm_(left[: len(total)], right)
        return
    for place, part in _pieces(total, left):
        place.add_(_onednn(part, right)[: len(place)])


def filled_up(rows: torch.Tensor) -> torch.Tensor:
    """Pads `[n, k]` with rows of zeros below, to a number of rows that oneDNN meets often."""
    missing = -len(rows) % (8 if len(rows) <= 128 else 16)
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _pieces(out: torch.Tensor, left: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields some rows of `out` at a time, and those of `left`."""
    step = min(PIECE_ROWS, max(1, PIECE_VALUES // out.shape[1] // 64) * 64)
    return zip(out.split(step), left.split(step), strict=True)


def _has_onednn(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Returns whether oneDNN is available, the faster library on this processor, and takes these
    factors.
    """
    return (
        left.shape[0] * right.numel() >= SMALLEST
        and left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and torch._C._get_mkldnn_enabled()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _onednn(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    # For rows that do not follow each other in memory it falls back to plain loops.
    if not right.is_contiguous() and not right.T.is_contiguous():
        right = right.contiguous()
    rows = filled_up(left)
    return torch.ops.mkldnn._linear_pointwise(rows, right.T, None, "none", [], "")[: len(left)]
