"""Settings of the GPU check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GpuCheckOptions:
    """The device and the random numbers.

    Attributes:
        device: a torch device; `cuda` is the first GPU, `cpu` tries the check itself.
        seed: of the tiny model, the adapter and the tokens.
    """

    device: str = "cuda"
    seed: int = 0
