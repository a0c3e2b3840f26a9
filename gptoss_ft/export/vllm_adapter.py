"""A PEFT adapter folder in the one form that vLLM reads the same in every version.

vLLM finds the experts' factors by PEFT's nesting of wrappers: `experts.base_layer` is gate_up_proj,
`experts` is down_proj, and it asks for both. An adapter that trains only one of them gets zero
factors for the other. Scalings are folded into B and alpha is set to the rank, because older
versions read neither `rank_pattern` nor `alpha_pattern`. Stock PEFT loads the folder as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gptoss_ft.adapters.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Adapter,
    LoraHeaders,
    configured_rank,
    read_tensor,
)
from gptoss_ft.checkpoint.shards import safetensors_header, write_all
from gptoss_ft.errors import Problem
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.files import write_json

# vLLM allocates for one of these ranks (`config/lora.py`).
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_EXPERTS = {"gate_up_proj": "experts.base_layer", "down_proj": "experts"}
_CARRIED = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.experts\.(gate_up|down)_proj)"
)


@dataclass(frozen=True)
class Factor:
    """One tensor of the adapter's file, always float32.

    Attributes:
        name: PEFT's key.
        shape: as PEFT lays it out.
        which: `A` or `B`.
        update: where the values come from; None for zeros.
    """

    name: str
    shape: tuple[int, ...]
    which: str
    update: LoraHeaders | None
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return 4 * self.shape[0] * self.shape[1]

    def read(self) -> torch.Tensor:
        """Reads the values; B includes the scaling."""
        if self.update is None:
            return torch.zeros(self.shape)
        if self.which == "A":
            return read_tensor(self.update.A).float()
        return read_tensor(self.update.B).float() * self.update.scaling


def problems(adapter: Adapter, options: ExportOptions) -> list[Problem]:
    """Finds what a LoRA adapter in vLLM cannot carry."""
    return [*_kind_problems(adapter, options), *_rank_problems(adapter)]


def _kind_problems(adapter: Adapter, options: ExportOptions) -> Iterator[Problem]:
    other = [stem for stem in adapter.updates if not _CARRIED.fullmatch(stem)]
    other += adapter.trained
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        yield Problem(
            "vLLM carries LoRA on attention and experts only",
            f"adapter={options.adapter}",
            f"{other[0]}{more}",
            f"merge first: gptoss-ft merge base={options.model} adapter={options.adapter} out=DIR "
            "to=mxfp4, and export DIR; what was trained in the experts then lies in "
            "DIR/expert_adapter, and adapter=DIR/expert_adapter carries it",
        )


def _rank_problems(adapter: Adapter) -> Iterator[Problem]:
    for update in adapter.updates.values():
        if update.rank > SERVED_RANKS[-1]:
            yield Problem(
                f"vLLM serves ranks up to {SERVED_RANKS[-1]}",
                update.stem,
                f"rank {update.rank}",
                "merge the adapter with to=bf16 and export that folder with dtype=bf16",
            )


def served_rank(adapter: Adapter) -> int:
    """Returns the smallest `--max-lora-rank` that holds the adapter."""
    largest = max(update.rank for update in adapter.updates.values())
    return next(rank for rank in SERVED_RANKS if rank >= largest)


def size(adapter: Adapter) -> int:
    """Returns the bytes of the factors, zero ones not counted."""
    factors = (info for update in adapter.updates.values() for info in (update.A, update.B))
    return sum(4 * info.shape[0] * info.shape[1] for info in factors)


def write(adapter: Adapter, model: dict[str, Any], out: Path, progress: tqdm) -> None:
    """Writes the adapter folder, one factor at a time.

    Args:
        adapter: LoRA on attention and experts.
        model: config.json of the checkpoint.
        out: an existing folder.
        progress: told the bytes.
    """
    write_json(out / ADAPTER_CONFIG, adapter_config(adapter))
    factors = list(plan_factors(adapter, model))
    with (out / ADAPTER_WEIGHTS).open("wb", buffering=0) as stream:
        write_all(stream, memoryview(safetensors_header(factors)))
        for factor in factors:
            data = factor.read().contiguous().flatten().view(torch.uint8).numpy().data
            write_all(stream, data)
            progress.update(data.nbytes)


def adapter_config(adapter: Adapter) -> dict[str, Any]:
    """Returns an adapter_config.json under which every scaling is 1."""
    config = dict(adapter.config)
    config |= {
        "lora_alpha": config["r"],
        "alpha_pattern": dict(config.get("rank_pattern") or {}),
        "rank_pattern": dict(config.get("rank_pattern") or {}),
        "use_rslora": False,
        "target_modules": config.get("target_modules") or [],  # vLLM asks for the key
    }
    if _expert_layers(adapter):
        config["target_parameters"] = [f"mlp.experts.{name}" for name in _EXPERTS]
    return config


def plan_factors(adapter: Adapter, model: dict[str, Any]) -> Iterator[Factor]:
    """Yields every tensor of the adapter's file: attention unchanged, experts always as a pair."""
    for stem, update in adapter.updates.items():
        if not update.is_experts:
            yield from _pair(f"base_model.model.{stem}", update, (update.A.shape, update.B.shape))
    for layer in _expert_layers(adapter):
        for name, wrapper in _EXPERTS.items():
            stem = f"{layer}.experts.{name}"
            shapes = _expert_shapes(name, configured_rank(stem, adapter.config), model)
            yield from _pair(
                f"base_model.model.{layer}.{wrapper}", adapter.updates.get(stem), shapes
            )


def _pair(
    module: str, update: LoraHeaders | None, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> Iterator[Factor]:
    for which, shape in zip("AB", shapes, strict=True):
        yield Factor(f"{module}.lora_{which}.weight", shape, which, update)


def _expert_layers(adapter: Adapter) -> list[str]:
    """Returns `model.layers.N.mlp` of every layer whose experts are updated."""
    layers = (stem.partition(".experts.")[0] for stem in adapter.updates if ".experts." in stem)
    return list(dict.fromkeys(layers))


def _expert_shapes(
    name: str, rank: int, model: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B for one projection of all experts of a layer."""
    hidden, intermediate = model["hidden_size"], model["intermediate_size"]
    width, out = (hidden, 2 * intermediate) if name == "gate_up_proj" else (intermediate, hidden)
    rows = rank * model["num_local_experts"]
    return (rows, width), (out, rows)
