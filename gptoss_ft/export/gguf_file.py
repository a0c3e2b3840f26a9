"""GGUF files written as a stream: header and metadata first, then tensor after tensor.

Format (GGUF version 3): the `gguf` package writes everything before the tensors; their data follows
in the order of the header, each one aligned to `ALIGNMENT` bytes. Nothing is held in memory but the
metadata and the part that is being written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from gptoss_ft.checkpoint.shards import write_all
from gptoss_ft.errors import Problem

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "gpt-oss"
ALIGNMENT = 32
# Values and bytes of a block of every type that is written here.
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "MXFP4": (32, 17)}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        name: as llama.cpp calls it.
        type: its GGML type, one of `BLOCKS`.
        shape: in values, the slowest dimension first.
        parts: gives its bytes in order, as contiguous tensors; each is valid until the next one.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        values, size = BLOCKS[self.type]
        return math.prod(self.shape) // values * size


def package_problems() -> list[Problem]:
    """Checks that the `gguf` package is installed."""
    if find_spec("gguf") is not None:
        return []
    mend = 'pip install "gptoss-ft[gguf]"'
    return [Problem("GGUF files need the `gguf` package, which is not installed", mend=mend)]


def data_bytes(tensors: Iterable[GgufTensor]) -> int:
    """Returns the bytes of all tensors with their padding."""
    return sum(tensor.nbytes + -tensor.nbytes % ALIGNMENT for tensor in tensors)


def write_gguf(
    path: Path,
    describe: Callable[[GGUFWriter], None],
    tensors: Sequence[GgufTensor],
    progress: tqdm,
) -> None:
    """Writes a GGUF file of the architecture gpt-oss.

    Args:
        path: the file to create.
        describe: adds the metadata to the writer it is given.
        tensors: what follows, in this order.
        progress: told of every byte of the tensors.

    Raises:
        CheckpointError: a source file ends before its tensor does.
    """
    _write_header(path, describe, tensors)
    with FileIO(path, "ab") as stream:
        _pad(stream)
        for tensor in tensors:
            start = stream.tell()
            for part in tensor.parts():
                data = part.flatten().view(torch.uint8).numpy().data
                write_all(stream, data)
                progress.update(data.nbytes)
            if stream.tell() - start != tensor.nbytes:
                written = stream.tell() - start
                raise RuntimeError(f"{tensor.name}: wrote {written} of {tensor.nbytes} bytes")
            progress.update(_pad(stream))


def _write_header(
    path: Path, describe: Callable[[GGUFWriter], None], tensors: Sequence[GgufTensor]
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    describe(writer)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),  # overruled by raw_dtype, but it must not be uint8
            tensor.nbytes,
            GGMLQuantizationType[tensor.type],
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _pad(stream: FileIO) -> int:
    """Fills up to the next multiple of `ALIGNMENT`; returns how many bytes that took."""
    missing = -stream.tell() % ALIGNMENT
    write_all(stream, memoryview(bytes(missing)))
    return missing
