"""Tensors of a merged checkpoint against a second way to compute them.

The reference reads files with the safetensors library, unpacks with transformers and forms updates
as PEFT's `get_delta_weight` does, in float64; nothing of the merge's own arithmetic is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from safetensors import safe_open
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptoss_ft.adapters.files import Adapter, LoraHeaders, base_names, is_expert_stem
from gptoss_ft.checkpoint.headers import Checkpoint, TensorInfo

Weighted = Sequence[tuple[Adapter, float]]
ROWS = 512  # of a plain tensor; an embedding in float64 would take gigabytes


@dataclass(frozen=True)
class SpotCheck:
    """One tensor, or one expert of it.

    Attributes:
        name: in the candidate; of plain tensors the first `ROWS` rows are checked.
        expected: `copy` of the base's bytes, `merged` in bfloat16, or `rounded` to MXFP4.
        ok: whether it is what was expected.
        error: `merged`: largest error in units of half a bfloat16 step, at most 1; `rounded`:
            |stored - W'| relative to |W'|; 0 for copies.
    """

    name: str
    expected: str
    ok: bool
    error: float


def spot_check(
    base: Checkpoint, adapters: Weighted, candidate: Checkpoint, count: int
) -> list[SpotCheck]:
    """Checks about `count` tensors of each kind, evenly spread over the candidate."""
    return list(_checks(base, adapters, candidate, count))


def _checks(
    base: Checkpoint, adapters: Weighted, candidate: Checkpoint, count: int
) -> Iterator[SpotCheck]:
    kinds: dict[str, list[str]] = {}
    for name in candidate.tensors:
        if not name.endswith("_scales"):
            kind = name.rpartition("layers.")[2].partition(".")[2]
            kinds.setdefault(kind, []).append(name)
    for names in kinds.values():
        for index in sorted({i * len(names) // count for i in range(min(count, len(names)))}):
            yield _check(base, adapters, candidate, names[index])


def _check(base: Checkpoint, adapters: Weighted, candidate: Checkpoint, name: str) -> SpotCheck:
    stem = name.removesuffix("_blocks")
    if is_expert_stem(stem) and not stem.endswith("_bias"):
        return _check_expert(base, adapters, candidate, stem)
    stored = _rows(candidate.tensors[name])
    original = _rows(base.tensors[name])
    expected = original.double() + _change(adapters, base, name, original)
    if torch.equal(stored.view(torch.uint8), original.view(torch.uint8)):
        is_copy = torch.equal(expected, original.double())
        return SpotCheck(name, "copy" if is_copy else "merged", *_near(stored, expected))
    if stem.endswith("_bias") and _is_rounded(base, candidate, stem.removesuffix("_bias")):
        error = float((stored.double() - expected).norm() / expected.norm())
        return SpotCheck(name, "rounded", bool(stored.isfinite().all()), error)
    return SpotCheck(name, "merged", *_near(stored, expected))


def _near(stored: torch.Tensor, expected: torch.Tensor) -> tuple[bool, float]:
    """Checks that every value is the bfloat16 next to the expected one, and returns the largest
    error.

    The merge computes in float32, so that ties may go either way, and where base and update cancel
    the noise of their size is left.
    """
    half_step = torch.exp2(torch.frexp(expected).exponent.double() - 9)
    noise = 1e-6 * expected.abs().max()
    error = float(((stored.double() - expected).abs() / (half_step + noise)).max())
    return error <= 1, error


def _check_expert(
    base: Checkpoint, adapters: Weighted, candidate: Checkpoint, stem: str
) -> SpotCheck:
    """Checks expert 0 of a projection."""
    weight = _expert(base, stem)
    delta = _expert_delta(adapters, stem, base)
    if not candidate.is_packed:
        return SpotCheck(stem, "merged", *_near(_expert(candidate, stem), weight.double() + delta))
    name = f"{stem}_scales"
    same_scales = torch.equal(_read(candidate.tensors[name]), _read(base.tensors[name]))
    if not _is_rounded(base, candidate, stem):
        return SpotCheck(f"{stem}_blocks", "copy", same_scales, 0.0)
    wanted = weight.double() + delta
    error = float((_expert(candidate, stem).double() - wanted).norm() / wanted.norm())
    return SpotCheck(f"{stem}_blocks", "rounded", same_scales and error < 1, error)


def _is_rounded(base: Checkpoint, candidate: Checkpoint, stem: str) -> bool:
    """Returns whether the blocks of a projection differ from the base's."""
    name = f"{stem}_blocks"
    if name not in candidate.tensors or name not in base.tensors:
        return False
    return not torch.equal(_read(candidate.tensors[name]), _read(base.tensors[name]))


def _expert(checkpoint: Checkpoint, stem: str) -> torch.Tensor:
    """Reads expert 0 in the orientation of transformers, `[in, out]`."""
    if not checkpoint.is_packed:
        return _slice(checkpoint.tensors[stem])
    blocks = _slice(checkpoint.tensors[f"{stem}_blocks"])
    scales = _slice(checkpoint.tensors[f"{stem}_scales"])
    return convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.float32)[0]


def _change(
    adapters: Weighted, base: Checkpoint, name: str, original: torch.Tensor
) -> torch.Tensor:
    """Computes what the adapters add to the first rows of a plain tensor, float64."""
    total = torch.zeros(original.shape, dtype=torch.float64)
    for adapter, weight in adapters:
        if name in adapter.trained:
            total += weight * (_rows(adapter.trained[name]).double() - original.double())
        for stem, update in adapter.updates.items():
            if not update.is_experts and base_names(stem, base)[0] == name:
                A, B = _factors(update)
                total += weight * update.scaling * (B[:ROWS] @ A)
    return total


def _expert_delta(adapters: Weighted, stem: str, base: Checkpoint) -> torch.Tensor:
    """Computes the update of expert 0, `[in, out]`, as PEFT's einsum over `[E, r, in]` and `[out,
    r, E]`.
    """
    total = torch.zeros((), dtype=torch.float64)
    experts = base.config["num_local_experts"]
    for adapter, weight in adapters:
        if stem in adapter.updates:
            update = adapter.updates[stem]
            A, B = _factors(update)
            A = A.reshape(experts, -1, A.shape[-1])
            B = B.reshape(B.shape[0], -1, experts)
            delta = torch.einsum("o r e, e r i -> e i o", B[..., :1], A[:1])[0]
            total = total + weight * update.scaling * delta
    return total


def _factors(update: LoraHeaders) -> tuple[torch.Tensor, torch.Tensor]:
    return _read(update.A).double(), _read(update.B).double()


def _read(info: TensorInfo) -> torch.Tensor:
    with safe_open(info.file, framework="pt") as file:
        return file.get_tensor(info.name)


def _rows(info: TensorInfo) -> torch.Tensor:
    """Reads the first `ROWS` rows."""
    with safe_open(info.file, framework="pt") as file:
        return file.get_slice(info.name)[:ROWS]


def _slice(info: TensorInfo) -> torch.Tensor:
    """Reads the first entry of a tensor and leaves the others on the disk."""
    with safe_open(info.file, framework="pt") as file:
        return file.get_slice(info.name)[0]
