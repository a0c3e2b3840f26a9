"""Inputs of the tuned model's experts on the user's own rows, and rounding that fits them.

One pass of base + adapters over the calibration rows writes, per layer, the inputs of its expert
block and their routing to the disk; memory holds one layer's. From these follow an expert's inputs
to gate_up and, computed again, to down. Every eighth row is held out: it never steers the
rounding and gives the honest measure of it,

    rho = |x (W + Δ - Ŵ)ᵀ| / |x Δᵀ|    summed over held-out inputs x and experts,

the error of a projection's output relative to what the update does to it: 0 keeps the fine-tune, 1
has lost it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gptoss_ft.adapters.combine import Changes, LoraFactors, read_factors, trained_value
from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.errors import MergeError, Problem
from gptoss_ft.files import atomic_file, write_json
from gptoss_ft.inference.hidden_states import Pack, hidden_states, packs
from gptoss_ft.inference.token_rows import TokenRow, read_rows
from gptoss_ft.inference.tuned import tuned_model
from gptoss_ft.merge.values import CalibratedExpert
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.experts.gate import Gate
from gptoss_ft.mxfp4.codec import unpack
from gptoss_ft.mxfp4.gptq import bias_correction, gptq

DONE = "calibration.json"
FORMAT = 1
PACK_TOKENS = 4096
# With 32 experts of which 4 are active, 2,048 inputs for each on average.
TOKENS = 16_384
HELD_OUT_EVERY = 8


@dataclass(frozen=True)
class Layer:
    """The inputs of one expert block.

    Attributes:
        inputs: bfloat16 `[tokens, hidden]`.
        indices: uint8 `[tokens, k]`, the experts that each token was routed to.
    """

    inputs: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class _Projection:
    """Bias in force, and low-rank update, of one projection of all experts of a layer."""

    bias: torch.Tensor
    update: LoraFactors | None


class Calibration:
    """Inputs of every expert, read layer by layer from the folder that `calibrate` filled."""

    def __init__(self, checkpoint: Checkpoint, changes: Changes, folder: Path) -> None:
        self.checkpoint, self.changes, self.folder = checkpoint, changes, folder
        self._held_out = load_file(folder / "held_out.safetensors")["held_out"]
        config = checkpoint.config
        self._gate = Gate(config.get("swiglu_limit", 7.0), config.get("swiglu_alpha", 1.702))
        self._prefix = ""
        self._layer = Layer(torch.empty(0), torch.empty(0))
        self._projections: dict[str, _Projection] = {}

    def round(
        self,
        stem: str,
        expert: int,
        blocks: torch.Tensor,
        scales: torch.Tensor,
        update: LoraFactors,
    ) -> CalibratedExpert:
        """Rounds W + Δ of one expert on the scales of W; fastest layer by layer.

        Args:
            stem: such as `model.layers.3.mlp.experts.down_proj`.
            expert: its index.
            blocks: uint8 `[out, G, 16]`.
            scales: uint8 `[out, G]`.
            update: of this expert.

        Raises:
            ValueError: a scale byte is 255.
        """
        prefix, _, name = stem.rpartition(".")
        self._open(prefix)
        inputs, held_out = self.inputs(stem, expert)
        fit = inputs[~held_out]
        projection = self._projections[name]
        return round_expert(
            (fit, inputs[held_out]), blocks, scales, update, projection.bias[expert]
        )

    def inputs(self, stem: str, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of one expert's projection, float32 `[n, in]`, and which are held out, `[n]`."""
        prefix, _, name = stem.rpartition(".")
        self._open(prefix)
        tokens = (self._layer.indices == expert).any(dim=1).nonzero().flatten()
        inputs = self._layer.inputs[tokens].float()
        if name == "down_proj":
            inputs = self._activation(inputs, expert)
        return inputs, self._held_out[tokens]

    def _activation(self, inputs: torch.Tensor, expert: int) -> torch.Tensor:
        """Computes the expert's gated activation in the tuned model, `[n, hidden] -> [n,
        intermediate]`.
        """
        stem = f"{self._prefix}.gate_up_proj"
        blocks = self.checkpoint.read(f"{stem}_blocks")[expert]
        weight = unpack(blocks, self.checkpoint.read(f"{stem}_scales")[expert])
        projection = self._projections["gate_up_proj"]
        if projection.update is not None:
            update = projection.update.expert(expert)
            weight.addmm_(update.B, update.A, alpha=update.scaling)
        z = torch.addmm(projection.bias[expert], inputs, weight.T)
        return self._gate(torch.cat([z[:, ::2], z[:, 1::2]], dim=-1))

    def _open(self, prefix: str) -> None:
        if prefix == self._prefix:
            return
        number = int(prefix.split(".")[2])
        parts = [load_file(file) for file in sorted(self.folder.glob(f"layer-{number:03d}-*"))]
        self._layer = Layer(
            torch.cat([part["inputs"] for part in parts]),
            torch.cat([part["indices"] for part in parts]),
        )
        self._prefix = prefix
        self._projections = {
            name: self._projection(f"{prefix}.{name}") for name in ("gate_up_proj", "down_proj")
        }

    def _projection(self, stem: str) -> _Projection:
        name = f"{stem}_bias"
        bias = self.checkpoint.read(name)
        if name in self.changes.trained:
            bias = trained_value(bias, self.changes.trained[name])
        updates = self.changes.updates.get(stem)
        return _Projection(bias.float(), read_factors(updates) if updates else None)


def round_expert(
    inputs: tuple[torch.Tensor, torch.Tensor],
    blocks: torch.Tensor,
    scales: torch.Tensor,
    update: LoraFactors,
    bias: torch.Tensor,
) -> CalibratedExpert:
    """Rounds by GPTQ on the kept scales, then corrects the bias so that the mean output is right.

    The mean error goes into the bias, so that the rounding has to mind only the inputs' deviations
    from their mean.

    Args:
        inputs: float32 `[n, in]` to fit to and `[m, in]` to measure on.
        blocks: uint8 `[out, G, 16]`.
        scales: uint8 `[out, G]`.
        update: of this expert.
        bias: `[out]`, in force in the tuned model; the result is stored in bfloat16.

    Raises:
        ValueError: a scale byte is 255.
    """
    fit, held_out = inputs
    mean = fit.mean(0) if len(fit) else fit.new_zeros(fit.shape[1])
    centred = fit - mean
    hessian = centred.T @ centred
    rounded = gptq(blocks, scales, update.A, update.B, update.scaling, hessian)
    delta = (update.B @ update.A).mul_(update.scaling)
    wanted = unpack(blocks, scales).add_(delta)
    lost = wanted.sub_(unpack(rounded.blocks, scales))
    stored = (bias + bias_correction(lost, mean)).to(torch.bfloat16).float()
    correction = stored - bias
    error = (held_out @ lost.T).sub_(correction).square_().sum(dtype=torch.float64)
    effect = (held_out @ delta.T).square_().sum(dtype=torch.float64)
    return CalibratedExpert(rounded, correction, float(error), float(effect), len(fit))


def calibrate(
    checkpoint: Checkpoint,
    changes: Changes,
    file: Path,
    rows: int,
    folder: Path,
    *,
    map: str = "",
) -> Calibration:
    """Runs the tuned model over calibration rows, or opens what an earlier run left.

    Args:
        checkpoint: the base, packed.
        changes: what the adapters do to it.
        file: conversations, best the training data.
        rows: how many of them; no more than fill `TOKENS` are used.
        folder: where inputs go, about `layers * tokens * (2 * hidden + k)` bytes.
        map: how the columns of the conversations are read, as in `data.map`.

    Raises:
        DataError: the file cannot be read or holds bad rows.
        MergeError: too few rows to hold one out.
    """
    if not (folder / DONE).is_file():
        used = calibration_rows(checkpoint.path, file, rows, map=map)
        folder.mkdir(parents=True, exist_ok=True)
        _collect(tuned_model(checkpoint, changes), used, folder)
    return Calibration(checkpoint, changes, folder)


def calibration_rows(model: Path, file: Path, count: int, *, map: str = "") -> list[TokenRow]:
    """Reads the rows to calibrate on: the first `count`, no more of them than fill `TOKENS`.

    Raises:
        DataError: the file cannot be read or holds bad rows.
        MergeError: too few rows to hold one out.
    """
    used = _within(read_rows(model, file, count, map=map), TOKENS)
    if len(used) < HELD_OUT_EVERY:
        raise MergeError(
            Problem(
                f"calibration needs at least {HELD_OUT_EVERY} rows",
                f"calibration={file}",
                f"{len(used)} rows",
                "give more of the training data, or raise calibration_rows",
            )
        )
    return used


def _within(rows: Sequence[TokenRow], tokens: int) -> list[TokenRow]:
    """Takes the first rows that fit into a number of tokens."""
    used: list[TokenRow] = []
    total = 0
    for row in rows:
        total += len(row.ids)
        if used and total > tokens:
            break
        used.append(row)
    return used


@dataclass(frozen=True)
class _Summary:
    format: int
    rows: int
    tokens: int
    held_out_tokens: int


def _collect(model: WeightedGptOss, rows: Sequence[TokenRow], folder: Path) -> None:
    """Writes the inputs of every expert block; `DONE` last."""
    numbers = []
    for number, pack in enumerate(packs(rows, PACK_TOKENS)):
        _collect_pack(model, pack, number, folder)
        numbers.append(pack.numbers)
    held_out = torch.cat(numbers) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    with atomic_file(folder / "held_out.safetensors") as temporary:
        save_file({"held_out": held_out}, temporary)
    summary = _Summary(FORMAT, len(rows), len(held_out), int(held_out.sum()))
    write_json(folder / DONE, asdict(summary))


def _collect_pack(model: WeightedGptOss, pack: Pack, number: int, folder: Path) -> None:
    def hook_of(layer: int) -> Any:
        def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            hidden, indices = inputs[0].flatten(0, -2), inputs[1]
            tensors = {"inputs": hidden.to(torch.bfloat16), "indices": indices.to(torch.uint8)}
            with atomic_file(folder / f"layer-{layer:03d}-{number:03d}.safetensors") as temporary:
                save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)

        return keep

    blocks = [layer.get_submodule("mlp.experts") for layer in model.model.layers]
    hooks = [block.register_forward_pre_hook(hook_of(i)) for i, block in enumerate(blocks)]
    try:
        hidden_states(model, pack)
    finally:
        for hook in hooks:
            hook.remove()
