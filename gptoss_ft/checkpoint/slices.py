"""Reading tensors of a checkpoint a bounded part at a time.

Files are read, not mapped: pages of a mapping would count as memory of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import FileIO

import torch

from gptoss_ft.checkpoint.headers import DTYPES, TensorInfo
from gptoss_ft.errors import CheckpointError, Problem

PART_BYTES = 4 << 20


def row_parts(info: TensorInfo, part_bytes: int = PART_BYTES) -> Iterator[torch.Tensor]:
    """Yields a stored tensor, as many rows at a time as fit in `part_bytes`, at least one.

    All parts share one buffer: each is valid until the next one is asked for.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
    rows = info.shape[0]
    row_bytes = info.nbytes // rows
    step = min(max(1, part_bytes // row_bytes), rows)
    buffer = torch.empty(step * row_bytes, dtype=torch.uint8)
    with FileIO(info.file) as stream:
        stream.seek(info.offset)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            part = buffer[: count * row_bytes]
            _fill(part, stream, info)
            yield part.view(DTYPES[info.dtype]).view(count, *info.shape[1:])


def experts(base: tuple[TensorInfo, ...]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yields, expert by expert, its part of each of several tensors `[E, …]`, in shared buffers."""
    for parts in zip(*(row_parts(info, 1) for info in base), strict=True):
        yield tuple(part[0] for part in parts)


def _fill(part: torch.Tensor, stream: FileIO, info: TensorInfo) -> None:
    target = part.numpy().data
    while target:
        count = stream.readinto(target)
        if not count:
            problem = Problem("a shard ended early", info.name, str(info.file), "copy it again")
            raise CheckpointError(problem)
        target = target[count:]
