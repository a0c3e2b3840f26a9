"""Writes a planned merge file by file, and goes on where a killed one stopped.

Every file is written beside its final name, flushed and renamed; the journal records it. When all
tensors are there, the index, the configuration, the tokenizer and the report follow, and the
manifest last. Nothing that is written depends on whether, when or how often the merge was stopped.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import gptoss_ft
from gptoss_ft.adapters.files import ADAPTER_CONFIG, ADAPTER_INFO
from gptoss_ft.checkpoint.companions import (
    checkpoint_config,
    companion_files,
    copy_companion_files,
)
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import INDEX_NAME, open_checkpoint
from gptoss_ft.errors import MergeError, Problem
from gptoss_ft.files import remove_leftovers, sha256_file, write_json
from gptoss_ft.merge.expert_adapter import FOLDER
from gptoss_ft.merge.journal import (
    FORMAT,
    MANIFEST_NAME,
    Journal,
    is_complete,
    locked,
    open_journal,
)
from gptoss_ft.merge.planned import MergeAction, MergePlan
from gptoss_ft.merge.report import REPORT_NAME, TABLE_NAME, rho_problems, write_report
from gptoss_ft.merge.shard_writer import write_shard
from gptoss_ft.merge.statistics import TensorStatistics
from gptoss_ft.merge.values import Rounder, Workbench

CALIBRATION = ".calibration"


@dataclass(frozen=True)
class MergeResult:
    """The result of a merge.

    Attributes:
        out: the checkpoint folder.
        nbytes: bytes of its tensors.
        seconds: wall time.
        statistics: by name of each changed tensor; empty when they were not asked for.
        problems: why the checkpoint was left unfinished: rounding that loses too much.
        was_complete: it was there already and nothing was written.
    """

    out: Path
    nbytes: int
    seconds: float
    statistics: dict[str, TensorStatistics]
    problems: tuple[Problem, ...] = ()
    was_complete: bool = False


def merge(plan: MergePlan) -> MergeResult:
    """Writes the merged checkpoint into `plan.options.out`, or what is missing of it there.

    The manifest is the sign of completion. Memory does not grow with the depth of the model: a few
    MB of a plain tensor, or one expert, is held at a time, with the two factors of a layer.

    Raises:
        MergeError: the disk is full or fails, another merge is writing there, or the folder holds
            something else. What is finished stays, and the same merge goes on from there.
    """
    out = Path(plan.options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            return _merge(plan, out)
    except OSError as error:
        raise MergeError(_stopped(out, error)) from error


def _merge(plan: MergePlan, out: Path) -> MergeResult:
    start = time.perf_counter()
    journal = open_journal(out, plan.inputs)
    was_complete = is_complete(out, plan.inputs)
    if not was_complete:
        _write_tensors(plan, journal)
    statistics = _statistics(journal)
    problems: list[Problem] = []
    if not was_complete:
        write_report(out, plan, statistics)
        problems = [] if plan.options.force else rho_problems(statistics)
        if not problems:
            _finish(plan, journal)
    if not problems:
        shutil.rmtree(out / CALIBRATION, ignore_errors=True)
        journal.path.unlink(missing_ok=True)
        remove_leftovers(out)
    seconds = time.perf_counter() - start
    return MergeResult(out, plan.nbytes, seconds, statistics, tuple(problems), was_complete)


def _statistics(journal: Journal) -> dict[str, TensorStatistics]:
    shards = journal.shards.values()
    return {name: item for shard in shards for name, item in shard.statistics.items()}


def _stopped(out: Path, error: OSError) -> Problem:
    return Problem(
        "the merge could not go on",
        f"out={out}",
        str(error),
        "free some space on the disk, or fix what else the system says, and run the same command "
        "again: it goes on from the files that are finished",
    )


def _write_tensors(plan: MergePlan, journal: Journal) -> None:
    """Writes the safetensors files that are not there yet."""
    out = journal.folder
    for folder in (out, out / FOLDER):
        remove_leftovers(folder)
    journal.drop_damaged()
    journal.save()
    if plan.expert_adapter is not None:
        (out / FOLDER).mkdir(exist_ok=True)
    bench = Workbench(plan.options.statistics, _rounder(plan, journal))
    with _progress(plan.nbytes) as progress:
        for shard in plan.files:
            if shard.file in journal.shards:
                progress.update(shard.nbytes)
            else:
                journal.add(shard.file, write_shard(out / shard.file, shard, bench, progress))


def _rounder(plan: MergePlan, journal: Journal) -> Rounder | None:
    """Calibrates for the files that are still to be rounded; the inputs stay on the disk until the
    end.
    """
    missing = [shard for shard in plan.files if shard.file not in journal.shards]
    if not any(tensor.action is MergeAction.GPTQ for shard in missing for tensor in shard.tensors):
        return None
    from gptoss_ft.merge.calibrate import calibrate  # the model and all that it needs

    options, folder = plan.options, journal.folder / CALIBRATION
    rows, file = options.calibration_rows, Path(options.calibration)
    return calibrate(plan.checkpoint, plan.changes, file, rows, folder, map=options.map)


def _progress(total: int) -> tqdm:
    """Shows bytes written, rate and remaining time on stderr if that is a terminal."""
    return tqdm(total=total, desc="merge", unit="B", unit_scale=True, disable=None)


def _finish(plan: MergePlan, journal: Journal) -> None:
    """Writes everything beside the tensors, the manifest last."""
    out = journal.folder
    packed = plan.checkpoint.is_packed and plan.options.to == "mxfp4"
    _write_index(out, plan)
    copy_companion_files(plan.checkpoint.path, out)
    write_json(out / "config.json", checkpoint_config(plan.checkpoint.config, packed))
    if plan.expert_adapter is not None:
        merged = fingerprint(open_checkpoint(out))
        info = plan.expert_adapter.info(merged, gptoss_ft.__version__)
        write_json(out / FOLDER / ADAPTER_CONFIG, plan.expert_adapter.config)
        write_json(out / FOLDER / ADAPTER_INFO, info)
    write_json(out / MANIFEST_NAME, _manifest(plan, journal))


def _write_index(out: Path, plan: MergePlan) -> None:
    weight_map = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    size = sum(shard.nbytes for shard in plan.shards)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out / INDEX_NAME, index)


def _manifest(plan: MergePlan, journal: Journal) -> dict[str, object]:
    """Records where the checkpoint comes from, and the hash of every file in it."""
    out = journal.folder
    hashes = {file: shard.sha256 for file, shard in journal.shards.items()}
    beside = [path.name for path in companion_files(plan.checkpoint.path)]
    beside += [INDEX_NAME, "config.json", REPORT_NAME, TABLE_NAME]
    if plan.expert_adapter is not None:
        beside += [f"{FOLDER}/{ADAPTER_CONFIG}", f"{FOLDER}/{ADAPTER_INFO}"]
    hashes |= {name: sha256_file(out / name) for name in beside}
    return {
        "format": FORMAT,
        "tool": f"gptoss-ft {gptoss_ft.__version__}",
        "base": plan.options.base,
        "adapters": list(map(str, plan.options.adapters)),
        "adapter_kinds": sorted({kind for adapter in plan.adapters for kind in adapter.kinds}),
        "inputs": plan.inputs,
        "actions": plan.totals(),
        "bytes": plan.nbytes,
        "shards": [shard.file for shard in plan.shards],
        "files": dict(sorted(hashes.items())),
    }
