"""Several adapters as one change to a base: `W + sum of weight * (what each adapter adds)`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from gptoss_ft.adapters.files import Adapter, LoraHeaders, read_tensor
from gptoss_ft.checkpoint.headers import TensorInfo


@dataclass(frozen=True)
class TrainedValue:
    """A tensor that an adapter trained in full: it adds `weight * (value - base)`."""

    info: TensorInfo
    weight: float


@dataclass(frozen=True)
class Changes:
    """The changes that all adapters together make to a base.

    Attributes:
        updates: low-rank updates by stem of the base tensor, the adapter's weight in the scaling.
        trained: fully trained tensors by base name.
    """

    updates: dict[str, tuple[LoraHeaders, ...]] = field(repr=False)
    trained: dict[str, tuple[TrainedValue, ...]] = field(repr=False)

    @property
    def expert_stems(self) -> list[str]:
        """The expert projections that have an update."""
        return [stem for stem, updates in self.updates.items() if updates[0].is_experts]

    @property
    def infos(self) -> list[TensorInfo]:
        """Header of every adapter tensor."""
        factors = [
            info
            for updates in self.updates.values()
            for update in updates
            for info in (update.A, update.B)
        ]
        return [*factors, *(value.info for values in self.trained.values() for value in values)]


@dataclass(frozen=True)
class LoraFactors:
    """One low-rank update in float32, ready to be added.

    Attributes:
        A: `[r, in]`, or `[E, r, in]` for experts.
        B: `[out, r]`, or `[E, out, r]`.
        scaling: factor of `B @ A`.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float

    def expert(self, index: int) -> LoraFactors:
        """Returns the update of one expert."""
        return LoraFactors(self.A[index], self.B[index], self.scaling)

    def rows(self, start: int, stop: int) -> LoraFactors:
        """Returns the update of some rows of a plain matrix."""
        return LoraFactors(self.A, self.B[start:stop], self.scaling)

    def square(self) -> float:
        """Computes `|scaling * B @ A|^2` in float64 from the two small Gram matrices."""
        A, B = self.A.double(), self.B.double()
        return float(((A @ A.mT) * (B.mT @ B)).sum()) * self.scaling**2


def combine(adapters: Iterable[tuple[Adapter, float]]) -> Changes:
    """Combines weighted adapters into the changes that they make together to their common base."""
    updates: dict[str, list[LoraHeaders]] = defaultdict(list)
    trained: dict[str, list[TrainedValue]] = defaultdict(list)
    for adapter, weight in adapters:
        for stem, update in adapter.updates.items():
            updates[stem].append(replace(update, scaling=update.scaling * weight))
        for name, info in adapter.trained.items():
            trained[name].append(TrainedValue(info, weight))
    return Changes(
        {stem: tuple(parts) for stem, parts in updates.items()},
        {name: tuple(values) for name, values in trained.items()},
    )


def read_factors(updates: Sequence[LoraHeaders]) -> LoraFactors:
    """Reads the sum of updates of one matrix, or of one projection of all experts, as one update.

    Ranks add up: A stacks the parts, B their scaled counterparts. A single update stays as it is.
    """
    if len(updates) == 1:
        return LoraFactors(*updates[0].read(), updates[0].scaling)
    parts = [update.read() for update in updates]
    B = [B * update.scaling for (_, B), update in zip(parts, updates, strict=True)]
    return LoraFactors(torch.cat([A for A, _ in parts], -2), torch.cat(B, -1), 1.0)


def trained_value(base: torch.Tensor, values: Sequence[TrainedValue]) -> torch.Tensor:
    """Returns a tensor with its trained values applied, float32; a single one of weight 1 is the
    value.
    """
    if len(values) == 1 and values[0].weight == 1:
        return read_tensor(values[0].info).float()
    total = base.float().clone()
    for value in values:
        total += value.weight * (read_tensor(value.info).float() - base.float())
    return total
