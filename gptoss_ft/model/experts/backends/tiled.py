"""The expert GEMM backend of a CPU: float32, in tiles that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptoss_ft.model.cpu.matmul import add_product, filled_up, multiply, put_product
from gptoss_ft.model.experts.backends.base import ExpertBackend, PackedWeight
from gptoss_ft.model.experts.routing import ExpertChunk
from gptoss_ft.mxfp4.codec import unpack

TILE_VALUES = 1 << 20  # 4 MB of float32, which stay in the cache between unpacking and product
MANY_ROWS = 128
TILE_ROWS = 64  # a multiple of the columns that BLAS computes together on common processors


class TiledBackend(ExpertBackend):
    """One expert at a time in float32, its matrix unpacked tile by tile into one buffer."""

    def __init__(self, tile_values: int = TILE_VALUES) -> None:
        """Makes a backend whose tiles have at most `tile_values` weights for each thread."""
        self._tile_values = tile_values
        self._buffer = torch.empty(0)

    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        return torch.float32

    def experts_at_once(self, *weights: PackedWeight) -> int:
        return 1

    def _tile_rows(self, weight: PackedWeight, rows: int) -> int:
        """Returns how many output rows to unpack at once for a product with `rows` rows.

        BLAS copies the rows anew for every tile. When they are many, fewer and larger tiles are
        faster though they stay in the cache less well.
        """
        values = self._tile_values * torch.get_num_threads() * (1 if rows <= MANY_ROWS else 2)
        fitting = max(1, values // weight.width)
        return fitting // TILE_ROWS * TILE_ROWS or fitting

    def _tiles(
        self, weight: PackedWeight, chunk: ExpertChunk
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yields some output rows and their weights `[rows, in]`, valid until the next tile."""
        expert, step = chunk.experts[0], self._tile_rows(weight, len(chunk))
        blocks, scales, width = weight.blocks[expert], weight.scales[expert], weight.width
        halves, rows = scales.shape[:2]
        if self._buffer.numel() < min(step, rows) * width:
            self._buffer = torch.empty(min(step, rows) * width, device=scales.device)
        for half in range(halves):
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                tile = self._buffer[: (stop - start) * width].view(stop - start, width)
                unpack(blocks[half, start:stop], scales[half, start:stop], tile.dtype, tile)
                yield slice(half * rows + start, half * rows + stop), tile

    def project(
        self, rows: torch.Tensor, weight: PackedWeight, chunk: ExpertChunk, y: torch.Tensor
    ) -> None:
        filled = filled_up(rows)
        for columns, tile in self._tiles(weight, chunk):
            put_product(y[:, columns], filled, tile.T)

    def project_back(
        self, rows: torch.Tensor, weight: PackedWeight, chunk: ExpertChunk, y: torch.Tensor
    ) -> None:
        filled = filled_up(rows)
        for columns, tile in self._tiles(weight, chunk):
            add = add_product if columns.start else put_product
            add(y, filled[:, columns], tile)

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> torch.Tensor:
        return multiply(rows, matrices[0])

    def add_product(
        self, y: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> None:
        add_product(y, rows, matrices[0])

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: ExpertChunk) -> torch.Tensor:
        # The rows are what is summed over here, and their number is a new one every time.
        return (left.T @ right)[None]
