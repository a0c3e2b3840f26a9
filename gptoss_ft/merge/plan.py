"""Plans a merge, and checks it, from headers before a byte is written.

Targets:

- `mxfp4`: the released layout. Scales are always the base's. Expert blocks are the base's too
  unless `experts` says to round trained experts into them; with `experts=adapter` what was trained
  in the experts goes into an adapter of its own, in the folder `expert_adapter` of the output.
- `bf16`: the dense layout of transformers; experts are `experts.gate_up_proj` and
  `experts.down_proj`, `[E, in, out]`, without `quantization_config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import gptoss_ft
from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.combine import Changes, TrainedValue, combine
from gptoss_ft.adapters.files import Adapter, LoraHeaders, base_names, open_adapter
from gptoss_ft.checkpoint.destination import free_bytes
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import DTYPES, Checkpoint, open_checkpoint
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.errors import GptOssFtError, MergeError, Problem
from gptoss_ft.files import sha256_file
from gptoss_ft.merge import check
from gptoss_ft.merge.expert_adapter import plan_expert_adapter
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.planned import MergeAction, MergePlan, PlannedShard, PlannedTensor


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
    """Returns everything that the bytes of the output depend on, as JSON values."""
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
        "map": options.map if options.calibration else None,
        "calibration_rows": options.calibration_rows if options.calibration else None,
        "statistics": options.statistics,
        "max_shard_gb": options.max_shard_gb,
    }


def _open(
    options: MergeOptions, problems: list[Problem]
) -> tuple[Checkpoint | None, tuple[Adapter, ...]]:
    """Opens base and adapters, checks that they fit, and adds what is wrong to `problems`."""
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
    """Yields every output tensor of the model's own files, layer by layer."""
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
            action = MergeAction.CORRECT
        if action in (MergeAction.DEQUANTIZE, MergeAction.DEQUANTIZE_ADD):
            sources = (info, checkpoint.tensors[f"{stem}_scales"])
            yield PlannedTensor(stem, action, "BF16", dense_shapes[stem], sources, **arguments)
        elif action in (MergeAction.NEAREST, MergeAction.GPTQ):
            sources = (info, checkpoint.tensors[f"{stem}_scales"])
            yield PlannedTensor(name, action, info.dtype, info.shape, sources, **arguments)
        else:
            yield PlannedTensor(name, action, info.dtype, info.shape, (info,), **arguments)


def _action(
    name: str,
    options: MergeOptions,
    updates: tuple[LoraHeaders, ...],
    trained: tuple[TrainedValue, ...],
) -> MergeAction:
    if name.endswith("_blocks"):
        if options.to == "bf16":
            return MergeAction.DEQUANTIZE_ADD if updates else MergeAction.DEQUANTIZE
        return MergeAction(options.experts) if updates else MergeAction.COPY
    if not updates and len(trained) == 1 and trained[0].weight == 1:
        return MergeAction.REPLACE
    return MergeAction.ADD if updates or trained else MergeAction.COPY


def _place(name: str) -> tuple[int, str]:
    """Returns a key that sorts the embedding first, then layer by layer, then norm and head."""
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
        return tensor.action is MergeAction.CORRECT, -DTYPES[tensor.dtype].itemsize

    return tuple(
        PlannedShard(
            f"model-{number:05d}-of-{len(groups):05d}.safetensors",
            tuple(sorted(group, key=offset_order)),
        )
        for number, group in enumerate(groups, start=1)
    )
