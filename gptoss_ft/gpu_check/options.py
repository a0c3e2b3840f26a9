"""What the GPU check runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GpuCheckOptions:
    """Which device, and which random numbers.

    Attributes:
        device: a torch device; `cuda` is the first GPU, `cpu` tries the check itself.
        seed: of the tiny model, the adapter and the tokens.
    """

    device: str = "cuda"
    seed: int = 0
