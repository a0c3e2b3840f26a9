"""Expert GEMM backends, one for each kind of device."""

from __future__ import annotations

import torch

from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.backends.grouped import (
    GROUPED_CAPABILITY,
    GroupedBackend,
    LoopedBackend,
)
from gptoss_ft.model.experts.backends.tiled import TiledBackend


def backend_for(device: torch.device) -> ExpertBackend:
    """Makes a backend for a device: tiled for a CPU, grouped for a GPU that can, else looped."""
    if device.type != "cuda":
        return TiledBackend()
    grouped = torch.cuda.get_device_capability(device) >= GROUPED_CAPABILITY
    return GroupedBackend() if grouped else LoopedBackend()
