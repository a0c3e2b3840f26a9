"""Writes a planned merge, one tensor or one expert at a time, straight into safetensors files.

Format (safetensors): 8 bytes little-endian header length, a JSON header padded with spaces to a
multiple of 8, then the bytes of all tensors without gaps. All of the header follows from the plan.

Arithmetic: base and update in float32, one rounding to bfloat16. Where an update is exactly zero,
the base value is kept bit for bit, negative zeros included.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import gptoss_ft
from gptoss_ft.adapters.files import LoraFactors, read_tensor
from gptoss_ft.errors import MergeError, Problem
from gptoss_ft.export.transformers import checkpoint_config, copy_companion_files
from gptoss_ft.files import sha256_file, whole_folder, write_json
from gptoss_ft.merge.plan import Action, MergePlan, PlannedShard, PlannedTensor
from gptoss_ft.model.checkpoint import DTYPES, INDEX_NAME, TensorInfo
from gptoss_ft.mxfp4.codec import NAN_SCALE, unpack

MANIFEST_NAME = "manifest.json"
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MergeResult:
    """What was written.

    Attributes:
        out: the checkpoint folder.
        nbytes: bytes of its tensors.
        seconds: wall time.
    """

    out: Path
    nbytes: int
    seconds: float


def merge(plan: MergePlan) -> MergeResult:
    """Writes the merged checkpoint; nothing is at `out` before all of it is there.

    Memory does not grow with the depth of the model: 64 MiB of a plain tensor, or one expert, is
    held at a time, with its update and the two factors of a layer.

    Raises:
        MergeError: the base holds a NaN scale where its experts are dequantised.
    """
    start = time.perf_counter()
    out = Path(plan.options.out)
    with whole_folder(out) as folder, _progress(plan.nbytes) as progress:
        for shard in plan.shards:
            _write_shard(folder / shard.file, shard, progress)
        _write_index(folder, plan)
        copy_companion_files(plan.checkpoint.path, folder)
        packed = plan.options.to == "mxfp4"
        write_json(folder / "config.json", checkpoint_config(plan.checkpoint.config, packed))
        write_json(folder / MANIFEST_NAME, _manifest(plan))
    return MergeResult(out, plan.nbytes, time.perf_counter() - start)


def _progress(total: int) -> tqdm:
    """Bytes written, rate and remaining time on stderr, if that is a terminal."""
    return tqdm(total=total, desc="merge", unit="B", unit_scale=True, disable=None)


def _write_shard(file: Path, shard: PlannedShard, progress: tqdm) -> None:
    with file.open("wb") as stream:
        stream.write(_header(shard))
        for tensor in shard.tensors:
            written = 0
            for part in _parts(tensor):
                data = part.contiguous().flatten().view(torch.uint8).numpy()
                written += stream.write(data.data)
                progress.update(data.nbytes)
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: wrote {written} of {tensor.nbytes} bytes")


def _header(shard: PlannedShard) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard.tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parts(tensor: PlannedTensor) -> Iterator[torch.Tensor]:
    """The values of an output tensor, in order and in its dtype, a bounded part at a time."""
    if tensor.action is Action.COPY:
        return _rows(tensor.base[0])
    if tensor.action is Action.REPLACE and tensor.trained is not None:
        return iter([read_tensor(tensor.trained).to(torch.bfloat16)])
    if tensor.update is not None and not tensor.update.is_experts:
        return _added_rows(tensor.base[0], tensor.update)
    return _experts(tensor)


def _rows(info: TensorInfo) -> Iterator[torch.Tensor]:
    """A stored tensor, as many rows at a time as fit in `CHUNK_BYTES` of float32, at least one."""
    count = info.shape[0]
    step = max(1, CHUNK_BYTES // (4 * math.prod(info.shape[1:])))
    for start in range(0, count, step):
        yield _read_rows(info, start, min(start + step, count))


def _read_rows(info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    """Rows `start:stop` of a tensor, read and not mapped, so that memory stays bounded."""
    row_bytes = info.nbytes // info.shape[0]
    buffer = bytearray((stop - start) * row_bytes)
    with info.file.open("rb") as stream:
        stream.seek(info.offset + start * row_bytes)
        if stream.readinto(buffer) != len(buffer):
            raise MergeError(
                Problem("a shard of the base ended early", f"{info.file}", mend="copy it again")
            )
    return torch.frombuffer(buffer, dtype=DTYPES[info.dtype]).view(stop - start, *info.shape[1:])


def _added_rows(info: TensorInfo, update: LoraFactors) -> Iterator[torch.Tensor]:
    """A plain matrix `[out, in]` plus its update."""
    A, B = update.read()
    start = 0
    for base in _rows(info):
        stop = start + base.shape[0]
        yield add_low_rank(base.float(), A, B[start:stop], update.scaling).to(torch.bfloat16)
        start = stop


def _experts(tensor: PlannedTensor) -> Iterator[torch.Tensor]:
    """Experts one by one as bfloat16 `[1, in, out]`, from packed or dense ones, updated or not."""
    A, B = tensor.update.read() if tensor.update else (None, None)
    for expert in range(tensor.shape[0]):
        weight = _expert(tensor.base, expert)
        if tensor.update is not None and A is not None and B is not None:
            weight = add_low_rank(weight, A[expert], B[expert], tensor.update.scaling)
        yield weight.to(torch.bfloat16).T.unsqueeze(0)


def _expert(base: tuple[TensorInfo, ...], expert: int) -> torch.Tensor:
    """One expert's matrix, float32 `[out, in]`."""
    first = _read_rows(base[0], expert, expert + 1)[0]
    if len(base) == 1:
        return first.float().T
    scales = _read_rows(base[1], expert, expert + 1)[0]
    if (scales == NAN_SCALE).any():
        raise MergeError(
            Problem(
                "the base holds NaN scales",
                base[1].name,
                f"scale byte {NAN_SCALE} in expert {expert}",
                "copy or download the base again",
            )
        )
    return unpack(first, scales)


def add_low_rank(
    base: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float
) -> torch.Tensor:
    """`base + scaling * (B @ A)` in float32, the base itself where the update is exactly zero.

    Args:
        base: float32 `[out, in]`.
        A: float32 `[r, in]`.
        B: float32 `[out, r]`.
        scaling: factor of the update.
    """
    delta = (B @ A).mul_(scaling)
    return torch.where(delta == 0, base, base + delta)


def _write_index(folder: Path, plan: MergePlan) -> None:
    weight_map = {tensor.name: shard.file for shard in plan.shards for tensor in shard.tensors}
    metadata = {"total_size": plan.nbytes}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX_NAME, index)


def _manifest(plan: MergePlan) -> dict[str, object]:
    """Where the checkpoint comes from: enough to tell whether two merges had the same sources."""
    return {
        "format": 1,
        "tool": f"gptoss-ft {gptoss_ft.__version__}",
        "to": plan.options.to,
        "base": plan.options.base,
        "base_fingerprint": plan.base_fingerprint,
        "adapter": plan.options.adapter,
        "adapter_sha256": {file.name: sha256_file(file) for file in plan.adapter.files},
        "adapter_kinds": list(plan.adapter.kinds),
        "actions": plan.totals(),
        "bytes": plan.nbytes,
        "shards": [shard.file for shard in plan.shards],
    }
