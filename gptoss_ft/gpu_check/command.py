"""Compares a GPU with the CPU on a tiny model: the command `gpu-check`.

The reference is the float32 path of the CPU, which the tests hold against stock transformers. The
device computes in its own dtype, so each figure comes with the error that this dtype allows.
Nothing here depends on the kind of device, so that on the CPU itself every line of it is tested.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.autograd import grad
from transformers import GptOssConfig

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.context import Context, Outcome
from gptoss_ft.data.collate import Collator
from gptoss_ft.documents import Documents, DocumentSpan
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.gpu_check.options import GpuCheckOptions
from gptoss_ft.model.attention.sinks import sink_attention
from gptoss_ft.model.experts.backends.base import ExpertBackend
from gptoss_ft.model.experts.backends.grouped import (
    GROUPED_CAPABILITY,
    GroupedBackend,
    LoopedBackend,
)
from gptoss_ft.model.experts.backends.tiled import TiledBackend
from gptoss_ft.model.experts.low_rank import low_rank_update
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.load import compute_dtype, load_model
from gptoss_ft.model.tiny import write_tiny
from gptoss_ft.model.tiny_options import TinyOptions
from gptoss_ft.mxfp4.codec import unpack

# Relative errors: of one operation, of what a whole model makes of many, and of a mean over tokens.
# In bfloat16 each is some three times or more of what its rounding alone makes of these figures.
ONE_OPERATION = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
WHOLE_MODEL = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
MEAN_LOSS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
LENGTH = 320  # more than two sliding windows
LEARNING_RATE = 1e-2
MIB = 2**20


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was compared or measured.
        found: the figure.
        allowed: the largest that passes; None for what is only shown.
    """

    name: str
    found: float
    allowed: float | None = None

    @property
    def passes(self) -> bool:
        """A figure that is not a number never passes."""
        if self.allowed is None:
            return math.isfinite(self.found)
        return self.found <= self.allowed

    def __str__(self) -> str:
        allowed = "" if self.allowed is None else f"{self.allowed:10.2g}"
        return f"{self.name:<52} {self.found:10.3g} {allowed:>10}  {'ok' if self.passes else 'NO'}"


def run(options: GpuCheckOptions, context: Context) -> Outcome:
    """Runs all checks and shows their table; exit code 1 if one of them fails.

    Raises:
        ConfigError: there is no such device.
        CheckpointError: the GPU has no bfloat16.
    """
    device = _device(options.device)
    dtype = compute_dtype(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    context.say(
        f"{name}, computing in {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"
    )
    context.say(f"{'':<52} {'found':>10} {'allowed':>10}")
    rows = []
    for row in _rows(device, options.seed):
        context.say(str(row))
        rows.append(row)
    failed = [row.name for row in rows if not row.passes]
    context.say(f"not passed: {', '.join(failed)}" if failed else f"all {len(rows)} passed")
    return Outcome(1 if failed else 0)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        mend = "use cuda, cuda:1, or cpu"
        raise ConfigError(Problem("not a torch device", "device", name, mend)) from error
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(Problem("not a device of this package", "device", name, "use cuda"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            Problem(
                "torch sees no such GPU",
                "device",
                f"{name}; {torch.cuda.device_count()} GPUs, torch {torch.__version__}",
                "run this where there is a GPU, with a torch that is built for it",
            )
        )
    return device


def _rows(device: torch.device, seed: int) -> Iterator[Check]:
    yield from unpacking(device, seed)
    for backend in _backends(device):
        yield from expert_block(device, backend, seed)
    for window in (None, 128):
        yield from attention(device, window, seed)
    with tempfile.TemporaryDirectory() as folder:
        # With every expert chosen, rounding cannot send a token to others than the reference does.
        sizes = TinyOptions(seed=seed, experts=4, experts_per_token=4)
        write_tiny(Path(folder) / "model", sizes)
        yield from whole_model(open_checkpoint(Path(folder) / "model"), device, seed)


def _backends(device: torch.device) -> list[type[ExpertBackend]]:
    """Returns the expert GEMM backends for GPUs that the device can run."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < GROUPED_CAPABILITY:
        return [LoopedBackend]
    return [LoopedBackend, GroupedBackend]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Computes the norm of the difference over that of `expected`, on the CPU in float32."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def unpacking(device: torch.device, seed: int) -> Iterator[Check]:
    """Compares every byte under every scale, bit for bit."""
    del seed  # nothing is random
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(255, 16, 16).contiguous()
    scales = torch.arange(255, dtype=torch.uint8)[:, None].expand(255, 16).contiguous()
    dtype = compute_dtype(device)
    found = unpack(blocks.to(device), scales.to(device), dtype).cpu()
    different = found.view(torch.uint8) != unpack(blocks, scales, dtype).view(torch.uint8)
    yield Check("unpacking: bytes that differ", float(different.sum()), 0.0)


def expert_block(device: torch.device, backend: type[ExpertBackend], seed: int) -> Iterator[Check]:
    """Compares output and gradients of one expert block with low-rank updates."""
    config = GptOssConfig(
        hidden_size=256, intermediate_size=256, num_local_experts=8, num_experts_per_tok=4
    )
    torch.manual_seed(seed)
    block = PackedExperts(config)
    for name, parameter in block.named_parameters():
        if parameter.dtype == torch.uint8:
            low, high = (117, 122) if name.endswith("scales") else (0, 256)
            parameter.data = torch.randint(low, high, parameter.shape).to(torch.uint8)
        else:
            parameter.data.normal_()
    shapes = [(8, 8, 256), (8, 512, 8), (8, 8, 256), (8, 256, 8)]
    leaves = [torch.randn(96, 256), torch.rand(96, 4), *(torch.randn(s) / 8 for s in shapes)]
    indices = torch.stack([torch.randperm(8)[:4] for _ in range(96)])
    direction = torch.randn(96, 256)

    def results(to: torch.device, kind: type[ExpertBackend]) -> list[torch.Tensor]:
        placed = deepcopy(block).to(to)
        placed.backend = lambda device: kind()
        dtype = compute_dtype(to)
        moved = [leaf.to(to, dtype).requires_grad_() for leaf in leaves[:2]]
        moved += [leaf.to(to).requires_grad_() for leaf in leaves[2:]]
        x, weights, *factors = moved
        updates = [(low_rank_update((factors[i], factors[i + 1], 0.5)),) for i in (0, 2)]
        output = placed(x, indices.to(to), weights, *updates)
        return [output, *grad(output, moved, direction.to(output))]

    pairs = zip(results(device, backend), results(_CPU, TiledBackend), strict=True)
    errors = [relative_error(found, expected) for found, expected in pairs]
    allowed = ONE_OPERATION[compute_dtype(device)]
    yield Check(f"experts, {backend.__name__}: output", errors[0], allowed)
    yield Check(f"experts, {backend.__name__}: worst gradient", max(errors[1:]), allowed)


def attention(device: torch.device, window: int | None, seed: int) -> Iterator[Check]:
    """Compares attention with sinks over documents and padding: output, gradients, and no leak.

    The second document begins with a prompt that the third one goes on from.
    """
    torch.manual_seed(seed)
    heads, kv_heads, width = 8, 2, 64
    row = slice(0, 1)
    answers = DocumentSpan(row, 150, 240), DocumentSpan(row, 240, 310, slice(150, 200))
    documents = Documents(1, LENGTH, (DocumentSpan(row, 0, 150), *answers))
    shapes = [(1, count, LENGTH, width) for count in (heads, kv_heads, kv_heads)]
    leaves = [*(torch.randn(shape) for shape in shapes), torch.randn(heads)]
    direction = torch.randn(shapes[0])
    dtype = compute_dtype(device)

    def results(to: torch.device, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        dtypes = [*[compute_dtype(to)] * 3, torch.float32]
        moved = [x.to(to, d).requires_grad_() for x, d in zip(inputs, dtypes, strict=True)]
        query, key, value, sinks = moved
        output = sink_attention(query, key, value, sinks, documents, width**-0.5, window)
        return [x.detach() for x in (output, *grad(output, moved, direction.to(output)))]

    rounded = [leaf.to(dtype).float() for leaf in leaves]
    ours = results(device, rounded)
    pairs = zip(ours, results(_CPU, rounded), strict=True)
    errors = [relative_error(found, expected) for found, expected in pairs]
    name = f"attention, {'full' if window is None else f'window {window}'}"
    yield Check(f"{name}: output", errors[0], ONE_OPERATION[dtype])
    yield Check(f"{name}: worst gradient", max(errors[1:]), ONE_OPERATION[dtype])
    neighbour = [torch.cat([-x[:, :, :150], x[:, :, 150:]], 2) for x in rounded[:3]]
    moved = results(device, [*neighbour, rounded[3]])[0]
    leak = float((moved - ours[0])[:, :, 150:].abs().max())
    yield Check(f"{name}: what a neighbour changes", leak, 0.0)


def whole_model(checkpoint: Checkpoint, device: torch.device, seed: int) -> Iterator[Check]:
    """Logits, loss, gradients, one optimizer step and memory of the tiny model with an adapter."""
    reference, model = _adapted(checkpoint, _CPU, seed), _adapted(checkpoint, device, seed)
    allowed = WHOLE_MODEL[compute_dtype(device)]
    batch = _batch(seed)
    on_device = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    error = relative_error(_logits(model, on_device), _logits(reference, batch))
    yield Check("logits", error, allowed)

    _reset_peak(device)
    output, expected = _step(model, on_device), _step(reference, batch)
    allowed_loss = MEAN_LOSS[compute_dtype(device)]
    yield Check("loss", relative_error(output["before"], expected["before"]), allowed_loss)
    for part in ("attention", "experts", "full tensors"):
        error = relative_error(output[part], expected[part])
        yield Check(f"gradient of {part}", error, allowed)
    error = relative_error(output["after"], expected["after"])
    yield Check("loss after a step of AdamW", error, allowed_loss)
    fall = float(output["after"].cpu() - output["before"].cpu())
    yield Check("what the step adds to the loss", fall, 0.0)
    if device.type == "cuda":
        layers = int(model.config.num_hidden_layers)
        # A layer's routing, and the batch's scored positions.
        yield Check("waits for the GPU in a step", float(_waits(model, on_device)), layers + 3.0)
    yield Check("peak memory of the step, MiB", _peak(device) / MIB)


_CPU = torch.device("cpu")


def _adapted(checkpoint: Checkpoint, device: torch.device, seed: int) -> AdaptedModel:
    """Loads the tiny model with the same random adapter of every kind on any device."""
    options = AdapterOptions(["attention", "experts", "lossless"], r=8)
    model = add_adapter(load_model(checkpoint, device), options, AdapterInfo((), "", ""))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if ".lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.05
                parameter.copy_(values)
    return model


def _batch(seed: int) -> dict[str, Any]:
    """Collates two rows of two documents, one with padding; half of the tokens are trained."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for documents in ([200, LENGTH - 200], [90, 200]):
        ids = torch.randint(0, 199_000, (sum(documents),), generator=generator).tolist()
        weights = (torch.rand(len(ids), generator=generator) < 0.5).float().tolist()
        row = {"input_ids": ids, "labels": ids, "loss_weights": weights, "documents": documents}
        rows.append(row)
    return Collator()(rows)


@torch.no_grad()
def _logits(model: AdaptedModel, batch: dict[str, Any]) -> torch.Tensor:
    """Returns logits of every eighth token outside the padding."""
    names = ("input_ids", "position_ids", "documents")
    tokens = batch["attention_mask"].bool()
    kept = torch.arange(0, LENGTH, 8, device=tokens.device)
    logits: torch.Tensor = model(**{n: batch[n] for n in names}, logits_to_keep=kept).logits
    return logits[tokens[:, kept]]


def _step(model: AdaptedModel, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Returns loss before and after a step, and each part's gradients as one vector."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE)

    def mean() -> torch.Tensor:
        output = model(**batch, use_cache=False)
        loss: torch.Tensor = output.loss / output.weight
        return loss

    before = mean()
    before.backward()
    parts: dict[str, list[torch.Tensor]] = {"attention": [], "experts": [], "full tensors": []}
    for name, parameter in sorted(trained.items()):
        lora = "experts" if ".experts." in name else "attention"
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts[lora if ".lora_" in name else "full tensors"].append(gradient.flatten())
    gradients = {part: torch.cat(found) for part, found in parts.items()}
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        after = mean()
    return {"before": before.detach(), "after": after, **gradients}


def _waits(model: AdaptedModel, batch: dict[str, Any]) -> int:
    """Counts the host's waits for the GPU in a forward and backward, as torch reports them."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        model(**batch, use_cache=False).loss.backward()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """Measures bytes: the peak of a GPU, or what the whole process holds now on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)
