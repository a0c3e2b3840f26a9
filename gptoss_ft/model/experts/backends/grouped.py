"""The expert GEMM backends of GPUs: a chunk of experts unpacked at once, in the input's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gptoss_ft.model.experts.backends.base import ExpertBackend, PackedWeight
from gptoss_ft.model.experts.routing import ExpertChunk
from gptoss_ft.mxfp4.codec import unpack

CHUNK_BYTES = 256 << 20
GROUPED_ALIGNMENT = 16
GROUPED_CAPABILITY = (9, 0)


class _UnpackingBackend(ExpertBackend):
    """Unpacks the experts of a chunk into one buffer; subclasses multiply."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Makes a backend whose buffer has at most `chunk_bytes`, or one expert's matrix."""
        self._chunk_bytes = chunk_bytes
        self._buffer = torch.empty(0)

    def compute_dtype(self, x: torch.Tensor) -> torch.dtype:
        autocast = torch.amp.is_autocast_available(x.device.type)
        if autocast and torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def experts_at_once(self, *weights: PackedWeight) -> int:
        largest = max(weight.out * weight.width for weight in weights)
        return max(1, self._chunk_bytes // (2 * largest))

    def _dense(self, weight: PackedWeight, chunk: ExpertChunk, dtype: torch.dtype) -> torch.Tensor:
        """Returns the chunk's matrices `[c, out, in]`, valid until the next call."""
        experts, device = len(chunk.experts), weight.scales.device
        size = experts * weight.out * weight.width
        if self._buffer.numel() < size or self._buffer.dtype != dtype:
            self._buffer = torch.empty(size, dtype=dtype, device=device)
        blocks, scales = chunk.select(weight.blocks), chunk.select(weight.scales)
        dense = self._buffer[:size].view(*scales.shape[:3], weight.width)
        return unpack(blocks, scales, dtype, dense).view(experts, weight.out, weight.width)

    def project(
        self, rows: torch.Tensor, weight: PackedWeight, chunk: ExpertChunk, y: torch.Tensor
    ) -> None:
        y.copy_(self.multiply(rows, self._dense(weight, chunk, y.dtype).transpose(1, 2), chunk))

    def project_back(
        self, rows: torch.Tensor, weight: PackedWeight, chunk: ExpertChunk, y: torch.Tensor
    ) -> None:
        y.copy_(self.multiply(rows, self._dense(weight, chunk, y.dtype), chunk))

    def add_product(
        self, y: torch.Tensor, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> None:
        y.add_(self.multiply(rows, matrices, chunk))


class GroupedBackend(_UnpackingBackend):
    """All experts of a chunk in one grouped GEMM."""

    # Strides must be multiples of 16 bytes, so ranks are filled up with zeros.
    rank_multiple = GROUPED_ALIGNMENT // 2

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> torch.Tensor:
        return grouped_mm(rows, matrices, chunk.ends)

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: ExpertChunk) -> torch.Tensor:
        return grouped_mm(left.T, right, chunk.ends)


class LoopedBackend(_UnpackingBackend):
    """One product after another, for devices without a grouped GEMM."""

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, chunk: ExpertChunk
    ) -> torch.Tensor:
        y = rows.new_empty(len(rows), matrices.shape[2])
        for part, matrix, out in zip(
            rows.split(chunk.counts), matrices, y.split(chunk.counts), strict=True
        ):
            torch.mm(part, matrix, out=out)
        return y

    def outer(self, left: torch.Tensor, right: torch.Tensor, chunk: ExpertChunk) -> torch.Tensor:
        pairs = zip(left.split(chunk.counts), right.split(chunk.counts), strict=True)
        return torch.stack([part.T @ other for part, other in pairs])


def grouped_mm(left: torch.Tensor, right: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Calls torch's grouped GEMM, which became public in torch 2.10."""
    public = getattr(F, "grouped_mm", None)
    return (public or torch._grouped_mm)(left, right, offs=ends)
