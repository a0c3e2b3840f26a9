"""The separate adapter of the experts: what was trained in them, in PEFT's layout, nothing rounded.

On the merged base, whose experts are the original bytes, it gives the whole fine-tune. Stock PEFT
loads it; `gptoss-ft generate model=OUT adapter=OUT/expert_adapter` does too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gptoss_ft.adapters.combine import Changes
from gptoss_ft.adapters.files import FORMAT, Adapter, LoraHeaders, read_tensor
from gptoss_ft.adapters.layout import EXPERT_PARAMETERS, expert_A, expert_B, joined_A, joined_B
from gptoss_ft.checkpoint.headers import TensorInfo

FOLDER = "expert_adapter"


@dataclass(frozen=True)
class PlannedFactor:
    """One tensor of the separate adapter.

    Attributes:
        name: PEFT's key.
        factor: `A` or `B`.
        dtype: as safetensors calls it: the source's, or `F32` where something is computed.
        shape: `[E * r, in]` for A, `[out, r * E]` for B, `r` being the sum of the parts' ranks.
        parts: the updates that it joins.
    """

    name: str
    factor: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[LoraHeaders, ...]


@dataclass(frozen=True)
class ExpertAdapter:
    """The separate adapter: its tensors, and its adapter_config.json."""

    factors: tuple[PlannedFactor, ...]
    config: dict[str, Any] = field(repr=False)

    def info(self, base_fingerprint: str, version: str) -> dict[str, Any]:
        """Returns the gptoss_ft.json of its folder; its base is the merged checkpoint around it."""
        origin = {"base": "..", "base_fingerprint": base_fingerprint, "version": version}
        return {"format": FORMAT, "kinds": ["experts"], **origin}


def plan_expert_adapter(changes: Changes, source: Adapter, layers: int) -> ExpertAdapter:
    """Plans the adapter that holds all expert updates.

    Args:
        changes: of all adapters.
        source: the adapter whose other settings are kept.
        layers: of the base.

    A projection that one adapter updates keeps that adapter's factors, bit for bit, with its weight
    in alpha. Where several do, the ranks add up and the scalings go into B.
    """
    stems = changes.expert_stems
    factors = tuple(factor for stem in stems for factor in _factors(stem, changes))
    return ExpertAdapter(factors, _config(changes, source.config, layers))


def _factors(stem: str, changes: Changes) -> Iterator[PlannedFactor]:
    parts = changes.updates[stem]
    for factor in "AB":
        infos = [getattr(part, factor) for part in parts]
        dtype = infos[0].dtype if len(infos) == 1 else "F32"
        shape = _joined_shape(infos, factor)
        yield PlannedFactor(_key(stem, changes, factor), factor, dtype, shape, parts)


def _joined_shape(infos: list[TensorInfo], factor: str) -> tuple[int, ...]:
    rows, columns = infos[0].shape
    if factor == "A":
        return sum(info.shape[0] for info in infos), columns
    return rows, sum(info.shape[1] for info in infos)


def _key(stem: str, changes: Changes, factor: str) -> str:
    """Returns PEFT's key: the parameter declared last is wrapped outermost."""
    module, _, name = stem.rpartition(".")
    wrapped = [name for name in EXPERT_PARAMETERS if f"{module}.{name}" in changes.updates]
    depth = len(wrapped) - 1 - wrapped.index(name)
    return f"base_model.model.{module}{'.base_layer' * depth}.lora_{factor}.weight"


def _config(changes: Changes, source: dict[str, Any], layers: int) -> dict[str, Any]:
    """Returns adapter_config.json: the source's, with the experts as its only targets."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for stem in changes.expert_stems:
        parts = changes.updates[stem]
        ranks[stem] = sum(part.rank for part in parts)
        alpha = (parts[0].scaling if len(parts) == 1 else 1.0) * ranks[stem]
        alphas[stem] = int(alpha) if alpha.is_integer() else alpha
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return source | {
        "alpha_pattern": {stem: value for stem, value in alphas.items() if value != alpha},
        "base_model_name_or_path": None,
        "exclude_modules": None,
        "inference_mode": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "r": rank,
        "rank_pattern": {stem: value for stem, value in ranks.items() if value != rank},
        "target_modules": [],
        "target_parameters": _targets(changes, layers),
        "use_rslora": False,
    }


def _most_common(values: dict[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _targets(changes: Changes, layers: int) -> list[str]:
    """Returns short names where every layer has the same projections, else every stem."""
    found: dict[str, set[str]] = defaultdict(set)
    for stem in changes.expert_stems:
        module, _, name = stem.rpartition(".")
        found[module].add(name)
    names = next(iter(found.values()))
    if len(found) == layers and all(others == names for others in found.values()):
        return [f"mlp.experts.{name}" for name in EXPERT_PARAMETERS if name in names]
    return sorted(changes.expert_stems)


def joined_factor(factor: str, parts: tuple[LoraHeaders, ...]) -> torch.Tensor:
    """Returns the values of a factor `A` or `B`: the source's own, or the joined parts in
    float32.
    """
    if len(parts) == 1:
        return read_tensor(getattr(parts[0], factor))
    tensors = []
    for part in parts:
        tensor = read_tensor(getattr(part, factor)).float()
        experts = part.A.shape[0] // part.rank
        split = expert_A(tensor, experts) if factor == "A" else expert_B(tensor, experts)
        tensors.append(split if factor == "A" else split * part.scaling)
    return joined_A(torch.cat(tensors, 1)) if factor == "A" else joined_B(torch.cat(tensors, 2))
