"""One safetensors file of the output, written straight from its parts and hashed on the way.

Format (safetensors): 8 bytes little-endian header length, a JSON header padded with spaces to a
multiple of 8, then the bytes of all tensors without gaps. All of the header follows from the plan.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from gptoss_ft.files import whole_file
from gptoss_ft.merge.journal import FinishedShard
from gptoss_ft.merge.plan import PlannedShard
from gptoss_ft.merge.statistics import Tally
from gptoss_ft.merge.values import Workbench, parts


def write_shard(path: Path, shard: PlannedShard, bench: Workbench, progress: tqdm) -> FinishedShard:
    """Writes a file; it is under its name when it is whole and on the disk."""
    digest = hashlib.sha256()
    statistics = {}
    with whole_file(path) as temporary, temporary.open("wb", buffering=0) as stream:
        header = shard_header(shard)
        _write(stream, memoryview(header))
        digest.update(header)
        for tensor in shard.tensors:
            tally, written = Tally(), 0
            for part in parts(tensor, bench, tally):
                data = part.contiguous().flatten().view(torch.uint8).numpy().data
                digest.update(data)
                _write(stream, data)
                written += data.nbytes
                progress.update(data.nbytes)
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: wrote {written} of {tensor.nbytes} bytes")
            if result := tally.result():
                statistics[tensor.name] = result
    return FinishedShard(digest.hexdigest(), statistics)


def _write(stream: object, data: memoryview) -> None:
    """Writes all of `data`: an unbuffered file may take less at a time."""
    while data:
        data = data[stream.write(data) :]  # type: ignore[attr-defined]


def shard_header(shard: PlannedShard) -> bytes:
    """What stands before the tensors of a file."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard.tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
