"""The plan of a merge: its actions, tensors, shards and totals.

These are types only: `plan.py` fills them in, `check.py` refuses what cannot be merged, and
`stream.py` writes what they say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gptoss_ft.adapters.combine import Changes, TrainedValue
from gptoss_ft.adapters.files import ADAPTER_WEIGHTS, Adapter, LoraHeaders
from gptoss_ft.checkpoint.headers import DTYPES, Checkpoint, TensorInfo
from gptoss_ft.merge.expert_adapter import FOLDER, ExpertAdapter
from gptoss_ft.merge.options import MergeOptions


class MergeAction(StrEnum):
    """The way an output tensor comes about."""

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
    action: MergeAction
    dtype: str
    shape: tuple[int, ...]
    base: tuple[TensorInfo, ...]
    updates: tuple[LoraHeaders, ...] = ()
    trained: tuple[TrainedValue, ...] = ()
    factor: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def unit(self) -> str:
        """The projection whose blocks, scales and bias must share a shard, else the name."""
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
        base_fingerprint: fingerprint of the base.
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
                *(item.name, MergeAction.FACTOR, item.dtype, item.shape, (), item.parts),
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
        """Counts `{action: {"tensors": count, "bytes": bytes}}` for the actions that occur."""
        totals: dict[str, dict[str, int]] = {}
        for action in MergeAction:
            sizes = [tensor.nbytes for tensor in self.tensors if tensor.action is action]
            if sizes:
                totals[action.value] = {"tensors": len(sizes), "bytes": sum(sizes)}
        return totals
