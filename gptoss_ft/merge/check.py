"""Checks of a merge before a byte is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptoss_ft.adapters.combine import Changes
from gptoss_ft.checkpoint.companions import companion_files
from gptoss_ft.checkpoint.destination import place_problems, space_problems
from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.checkpoint.slices import row_parts
from gptoss_ft.errors import GptOssFtError, MergeError, Problem
from gptoss_ft.files import leftovers
from gptoss_ft.merge.journal import JOURNAL_NAME, MANIFEST_NAME, require_same
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.planned import MergePlan, PlannedTensor
from gptoss_ft.mxfp4.codec import NAN_SCALE


def file_problems(options: MergeOptions) -> Iterator[Problem]:
    """Finds what is wrong with `calibration` and `out` on the disk."""
    if options.calibration and not Path(options.calibration).is_file():
        mend = "give a file of conversations, best the training data"
        yield Problem("there is no such file", f"calibration={options.calibration}", mend=mend)
    if options.out:
        yield from _out_problems(options)


def _out_problems(options: MergeOptions) -> Iterator[Problem]:
    """Checks whether `out` is one of the inputs, is in use, or cannot be written to."""
    out = Path(options.out)
    inputs = {"base": [Path(options.base)] if options.base else [], "adapter": options.adapters}
    begun = any((out / name).is_file() for name in (JOURNAL_NAME, MANIFEST_NAME))
    # Killed before its journal stood: only files without a final name are there.
    begun |= out.is_dir() and len(leftovers(out)) == len(list(out.iterdir()))
    yield from place_problems(out, inputs, begun=begun)


def begun_problems(options: MergeOptions, inputs: dict[str, Any]) -> list[Problem]:
    """Checks whether `out` holds a merge, begun or finished, of something else."""
    problems: list[Problem] = []
    for name in (JOURNAL_NAME, MANIFEST_NAME):
        path = Path(options.out) / name
        if path.is_file() and not problems:
            try:
                require_same(path, inputs)
            except MergeError as error:
                problems += error.problems
    return problems


def base_problems(options: MergeOptions, checkpoint: Checkpoint) -> Iterator[Problem]:
    """Checks whether a base of this layout and these dtypes can be merged to the target."""
    if options.to == "mxfp4" and not checkpoint.is_packed:
        yield Problem(
            "a dense base cannot be merged to MXFP4",
            f"base={checkpoint.path}",
            "its experts have no MXFP4 blocks and scales to keep",
            "to=bf16, or give the MXFP4 checkpoint that the dense one was made from",
        )
    for info in checkpoint.tensors.values():
        if info.dtype not in ("U8", "BF16"):
            yield Problem(
                "only bfloat16 checkpoints can be merged",
                info.name,
                f"{info.dtype} in {info.file.name}",
                "convert the base to bfloat16 first",
            )


def calibration_problems(options: MergeOptions) -> list[Problem]:
    """Finds bad rows, or too few, among those to calibrate on."""
    if not options.calibration:
        return []
    from gptoss_ft.merge.calibrate import calibration_rows  # the model and the renderer

    try:
        calibration_rows(
            Path(options.base), Path(options.calibration), options.calibration_rows, map=options.map
        )
    except GptOssFtError as error:
        return list(error.problems)
    return []


def with_experts(
    options: MergeOptions, changes: Changes, checkpoint: Checkpoint
) -> tuple[MergeOptions, list[Problem]]:
    """Fills in `experts` and checks that the choice suits the adapters."""
    stems = changes.expert_stems
    if options.to != "mxfp4":
        return options, []
    options = replace(options, experts=options.experts or ("adapter" if stems else "copy"))
    adapter = " and ".join(map(str, options.adapters))
    where, found = f"adapter={adapter}", f"updates of {len(stems)} expert projections"
    if options.experts == "copy" and stems:
        found += f", such as {stems[0]}"
        mend = "experts=adapter keeps them exactly; see also experts=gptq and to=bf16"
        return options, [Problem("experts=copy would lose expert updates", where, found, mend)]
    if options.experts != "copy" and not stems:
        mend = "leave experts= out: the experts are copied bit for bit"
        found = f"experts={options.experts}"
        return options, [Problem("the adapter changes no expert", where, found, mend)]
    if options.experts == "nearest" and not options.force:
        return options, [_nearest_problem(checkpoint, adapter, stems)]
    return options, []


def _nearest_problem(checkpoint: Checkpoint, adapter: str, stems: list[str]) -> Problem:
    return Problem(
        "rounding expert updates to the nearest 4-bit value erases those of the usual size, up to "
        "about a hundredth of the weights",
        f"adapter={adapter}",
        f"updates of {len(stems)} expert projections, such as {stems[0]}",
        "experts=adapter (all of it is kept, in an adapter beside the merged rest); or "
        "experts=gptq calibration=FILE (most of it); or to=bf16 (all, four times the size); or "
        f"keep base and adapter as they are: gptoss-ft generate model={checkpoint.path} "
        f"adapter={adapter}; or train with the lossless adapter, which leaves the 4-bit weights "
        "alone; force=true rounds all the same",
    )


def unconsumed(tensors: Iterable[PlannedTensor], changes: Changes) -> Iterator[Problem]:
    """Finds adapter tensors that the plan does not use exactly once."""
    used: Counter[object] = Counter()
    for tensor in tensors:
        for update in tensor.updates:
            used.update(getattr(update, factor) for factor in tensor.factor or "AB")
        used.update(value.info for value in tensor.trained)
    for info in changes.infos:
        if (count := used[info]) != 1:
            yield Problem(
                "an adapter tensor would not be merged exactly once",
                info.name,
                f"used {count} times",
                "report this together with adapter_config.json",
            )


def disk_problems(plan: MergePlan) -> Iterator[Problem]:
    """Checks whether the output fits on the disk; what a merge begun before has written counts."""
    out = Path(plan.options.out)
    companions = companion_files(plan.checkpoint.path)
    there = sum(
        (out / shard.file).stat().st_size for shard in plan.files if (out / shard.file).is_file()
    )
    needed = plan.nbytes + sum(file.stat().st_size for file in companions) - there
    yield from space_problems(out, needed + _calibration_bytes(plan), plan.free_bytes)


def _calibration_bytes(plan: MergePlan) -> int:
    """Bounds what calibration keeps on the disk until the end."""
    if plan.options.experts != "gptq":
        return 0
    from gptoss_ft.merge.calibrate import TOKENS  # the model and the renderer

    config, active = plan.checkpoint.config, plan.checkpoint.active_experts
    return int(config["num_hidden_layers"] * TOKENS * (2 * config["hidden_size"] + active))


def scale_problems(tensors: Iterable[PlannedTensor]) -> Iterator[Problem]:
    """Finds NaN scales of experts that will be unpacked; copied ones are not read."""
    for tensor in tensors:
        scales = [info for info in tensor.base if info.name.endswith("_scales")]
        if len(tensor.base) == 2:
            expert = 0
            for part in row_parts(scales[0]):
                for bad in (part == NAN_SCALE).flatten(1).any(1).nonzero().flatten().tolist():
                    yield Problem(
                        "the base holds NaN scales",
                        scales[0].name,
                        f"scale byte {NAN_SCALE} in expert {expert + bad}",
                        "copy or download the base again",
                    )
                expert += part.shape[0]
