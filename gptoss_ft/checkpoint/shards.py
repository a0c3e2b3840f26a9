"""Safetensors files written as a stream: the header first, then tensor after tensor.

Format (safetensors): 8 bytes little-endian header length, a JSON header padded with spaces to a
multiple of 8, then the bytes of all tensors without gaps. All of the header follows from names,
dtypes and shapes, so nothing has to be held in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from gptoss_ft.checkpoint.headers import TensorInfo
from gptoss_ft.checkpoint.slices import row_parts


class Stored(Protocol):
    """A tensor's entry in a header: `dtype` is safetensors' name, such as `BF16`."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Joined:
    """A tensor whose bytes are those of stored tensors, one after the other.

    Attributes:
        name: name in the output.
        sources: headers of equal dtype whose shapes differ in the first dimension at most.
    """

    name: str
    sources: tuple[TensorInfo, ...]

    @property
    def dtype(self) -> str:
        """The dtype's name in safetensors."""
        return self.sources[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The first dimensions added up."""
        first = self.sources[0].shape
        return (sum(source.shape[0] for source in self.sources), *first[1:])

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return sum(source.nbytes for source in self.sources)


def write_joined(path: Path, tensors: list[Joined], progress: tqdm) -> None:
    """Writes a file of `tensors`, a few MB at a time.

    Raises:
        CheckpointError: a source file ends before its tensor does.
    """
    with path.open("wb", buffering=0) as stream:
        write_all(stream, memoryview(safetensors_header(tensors)))
        for tensor in tensors:
            for source in tensor.sources:
                for part in row_parts(source):
                    data = part.flatten().view(torch.uint8).numpy().data
                    write_all(stream, data)
                    progress.update(data.nbytes)


def safetensors_header(tensors: Iterable[Stored]) -> bytes:
    """Builds the header of a file whose tensors follow in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
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


def write_all(stream: RawIOBase, data: memoryview) -> None:
    """Writes all of `data`: an unbuffered file may take less at a time."""
    while data:
        data = data[stream.write(data) :]
