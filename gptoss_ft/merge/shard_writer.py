"""One safetensors file of the output, written straight from its parts and hashed on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from tqdm import tqdm

from gptoss_ft.checkpoint.shards import safetensors_header, write_all
from gptoss_ft.files import atomic_file
from gptoss_ft.merge.journal import FinishedShard
from gptoss_ft.merge.planned import PlannedShard
from gptoss_ft.merge.statistics import Tally
from gptoss_ft.merge.values import Workbench, parts


def write_shard(path: Path, shard: PlannedShard, bench: Workbench, progress: tqdm) -> FinishedShard:
    """Writes a file; it is under its name when it is whole and on the disk."""
    digest = hashlib.sha256()
    statistics = {}
    with atomic_file(path) as temporary, temporary.open("wb", buffering=0) as stream:
        header = safetensors_header(shard.tensors)
        write_all(stream, memoryview(header))
        digest.update(header)
        for tensor in shard.tensors:
            tally, written = Tally(), 0
            for part in parts(tensor, bench, tally):
                data = part.contiguous().flatten().view(torch.uint8).numpy().data
                digest.update(data)
                write_all(stream, data)
                written += data.nbytes
                progress.update(data.nbytes)
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: wrote {written} of {tensor.nbytes} bytes")
            if result := tally.result():
                statistics[tensor.name] = result
    return FinishedShard(digest.hexdigest(), statistics)
