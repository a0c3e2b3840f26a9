"""Checkpoints of any size with synthetic weights in the released layout, streamed to disk.

Tensor by tensor and a piece at a time, so that memory stays flat and the disk is the limit. The
bytes of the experts are uniformly random, the rest is uniform noise around zero.

Routing is forced by the scales of the weights: what attention and experts add to the residual
stream is small (`RESIDUAL_STD` of the embedding), routers are random without bias. Each token is
then routed by its own random embedding in every layer, which spreads the pairs over all experts.
Random deep networks otherwise collapse to a few of them and cost a third of a real step.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_ft.checkpoint.headers import INDEX_NAME
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.files import write_json
from gptoss_ft.harmony.vocabulary import write_tokenizer_files
from gptoss_ft.model.tiny import TinyOptions, tiny_config
from gptoss_ft.mxfp4.codec import FP4_VALUES, SCALE_BIAS

PIECE_BYTES = 64 << 20
RESIDUAL_STD = 1 / 16
FP4_STD = math.sqrt(sum(value**2 for value in FP4_VALUES) / len(FP4_VALUES))
# The released models: layers and experts; everything else is the same in both.
SHAPES = {"gpt_oss_20b": (24, 32), "gpt_oss_120b": (36, 128)}
Shapes = Mapping[str, tuple[int, ...]]


def released_config(model: str, layers: int) -> dict[str, Any]:
    """config.json of a released model cut to its first layers."""
    sizes = TinyOptions(
        layers=layers,
        hidden_size=2880,
        intermediate_size=2880,
        heads=64,
        kv_heads=8,
        experts=SHAPES[model][1],
    )
    return tiny_config(sizes)


def write_synthetic(folder: Path, config: dict[str, Any]) -> None:
    """Writes config, tokenizer, one shard per layer and one for the rest into an existing folder.

    Every file is flushed, so that its pages may be evicted; see `drop_from_cache`.

    Raises:
        SystemExit: the disk has no room for it.
    """
    shards = _shards(config)
    needed = sum(
        _nbytes(name, shape) for shapes in shards.values() for name, shape in shapes.items()
    )
    free = shutil.disk_usage(folder).free
    if free < 1.02 * needed:
        raise SystemExit(
            f"{needed / 1e9:.1f} GB are needed where temporary files go and {free / 1e9:.1f} are "
            "free; set TMPDIR to a larger disk"
        )
    write_json(folder / "config.json", config)
    write_tokenizer_files(folder)
    random = np.random.Generator(np.random.SFC64(0))
    for file, shapes in shards.items():
        write_shard(folder / file, shapes, random)
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    write_json(folder / INDEX_NAME, index)


def _shards(config: dict[str, Any]) -> dict[str, Shapes]:
    """Names and shapes of the tensors of every file."""
    count = config["num_hidden_layers"] + 1
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(config, packed=True).items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else count - 1
        file = f"model-{layer:05d}-of-{count:05d}.safetensors"
        shards.setdefault(file, {})[name] = shape
    return dict(shards)


def _is_packed(name: str) -> bool:
    return name.endswith(("_blocks", "_scales"))


def _nbytes(name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * (1 if _is_packed(name) else 2)


def write_shard(file: Path, shapes: Shapes, random: np.random.Generator) -> None:
    """One safetensors file, its header first."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _nbytes(name, shape)
        dtype = "U8" if _is_packed(name) else "BF16"
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in pieces(name, shape, random):
                stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())


def drop_from_cache(folder: Path) -> None:
    """Takes the weights out of the file cache, where nobody has them mapped."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pieces(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[bytes]:
    """The bytes of a tensor, `PIECE_BYTES` at a time."""
    left = math.prod(shape)
    at_once = PIECE_BYTES // (1 if _is_packed(name) else 2)
    while left:
        count = min(left, at_once)
        yield _values(name, shape, count, random)
        left -= count


def _values(name: str, shape: tuple[int, ...], count: int, random: np.random.Generator) -> bytes:
    if name.endswith("_blocks"):
        return random.bytes(count)
    if name.endswith("_scales"):
        width = shape[-1] * 32
        exponent = round(math.log2(_std(name, width) / FP4_STD))
        return bytes([SCALE_BIAS + exponent]) * count
    if name.endswith("norm.weight"):
        return _bf16(torch.ones(count))
    if len(shape) == 1 or name.endswith("_bias"):
        return bytes(2 * count)  # biases and sinks
    # A random byte as a number from -1 to 1 has the standard deviation 1 / sqrt(3).
    noise = torch.frombuffer(bytearray(random.bytes(count)), dtype=torch.int8)
    return _bf16(noise.float().mul_(_std(name, shape[-1]) * math.sqrt(3) / 128))


def _std(name: str, width: int) -> float:
    """Standard deviation of a matrix's entries, `width` being its input's."""
    if name == "model.embed_tokens.weight":
        return 1.0
    adds_to_residual = ".o_proj." in name or ".down_proj" in name
    return (RESIDUAL_STD if adds_to_residual else 1.0) / math.sqrt(width)


def _bf16(values: torch.Tensor) -> bytes:
    return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
