"""A base with adapters on it, for inference, as the merge understands them: base + `Changes`.

Independent of PEFT, so that several weighted adapters run as the merge would add them and a merged
checkpoint can be compared with what it should be. Low-rank updates of linear layers and experts are
computed on the side in float32; small tensors are replaced.
"""

from __future__ import annotations

import torch
from torch import nn

from gptoss_ft.adapters.combine import Changes, LoraFactors, read_factors, trained_value
from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.experts.low_rank import LowRankUpdate, low_rank_update
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.mapped import load_mapped

_UPDATES = {"gate_up_proj": "gate_up_updates", "down_proj": "down_updates"}


class UpdatedLinear(nn.Module):
    """A linear layer plus `scaling * B @ A`."""

    def __init__(self, base: nn.Module, factors: LoraFactors) -> None:
        super().__init__()
        self.base = base
        self.factors = factors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[..., in] -> [..., out]`."""
        low = x @ self.factors.A.T
        return self.base(x) + (low @ self.factors.B.T).mul_(self.factors.scaling)


class UpdatedExperts(nn.Module):
    """Packed experts plus low-rank updates, called as the experts are."""

    def __init__(self, base: PackedExperts, updates: dict[str, tuple[LowRankUpdate, ...]]) -> None:
        super().__init__()
        self.base = base
        self.updates = updates

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Computes what `PackedExperts.forward` does, updates included."""
        return self.base(*inputs, **self.updates)


def tuned_model(checkpoint: Checkpoint, changes: Changes) -> WeightedGptOss:
    """Loads the base with `changes` on the CPU, its files memory-mapped.

    Args:
        checkpoint: the base; packed where `changes` update experts.
        changes: what `combine` returned for adapters that fit it.
    """
    model = load_mapped(checkpoint)
    for name, values in changes.trained.items():
        _replace(model, name, trained_value(checkpoint.read(name), values))
    experts: dict[str, dict[str, tuple[LowRankUpdate, ...]]] = {}
    for stem, updates in changes.updates.items():
        factors = read_factors(updates)
        parent, _, name = stem.rpartition(".")
        if updates[0].is_experts:
            update = low_rank_update((factors.A, factors.B, factors.scaling))
            experts.setdefault(parent, {})[_UPDATES[name]] = (update,)
        elif stem.endswith(".router"):
            weight = model.get_submodule(stem).get_parameter("weight").float()
            delta = (factors.B @ factors.A).mul_(factors.scaling)
            _replace(model, f"{stem}.weight", weight + delta)
        else:
            base = model.get_submodule(stem)
            setattr(model.get_submodule(parent), name, UpdatedLinear(base, factors))
    for path, found in experts.items():
        block = model.get_submodule(path.rpartition(".")[0])
        packed = block.get_submodule("experts")
        if not isinstance(packed, PackedExperts):
            raise TypeError(f"{path}: updates of experts need packed ones")
        block.experts = UpdatedExperts(packed, found)
    return model


def _replace(model: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(value, requires_grad=False)
    model.get_submodule(path).register_parameter(leaf, parameter)
