"""What a merge will do, decided and checked from headers before a byte is written.

Targets:

- `mxfp4`: the released layout. Expert blocks and scales are copied bit for bit, so an adapter with
  LoRA on the experts is refused: on the 4-bit grid a typical update rounds away.
- `bf16`: the dense layout of transformers; experts are `experts.gate_up_proj` and
  `experts.down_proj`, `[E, in, out]`, without `quantization_config`.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import Adapter, LoraFactors, base_names, open_adapter
from gptoss_ft.errors import AdapterError, CheckpointError, MergeError, Problem
from gptoss_ft.export.transformers import companion_files
from gptoss_ft.files import is_empty
from gptoss_ft.model.checkpoint import (
    Checkpoint,
    TensorInfo,
    expected_shapes,
    fingerprint,
    open_checkpoint,
)

TARGETS = ("mxfp4", "bf16")
_BYTES = {"U8": 1, "BF16": 2}


@dataclass
class MergeOptions:
    """What to merge into what.

    Attributes:
        base: folder of the checkpoint that the adapter was trained on.
        adapter: folder of the adapter.
        out: folder to write; must not exist or be empty.
        to: `mxfp4` (released layout) or `bf16` (dense).
        max_shard_gb: largest shard in units of 10^9 bytes; a larger tensor has a shard of its own.
        dry_run: show the plan only.
    """

    base: str = ""
    adapter: str = ""
    out: str = ""
    to: str = "mxfp4"
    max_shard_gb: float = 5.0
    dry_run: bool = False

    def problems(self, key: str = "") -> list[Problem]:
        """Everything that is wrong about the values themselves; the disk is not looked at."""
        found = [
            Problem("must name a folder", key + name, mend=f"say {name}=DIR")
            for name in ("base", "adapter", "out")
            if not getattr(self, name)
        ]
        if self.to not in TARGETS:
            found.append(Problem("unknown target", f"{key}to", repr(self.to), "mxfp4 or bf16"))
        if not self.max_shard_gb > 0:
            found.append(Problem("must be above 0", f"{key}max_shard_gb", str(self.max_shard_gb)))
        return found


class Action(StrEnum):
    """How an output tensor comes about."""

    COPY = "copy"  # the bytes of the base
    ADD = "add"  # base + scaling * B @ A, rounded to bfloat16
    REPLACE = "replace"  # the trained values, rounded to bfloat16
    DEQUANTIZE = "dequantize"  # MXFP4 experts as bfloat16, exact
    DEQUANTIZE_ADD = "dequantize_add"  # MXFP4 experts + scaling * B @ A, rounded to bfloat16


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes:
        name: name in the output.
        action: how it is made.
        dtype: `BF16` or `U8`.
        shape: as written.
        base: headers of the base tensors it is made from: one, or blocks and scales.
        update: low-rank update, for `ADD` and `DEQUANTIZE_ADD`.
        trained: header of the trained tensor, for `REPLACE`.
    """

    name: str
    action: Action
    dtype: str
    shape: tuple[int, ...]
    base: tuple[TensorInfo, ...]
    update: LoraFactors | None = None
    trained: TensorInfo | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * _BYTES[self.dtype]


@dataclass(frozen=True)
class PlannedShard:
    """One safetensors file of the output, its tensors in the order of their offsets."""

    file: str
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True)
class MergePlan:
    """A merge that has been checked and can be written.

    Attributes:
        options: what was asked for.
        checkpoint: the base.
        adapter: the adapter.
        base_fingerprint: of the base.
        shards: the files to write.
        free_bytes: free space on the disk of `options.out`.
    """

    options: MergeOptions
    checkpoint: Checkpoint = field(repr=False)
    adapter: Adapter = field(repr=False)
    base_fingerprint: str
    shards: tuple[PlannedShard, ...] = field(repr=False)
    free_bytes: int

    @property
    def tensors(self) -> Iterator[PlannedTensor]:
        """All output tensors, shard by shard."""
        return (tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def totals(self) -> dict[str, dict[str, int]]:
        """`{action: {"tensors": count, "bytes": bytes}}` for the actions that occur."""
        totals: dict[str, dict[str, int]] = {}
        for action in Action:
            sizes = [tensor.nbytes for tensor in self.tensors if tensor.action is action]
            if sizes:
                totals[action.value] = {"tensors": len(sizes), "bytes": sum(sizes)}
        return totals

    def lines(self) -> list[str]:
        """The plan as a short table to read."""
        adapter, options = self.adapter, self.options
        experts = "MXFP4" if self.checkpoint.is_packed else "dense"
        lines = [
            f"base     {options.base} ({experts} experts, {_gigabytes(self.checkpoint.nbytes)})",
            f"adapter  {options.adapter} ({len(adapter.updates)} low-rank updates, "
            f"{len(adapter.trained)} trained tensors)",
            f"out      {options.out} (to={options.to})",
            "",
            f"{'action':<16}{'tensors':>8}{'size':>14}",
        ]
        for action, total in self.totals().items():
            lines.append(f"{action:<16}{total['tensors']:>8}{_gigabytes(total['bytes']):>14}")
        count = sum(1 for _ in self.tensors)
        lines.append(f"{'all':<16}{count:>8}{_gigabytes(self.nbytes):>14}")
        return [*lines, "", f"shards: {len(self.shards)}", f"free:   {_gigabytes(self.free_bytes)}"]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3f} GB"


def plan_merge(options: MergeOptions) -> MergePlan:
    """Plans a merge and checks everything that can be checked before writing.

    Reads headers, a few MB of the base for its fingerprint, and the adapter's values.

    Raises:
        MergeError: with every problem of the options, the base, the adapter, their fit, the disk.
    """
    problems = options.problems()
    checkpoint, adapter = _open(options, problems)
    out = Path(options.out)
    if options.out:
        problems += _out_problems(options)
    if checkpoint is not None and adapter is not None:
        problems += _target_problems(options.to, checkpoint, adapter)
    if problems or checkpoint is None or adapter is None:
        raise MergeError(problems)
    tensors = list(_plan_tensors(checkpoint, adapter, options.to))
    plan = MergePlan(
        options=options,
        checkpoint=checkpoint,
        adapter=adapter,
        base_fingerprint=fingerprint(checkpoint),
        shards=_plan_shards(tensors, round(options.max_shard_gb * 1e9)),
        free_bytes=shutil.disk_usage(_existing_parent(out)).free,
    )
    problems = [*_unconsumed(plan), *_disk_problems(plan)]
    if problems:
        raise MergeError(problems)
    return plan


def _open(
    options: MergeOptions, problems: list[Problem]
) -> tuple[Checkpoint | None, Adapter | None]:
    """Base and adapter, checked against each other; what is wrong is added to `problems`."""
    checkpoint, adapter = None, None
    if options.base:
        try:
            checkpoint = open_checkpoint(Path(options.base))
        except CheckpointError as error:
            problems += error.problems
    if options.adapter:
        try:
            adapter = open_adapter(Path(options.adapter))
            if checkpoint is not None:
                check_adapter(adapter, checkpoint)
        except AdapterError as error:
            problems += error.problems
    return checkpoint, adapter


def _out_problems(options: MergeOptions) -> Iterator[Problem]:
    out = Path(options.out)
    for name in ("base", "adapter"):
        value = getattr(options, name)
        if value and Path(value).resolve() == out.resolve():
            yield Problem(f"out is the {name} itself", f"out={out}", mend="choose another folder")
            return
    if not is_empty(out):
        what = "the folder is not empty" if out.is_dir() else "a file is in the way"
        yield Problem(what, f"out={out}", mend="choose another folder or remove it")


def _target_problems(to: str, checkpoint: Checkpoint, adapter: Adapter) -> Iterator[Problem]:
    experts = [update.stem for update in adapter.updates.values() if update.is_experts]
    if to == "mxfp4" and not checkpoint.is_packed:
        yield Problem(
            "a dense base cannot be merged to MXFP4",
            f"base={checkpoint.path}",
            "its experts have no MXFP4 blocks and scales to keep",
            "to=bf16, or give the MXFP4 checkpoint that the dense one was made from",
        )
    elif to == "mxfp4" and experts:
        yield Problem(
            "LoRA on the experts cannot be merged to MXFP4: rounding base + update back to the "
            "4-bit grid erases updates of the usual size, up to about a hundredth of the weights",
            f"adapter={adapter.path}",
            f"updates of {len(experts)} expert projections, such as {experts[0]}",
            "to=bf16; or keep the adapter beside the base, exact: gptoss-ft generate "
            f"model={checkpoint.path} adapter={adapter.path}; or train with the lossless adapter, "
            "which leaves the 4-bit weights of the experts as they are",
        )
    for info in checkpoint.tensors.values():
        if info.dtype not in _BYTES:
            yield Problem(
                "only bfloat16 checkpoints can be merged",
                info.name,
                f"{info.dtype} in {info.file.name}",
                "convert the base to bfloat16 first",
            )


def _plan_tensors(checkpoint: Checkpoint, adapter: Adapter, to: str) -> Iterator[PlannedTensor]:
    """Every output tensor, in the order in which the base is read sequentially."""
    updates = {base_names(stem, checkpoint)[0]: update for stem, update in adapter.updates.items()}
    dense_shapes = expected_shapes(checkpoint.config, packed=False)
    for name, info in checkpoint.tensors.items():
        update, trained = updates.get(name), adapter.trained.get(name)
        if to == "bf16" and name.endswith("_scales"):
            continue  # goes into the tensor of its blocks
        if to == "bf16" and name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            action = Action.DEQUANTIZE_ADD if update else Action.DEQUANTIZE
            sources = (info, checkpoint.tensors[f"{stem}_scales"])
            yield PlannedTensor(stem, action, "BF16", dense_shapes[stem], sources, update)
        elif update is not None:
            yield PlannedTensor(name, Action.ADD, "BF16", info.shape, (info,), update)
        elif trained is not None:
            yield PlannedTensor(name, Action.REPLACE, "BF16", info.shape, (info,), trained=trained)
        else:
            yield PlannedTensor(name, Action.COPY, info.dtype, info.shape, (info,))


def _plan_shards(tensors: list[PlannedTensor], max_bytes: int) -> tuple[PlannedShard, ...]:
    """Cuts the tensors, in order, into shards of at most `max_bytes`, or of one larger tensor.

    Within a shard wider dtypes come first, so that every tensor is aligned to its element size.
    """
    groups: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return tuple(
        PlannedShard(
            f"model-{number:05d}-of-{len(groups):05d}.safetensors",
            tuple(sorted(group, key=lambda tensor: -_BYTES[tensor.dtype])),
        )
        for number, group in enumerate(groups, start=1)
    )


def _unconsumed(plan: MergePlan) -> Iterator[Problem]:
    """Adapter tensors that the plan does not use exactly once."""
    used = Counter(
        info for tensor in plan.tensors for info in _adapter_tensors(tensor.update, tensor.trained)
    )
    present = [
        *(info for update in plan.adapter.updates.values() for info in (update.A, update.B)),
        *plan.adapter.trained.values(),
    ]
    for info in present:
        if (count := used[info]) != 1:
            yield Problem(
                "an adapter tensor would not be merged exactly once",
                info.name,
                f"used {count} times",
                "report this together with adapter_config.json",
            )


def _adapter_tensors(
    update: LoraFactors | None, trained: TensorInfo | None
) -> Iterator[TensorInfo]:
    if update is not None:
        yield from (update.A, update.B)
    if trained is not None:
        yield trained


def _disk_problems(plan: MergePlan) -> Iterator[Problem]:
    companions = companion_files(plan.checkpoint.path)
    needed = plan.nbytes + sum(file.stat().st_size for file in companions)
    if needed > plan.free_bytes:
        yield Problem(
            "the disk has too little space",
            f"out={plan.options.out}",
            f"{_gigabytes(plan.free_bytes)} free, {_gigabytes(needed)} needed",
            "free some space or choose a folder on another disk",
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())
