"""Products with packed experts: the inner loop of the expert block, one for each kind of device.

A CPU multiplies one expert after another in float32, in tiles that are unpacked into a buffer small
enough for the cache. A GPU unpacks a chunk of experts and multiplies all of them in one grouped
GEMM, or, where it has none, one by one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from gptoss_ft.model.cpu.matmul import add_product, filled_up, multiply, put_product
from gptoss_ft.model.experts.routing import Chunk
from gptoss_ft.mxfp4.codec import BLOCK_SIZE, unpack

TILE_VALUES = 1 << 20  # 4 MB of float32, which stay in the cache between unpacking and product
MANY_ROWS = 128
TILE_ROWS = 64  # a multiple of the columns that BLAS computes together on common processors
CHUNK_BYTES = 256 << 20
GROUPED_ALIGNMENT = 16
GROUPED_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Packed:
    """One projection of all experts, its output rows dealt into parts.

    Two parts take the interleaved rows of gate_up apart, so that gate and up are each contiguous in
    the output; nothing is copied for it.

    Attributes:
        blocks: uint8 `[E, parts, out / parts, in / 32, 16]`, a view.
        scales: uint8 `[E, parts, out / parts, in / 32]`, a view.
    """

    blocks: torch.Tensor
    scales: torch.Tensor

    @property
    def out(self) -> int:
        return self.scales.shape[1] * self.scales.shape[2]

    @property
    def width(self) -> int:
        return self.scales.shape[3] * BLOCK_SIZE


def deal(rows: torch.Tensor, parts: int) -> torch.Tensor:
    """`[E, out, …]` as a view `[E, parts, out / parts, …]`, part p being the rows p::parts."""
    return rows.unflatten(1, (-1, parts)).transpose(1, 2)


def tile_rows(packed: Packed, rows: int) -> int:
    """How many output rows of a matrix to unpack at once for a product with `rows` rows.

    BLAS copies the rows anew for every tile. When they are many, fewer and larger tiles are faster
    though they stay in the cache less well.
    """
    values = TILE_VALUES * torch.get_num_threads() * (1 if rows <= MANY_ROWS else 2)
    fitting = max(1, values // packed.width)
    return fitting // TILE_ROWS * TILE_ROWS or fitting


class Products(Protocol):
    """What the expert block asks of a device. Rows are those of one chunk, sorted by expert."""

    rank_multiple: int

    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        """The dtype of all rows, given the block's input."""

    def experts_at_once(self, *matrices: Packed) -> int:
        """How many experts a chunk may have."""

    def project(self, rows: torch.Tensor, packed: Packed, chunk: Chunk, y: torch.Tensor) -> None:
        """`y = rows @ W.T`, `[n, in] -> [n, out]`."""

    def project_back(
        self, rows: torch.Tensor, packed: Packed, chunk: Chunk, y: torch.Tensor
    ) -> None:
        """`y = rows @ W`, `[n, out] -> [n, in]`."""

    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """Rows of each expert times its own matrix: `[n, p] x [c, p, q] -> [n, q]`."""

    def add_product(
        self, y: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk
    ) -> None:
        """Adds `multiply(rows, matrices, chunk)` to `y`."""

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """`left.T @ right` over the rows of each expert: `[n, p] x [n, q] -> [c, p, q]`."""


class TiledProducts:
    """One expert at a time in float32, its matrix unpacked tile by tile into one buffer."""

    rank_multiple = 1

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        return torch.float32

    def experts_at_once(self, *matrices: Packed) -> int:
        return 1

    def _tiles(
        self, packed: Packed, expert: int, step: int
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """At most `step` output rows and their weights `[rows, in]`, valid until the next tile."""
        blocks, scales, width = packed.blocks[expert], packed.scales[expert], packed.width
        parts, rows = scales.shape[:2]
        if self._buffer.numel() < min(step, rows) * width:
            self._buffer = torch.empty(min(step, rows) * width, device=scales.device)
        for part in range(parts):
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                tile = self._buffer[: (stop - start) * width].view(stop - start, width)
                unpack(blocks[part, start:stop], scales[part, start:stop], tile.dtype, tile)
                yield slice(part * rows + start, part * rows + stop), tile

    def project(self, rows: torch.Tensor, packed: Packed, chunk: Chunk, y: torch.Tensor) -> None:
        filled = filled_up(rows)
        for columns, tile in self._tiles(packed, chunk.experts[0], tile_rows(packed, len(rows))):
            put_product(y[:, columns], filled, tile.T)

    def project_back(
        self, rows: torch.Tensor, packed: Packed, chunk: Chunk, y: torch.Tensor
    ) -> None:
        filled = filled_up(rows)
        for columns, tile in self._tiles(packed, chunk.experts[0], tile_rows(packed, len(rows))):
            add = add_product if columns.start else put_product
            add(y, filled[:, columns], tile)

    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        return multiply(rows, matrices[0])

    def add_product(
        self, y: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk
    ) -> None:
        add_product(y, rows, matrices[0])

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        # The rows are what is summed over here, and their number is a new one every time.
        return (left.T @ right)[None]


class _ChunkProducts(ABC):
    """A chunk of experts unpacked at once, in the dtype of the input."""

    rank_multiple = 1

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        autocast = torch.amp.is_autocast_available(x.device.type)
        if autocast and torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def experts_at_once(self, *matrices: Packed) -> int:
        largest = max(matrix.out * matrix.width for matrix in matrices)
        return max(1, CHUNK_BYTES // (2 * largest))

    def _dense(self, packed: Packed, chunk: Chunk, dtype: torch.dtype) -> torch.Tensor:
        """The chunk's matrices `[c, out, in]`, valid until the next call."""
        experts, device = len(chunk.experts), packed.scales.device
        size = experts * packed.out * packed.width
        if self._buffer.numel() < size or self._buffer.dtype != dtype:
            self._buffer = torch.empty(size, dtype=dtype, device=device)
        blocks, scales = chunk.pick(packed.blocks), chunk.pick(packed.scales)
        dense = self._buffer[:size].view(*scales.shape[:3], packed.width)
        return unpack(blocks, scales, dtype, dense).view(experts, packed.out, packed.width)

    def project(self, rows: torch.Tensor, packed: Packed, chunk: Chunk, y: torch.Tensor) -> None:
        y.copy_(self.multiply(rows, self._dense(packed, chunk, rows.dtype).transpose(1, 2), chunk))

    def project_back(
        self, rows: torch.Tensor, packed: Packed, chunk: Chunk, y: torch.Tensor
    ) -> None:
        y.copy_(self.multiply(rows, self._dense(packed, chunk, rows.dtype), chunk))

    @abstractmethod
    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """As in `Products`."""

    def add_product(
        self, y: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk
    ) -> None:
        y.add_(self.multiply(rows, matrices, chunk))


class GroupedProducts(_ChunkProducts):
    """All experts of a chunk in one grouped GEMM."""

    # Strides must be multiples of 16 bytes, so ranks are filled up with zeros.
    rank_multiple = GROUPED_ALIGNMENT // 2

    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        return grouped_mm(rows, matrices, chunk.ends)

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        return grouped_mm(left.T, right, chunk.ends)


class LoopedProducts(_ChunkProducts):
    """One product after another, for devices without a grouped GEMM."""

    def multiply(self, rows: torch.Tensor, matrices: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        y = rows.new_empty(len(rows), matrices.shape[2])
        for part, matrix, out in zip(
            rows.split(chunk.counts), matrices, y.split(chunk.counts), strict=True
        ):
            torch.mm(part, matrix, out=out)
        return y

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        pairs = zip(left.split(chunk.counts), right.split(chunk.counts), strict=True)
        return torch.stack([part.T @ other for part, other in pairs])


def grouped_mm(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """torch's grouped GEMM, which became public in torch 2.10."""
    public = getattr(F, "grouped_mm", None)
    return (public or torch._grouped_mm)(left, right, offs=ends)


def products_for(device: torch.device) -> Products:
    """The inner loop for a device, with buffers of its own."""
    if device.type != "cuda":
        return TiledProducts()
    grouped = torch.cuda.get_device_capability(device) >= GROUPED_CAPABILITY
    return GroupedProducts() if grouped else LoopedProducts()
