"""Checks that an adapter belongs to a base: fingerprint, shapes, ranks, expert counts, values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch

from gptoss_ft.adapters.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    TRAINED_TENSORS,
    Adapter,
    LoraHeaders,
    base_names,
    is_expert_stem,
    read_tensor,
)
from gptoss_ft.adapters.targets import is_targeted
from gptoss_ft.checkpoint.digests import combined_fingerprint, tensor_digests
from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.errors import AdapterError, Problem
from gptoss_ft.mxfp4.codec import BLOCK_SIZE

NAMED = 3  # tensors that a problem lists
_FLOATS = ("F64", "F32", "F16", "BF16")


def check_adapter(
    adapter: Adapter, checkpoint: Checkpoint, digests: Mapping[str, str] | None = None
) -> None:
    """Checks that an adapter belongs to a base, fits it tensor by tensor, and holds finite numbers.

    Args:
        adapter: what `open_adapter` returned.
        checkpoint: the base.
        digests: its `tensor_digests` where they have been read already; None reads them.

    Raises:
        AdapterError: with every misfit, and every tensor that holds NaN or infinity.
    """
    problems = [
        *_fingerprint_problems(adapter, checkpoint, digests),
        *(
            problem
            for update in adapter.updates.values()
            for problem in _misfits(update, checkpoint)
        ),
        *_missing_problems(adapter, checkpoint),
        *_trained_problems(adapter, checkpoint),
        *_value_problems(adapter),
    ]
    if problems:
        raise AdapterError(problems)


def _fingerprint_problems(
    adapter: Adapter, checkpoint: Checkpoint, digests: Mapping[str, str] | None
) -> Iterator[Problem]:
    if adapter.base_fingerprint is None:
        return
    digests = tensor_digests(checkpoint) if digests is None else digests
    found = combined_fingerprint(digests)
    if found != adapter.base_fingerprint:
        yield Problem(
            "the adapter was trained on another base",
            str(adapter.path),
            f"trained on {adapter.base_fingerprint}, but {checkpoint.path} is {found}"
            + _differing(adapter.base_tensors, digests),
            "give the checkpoint that the adapter was trained on",
        )


def _differing(trained_on: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Names the tensors that have changed, or nothing when it is not known what they were."""
    names = [name for name in trained_on if found.get(name) != trained_on[name]]
    names += [name for name in found if trained_on and name not in trained_on]
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:NAMED])
    return f"; differing tensors ({len(names)}): {shown}" + (", …" if len(names) > NAMED else "")


def _misfits(update: LoraHeaders, checkpoint: Checkpoint) -> Iterator[Problem]:
    shape = _matrix_shape(update.stem, checkpoint)
    if shape is None:
        yield Problem(
            "the base has no matrix for this update",
            update.A.name,
            f"no {' or '.join(base_names(update.stem, checkpoint))} in {checkpoint.path}",
            "give the checkpoint that the adapter was trained on",
        )
        return
    experts, out, width = shape
    rank = update.rank
    for info, wanted in ((update.A, (experts * rank, width)), (update.B, (out, rank * experts))):
        if info.shape != wanted:
            count = f"{experts} experts with" if update.is_experts else "a matrix with"
            yield Problem(
                "an adapter tensor has the wrong shape",
                info.name,
                f"{list(info.shape)}, where {count} {width} inputs, {out} outputs and rank {rank} "
                f"({ADAPTER_CONFIG}) need {list(wanted)}",
                "give the checkpoint and the adapter_config.json that belong to the adapter",
            )
        if info.dtype not in _FLOATS:
            yield Problem(
                "an adapter tensor is not floating point", info.name, info.dtype, "save it again"
            )


def _matrix_shape(stem: str, checkpoint: Checkpoint) -> tuple[int, int, int] | None:
    """Returns `(experts, out, in)` of a base matrix, 1 for a single one; None when the base has
    none.
    """
    info = checkpoint.tensors.get(base_names(stem, checkpoint)[0])
    if info is None:
        return None
    if not is_expert_stem(stem):
        return (1, *info.shape) if len(info.shape) == 2 else None
    if checkpoint.is_packed:
        experts, out, groups, _ = info.shape
        return experts, out, groups * BLOCK_SIZE
    experts, width, out = info.shape
    return experts, out, width


def _missing_problems(adapter: Adapter, checkpoint: Checkpoint) -> Iterator[Problem]:
    """Matrices of the base that adapter_config.json targets and no update is there for."""
    for stem in _stems(checkpoint):
        if stem not in adapter.updates and is_targeted(stem, adapter.config):
            yield Problem(
                "the adapter lacks the update of a matrix that its configuration targets",
                stem,
                f"no lora_A and lora_B for it in {ADAPTER_WEIGHTS}",
                "save the adapter again, or copy all of it",
            )


def _stems(checkpoint: Checkpoint) -> list[str]:
    """Lists every matrix of a base that can have an update, a projection of all experts as one."""
    return [
        re.sub(r"(\.weight|_blocks)$", "", name)
        for name, info in checkpoint.tensors.items()
        if len(info.shape) > 1 and not name.endswith(("_scales", "_bias", "embed_tokens.weight"))
    ]


def _trained_problems(adapter: Adapter, checkpoint: Checkpoint) -> Iterator[Problem]:
    updated = {name for stem in adapter.updates for name in base_names(stem, checkpoint)}
    for name, info in adapter.trained.items():
        base = checkpoint.tensors.get(name)
        if base is None or base.dtype not in _FLOATS:
            found = "no such tensor" if base is None else f"stored as {base.dtype}"
            mend = "give the checkpoint that the adapter was trained on"
            yield Problem("the base has no tensor that this could replace", name, found, mend)
        elif info.shape != base.shape or info.dtype not in _FLOATS:
            yield Problem(
                "a trained tensor has the wrong shape or dtype",
                name,
                f"{info.dtype} {list(info.shape)} in {TRAINED_TENSORS}, "
                f"{list(base.shape)} in the base",
                "give the checkpoint that the adapter was trained on",
            )
        elif name in updated:
            mend = "remove one of the two"
            yield Problem("a tensor has both a LoRA update and a trained value", name, mend=mend)


def _value_problems(adapter: Adapter) -> Iterator[Problem]:
    factors = (info for update in adapter.updates.values() for info in (update.A, update.B))
    for info in (*factors, *adapter.trained.values()):
        finite = torch.isfinite(read_tensor(info))
        if not finite.all():
            yield Problem(
                "an adapter tensor holds NaN or infinity",
                info.name,
                f"{int((~finite).sum())} of {finite.numel()} values in {info.file.name}",
                "the training diverged; use an earlier training checkpoint of the run",
            )
