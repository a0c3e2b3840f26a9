"""What a merge will do, decided and checked from headers before a byte is written.

Targets:

- `mxfp4`: the released layout. Scales are always the base's. Expert blocks are the base's too
  unless `experts` says to round trained experts into them; with `experts=adapter` what was trained
  in the experts goes into an adapter of its own, in the folder `expert_adapter` of the output.
- `bf16`: the dense layout of transformers; experts are `experts.gate_up_proj` and
  `experts.down_proj`, `[E, in, out]`, without `quantization_config`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

import gptoss_ft
from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.combine import Changes, TrainedValue, combine
from gptoss_ft.adapters.files import (
    ADAPTER_WEIGHTS,
    Adapter,
    LoraFactors,
    base_names,
    open_adapter,
)
from gptoss_ft.checkpoint.destination import free_bytes
from gptoss_ft.checkpoint.headers import (
    DTYPES,
    Checkpoint,
    TensorInfo,
    expected_shapes,
    fingerprint,
    open_checkpoint,
)
from gptoss_ft.errors import GptOssFtError, MergeError, Problem
from gptoss_ft.files import sha256_file
from gptoss_ft.merge import check
from gptoss_ft.merge.expert_adapter import FOLDER, ExpertAdapter, plan_expert_adapter
from gptoss_ft.merge.options import MergeOptions


class Action(StrEnum):
    """How an output tensor comes about."""

    COPY = "copy"  # the bytes of the base
    ADD = "add"  # base + what the adapters add, rounded to bfloat16
    REPLACE = "replace"  # the trained values, rounded to bfloat16
    DEQUANTIZE = "dequantize"  # MXFP4 experts as bfloat16, exact
    DEQUANTIZE_ADD = "dequantize_add"  # MXFP4 experts + scaling * B @ A, rounded to bfloat16
    NEAREST = "nearest"  # MXFP4 experts + scaling * B @ A, each value rounded on the base's scales
    GPTQ = "gptq"  # the same, errors compensated for calibration rows
    CORRECT = "correct"  # bias of experts rounded by gptq, with what makes up for their mean error
    FACTOR = "factor"  # a factor of the separate adapter of the experts


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes:
        name: name in the output.
        action: how it is made.
        dtype: as safetensors calls it.
        shape: as written.
        base: headers of the base tensors it is made from: one, or blocks and scales; none for a
            `FACTOR`.
        updates: low-rank updates that go into it, one of each adapter that has one.
        trained: fully trained values that go into it.
        factor: `A` or `B` for a `FACTOR`, which takes this half of each update.
    """

    name: str
    action: Action
    dtype: str
    shape: tuple[int, ...]
    base: tuple[TensorInfo, ...]
    updates: tuple[LoraFactors, ...] = ()
    trained: tuple[TrainedValue, ...] = ()
    factor: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def unit(self) -> str:
        """Tensors of one unit stand in one shard: blocks, scales and biases of a projection."""
        return re.sub(r"(\.experts\.\w+_proj)_(blocks|scales|bias)$", r"\1", self.name)


@dataclass(frozen=True)
class PlannedShard:
    """One safetensors file of the output, its tensors in the order of their offsets."""

    file: str
    tensors: tuple[PlannedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class MergePlan:
    """A merge that has been checked and can be written.

    Attributes:
        options: what was asked for, `experts` being filled in.
        checkpoint: the base.
        adapters: the adapters, in the order of their weights.
        changes: what the adapters do together, with their weights.
        base_fingerprint: of the base.
        inputs: what determines every byte of the output, for the journal and the manifest.
        shards: the model's files, in the order in which they are written.
        expert_adapter: the separate adapter of the experts, with `experts=adapter`.
        free_bytes: free space on the disk of `options.out`.
    """

    options: MergeOptions
    checkpoint: Checkpoint = field(repr=False)
    adapters: tuple[Adapter, ...] = field(repr=False)
    changes: Changes = field(repr=False)
    base_fingerprint: str
    inputs: dict[str, Any] = field(repr=False)
    shards: tuple[PlannedShard, ...] = field(repr=False)
    expert_adapter: ExpertAdapter | None = field(repr=False)
    free_bytes: int

    @property
    def files(self) -> tuple[PlannedShard, ...]:
        """Every safetensors file: the model's, and the separate adapter's."""
        if self.expert_adapter is None:
            return self.shards
        factors = tuple(
            PlannedTensor(
                *(item.name, Action.FACTOR, item.dtype, item.shape, (), item.parts),
                factor=item.factor,
            )
            for item in self.expert_adapter.factors
        )
        return (*self.shards, PlannedShard(f"{FOLDER}/{ADAPTER_WEIGHTS}", factors))

    @property
    def tensors(self) -> Iterator[PlannedTensor]:
        """All output tensors, file by file."""
        return (tensor for shard in self.files for tensor in shard.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(shard.nbytes for shard in self.files)

    def totals(self) -> dict[str, dict[str, int]]:
        """`{action: {"tensors": count, "bytes": bytes}}` for the actions that occur."""
        totals: dict[str, dict[str, int]] = {}
        for action in Action:
            sizes = [tensor.nbytes for tensor in self.tensors if tensor.action is action]
            if sizes:
                totals[action.value] = {"tensors": len(sizes), "bytes": sum(sizes)}
        return totals


def plan_merge(options: MergeOptions) -> MergePlan:
    """Plans a merge and checks everything that can be checked before writing.

    Reads headers, a few MB of the base for its fingerprint, the adapters' values, and the scales
    of experts that will be unpacked.

    Raises:
        MergeError: with every problem of the options, the base, the adapters, their fit, the disk.
    """
    problems = [*options.problems(), *check.file_problems(options)]
    checkpoint, adapters = _open(options, problems)
    if checkpoint is not None:
        problems += check.base_problems(options, checkpoint)
    if problems or checkpoint is None:
        raise MergeError(problems)
    changes = combine(zip(adapters, options.adapter_weights, strict=True))
    options, problems = check.with_experts(options, changes, checkpoint)
    problems += check.calibration_problems(options)
    if problems:
        raise MergeError(problems)
    found = fingerprint(checkpoint)
    inputs = _inputs(options, adapters, found)
    tensors = list(_plan_tensors(checkpoint, changes, options))
    layers = checkpoint.config["num_hidden_layers"]
    separate = options.experts == "adapter"
    plan = MergePlan(
        options=options,
        checkpoint=checkpoint,
        adapters=adapters,
        changes=changes,
        base_fingerprint=found,
        inputs=inputs,
        shards=_plan_shards(tensors, round(options.max_shard_gb * 1e9)),
        expert_adapter=plan_expert_adapter(changes, adapters[0], layers) if separate else None,
        free_bytes=free_bytes(Path(options.out)),
    )
    problems = [*check.unconsumed(plan.tensors, changes), *check.disk_problems(plan)]
    problems += [*check.scale_problems(plan.tensors), *check.begun_problems(options, inputs)]
    if problems:
        raise MergeError(problems)
    return plan


def _inputs(
    options: MergeOptions, adapters: tuple[Adapter, ...], base_fingerprint: str
) -> dict[str, Any]:
    """Everything that the bytes of the output depend on, as JSON values."""
    return {
        "tool": f"gptoss-ft {gptoss_ft.__version__}, torch {torch.__version__}",
        "base": base_fingerprint,
        "adapters": [
            {"weight": weight, "files": {file.name: sha256_file(file) for file in adapter.files}}
            for adapter, weight in zip(adapters, options.adapter_weights, strict=True)
        ],
        "to": options.to,
        "experts": options.experts,
        "calibration": sha256_file(Path(options.calibration)) if options.calibration else None,
        "calibration_rows": options.calibration_rows if options.calibration else None,
        "statistics": options.statistics,
        "max_shard_gb": options.max_shard_gb,
    }


def _open(
    options: MergeOptions, problems: list[Problem]
) -> tuple[Checkpoint | None, tuple[Adapter, ...]]:
    """Base and adapters, checked against each other; what is wrong is added to `problems`."""
    checkpoint, adapters = None, []
    if options.base:
        try:
            checkpoint = open_checkpoint(Path(options.base))
        except GptOssFtError as error:
            problems += error.problems
    for path in options.adapters:
        try:
            adapter = open_adapter(path)
            if checkpoint is not None:
                check_adapter(adapter, checkpoint)
            adapters.append(adapter)
        except GptOssFtError as error:
            problems += error.problems
    return checkpoint, tuple(adapters)


def _plan_tensors(
    checkpoint: Checkpoint, changes: Changes, options: MergeOptions
) -> Iterator[PlannedTensor]:
    """Every output tensor of the model, layer by layer."""
    updates = {
        base_names(stem, checkpoint)[0]: parts
        for stem, parts in changes.updates.items()
        if options.experts != "adapter" or not parts[0].is_experts
    }
    rounded = {name.removesuffix("_blocks") for name in updates if name.endswith("_blocks")}
    dense_shapes = expected_shapes(checkpoint.config, packed=False)
    for name, info in sorted(checkpoint.tensors.items(), key=lambda item: _place(item[0])):
        arguments: dict[str, Any] = {
            "updates": updates.get(name, ()),
            "trained": changes.trained.get(name, ()),
        }
        stem, _, part = name.rpartition("_")
        if part == "scales" and options.to == "bf16":
            continue  # goes into the tensor of its blocks
        action = _action(name, options, **arguments)
        if part == "bias" and options.experts == "gptq" and stem in rounded:
            action = Action.CORRECT
        if action in (Action.DEQUANTIZE, Action.DEQUANTIZE_ADD):
            sources = (info, checkpoint.tensors[f"{stem}_scales"])
            yield PlannedTensor(stem, action, "BF16", dense_shapes[stem], sources, **arguments)
        elif action in (Action.NEAREST, Action.GPTQ):
            sources = (info, checkpoint.tensors[f"{stem}_scales"])
            yield PlannedTensor(name, action, info.dtype, info.shape, sources, **arguments)
        else:
            yield PlannedTensor(name, action, info.dtype, info.shape, (info,), **arguments)


def _action(
    name: str,
    options: MergeOptions,
    updates: tuple[LoraFactors, ...],
    trained: tuple[TrainedValue, ...],
) -> Action:
    if name.endswith("_blocks"):
        if options.to == "bf16":
            return Action.DEQUANTIZE_ADD if updates else Action.DEQUANTIZE
        return Action(options.experts) if updates else Action.COPY
    if not updates and len(trained) == 1 and trained[0].weight == 1:
        return Action.REPLACE
    return Action.ADD if updates or trained else Action.COPY


def _place(name: str) -> tuple[int, str]:
    """Sorts names layer by layer, the embedding before them, final norm and head after them."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer:
        return int(layer[1]), name
    return (-1 if "embed" in name else 1 << 30), name


def _plan_shards(tensors: list[PlannedTensor], max_bytes: int) -> tuple[PlannedShard, ...]:
    """Cuts the tensors, in order, into shards of at most `max_bytes`, or of one larger unit.

    Within a shard wider dtypes come first, so that every tensor is aligned to its element size;
    corrected biases come last, because the correction is known once their blocks are rounded. The
    sizes of blocks and scales are even, so that these are aligned as well.
    """
    units: dict[str, list[PlannedTensor]] = {}
    for tensor in tensors:
        units.setdefault(tensor.unit, []).append(tensor)
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for unit in units.values():
        nbytes = sum(tensor.nbytes for tensor in unit)
        if groups[-1] and size + nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1] += unit
        size += nbytes

    def offset_order(tensor: PlannedTensor) -> tuple[bool, int]:
        return tensor.action is Action.CORRECT, -DTYPES[tensor.dtype].itemsize

    return tuple(
        PlannedShard(
            f"model-{number:05d}-of-{len(groups):05d}.safetensors",
            tuple(sorted(group, key=offset_order)),
        )
        for number, group in enumerate(groups, start=1)
    )
