"""The contents of a checkpoint folder: config.json and safetensors headers, checked.

Only headers are read, never whole tensors, so it is cheap on a 120b checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.errors import CheckpointError, Problem

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    Attributes:
        name: name in the checkpoint.
        file: the safetensors file that holds it.
        dtype: safetensors' name of the dtype, such as `BF16` or `U8`.
        shape: as stored.
        offset: where its bytes begin, counted from the start of the file.
        nbytes: number of bytes.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A gpt-oss checkpoint folder: parsed config.json and every tensor's header.

    Attributes:
        path: the folder.
        config: config.json as a dictionary.
        tensors: header of every tensor, in the order of the files and of the offsets within them.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(repr=False)

    @property
    def is_packed(self) -> bool:
        """True if the experts are MXFP4 blocks and scales rather than dense matrices."""
        return any(name.endswith("_blocks") for name in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def active_experts(self) -> int:
        """Experts that a token is routed to, under either name that config.json has for it."""
        return int(self.config.get("num_experts_per_tok") or self.config["experts_per_token"])

    def require_packed(self) -> Checkpoint:
        """Returns this checkpoint, or refuses it when its experts are dense.

        Raises:
            CheckpointError: training needs the MXFP4 weights.
        """
        if not self.is_packed:
            raise CheckpointError(
                Problem(
                    "the experts of this checkpoint are dense, and training keeps them packed",
                    str(self.path),
                    "no *_blocks and *_scales tensors",
                    "train on the MXFP4 checkpoint as released, or on a merge with to=mxfp4",
                )
            )
        return self

    def read(self, name: str) -> torch.Tensor:
        """Reads one tensor, memory-mapped where safetensors allows it."""
        with safe_open(self.tensors[name].file, framework="pt") as file:
            return file.get_tensor(name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads config.json and all headers and checks them against the gpt-oss architecture.

    Raises:
        CheckpointError: with every missing file, missing or unexpected tensor and wrong shape or
            dtype.
    """
    config = read_config(path)
    files = _shard_files(path)
    tensors: dict[str, TensorInfo] = {}
    problems: list[Problem] = []
    for file in files:
        try:
            tensors.update({info.name: info for info in read_header(file)})
        except (SafetensorError, OSError, ValueError) as error:
            problems.append(
                Problem(
                    "this shard is not a whole safetensors file",
                    str(file),
                    f"{error}; {_damaged(file)}",
                    "copy or download it again",
                )
            )
    if problems:
        raise CheckpointError(problems)
    checkpoint = Checkpoint(path, config, tensors)
    problems = list(_layout_problems(checkpoint))
    if problems:
        raise CheckpointError(problems)
    return checkpoint


def _damaged(file: Path) -> str:
    """Names the tensors that a broken shard lost: those beyond its end, or all that the index puts
    there.
    """
    index = file.parent / INDEX_NAME
    names = []
    if index.is_file():
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(name for name, place in places.items() if place == file.name)
    try:
        header, start = _raw_header(file)
        size = file.stat().st_size
        ends = {name: start + entry["data_offsets"][1] for name, entry in header.items()}
        names = [name for name, end in ends.items() if end > size] or names
    except (OSError, ValueError, TypeError, KeyError):
        pass  # nothing to be read of the header: the index has to do
    if not names:
        return "it names no tensor"
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"it should hold {names[0]}{rest}"


def _raw_header(file: Path) -> tuple[dict[str, Any], int]:
    """Reads the JSON header of a safetensors file without `__metadata__`, and the offset of its
    tensors.

    Raises:
        ValueError: this is no such header.
    """
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(header_size, file.stat().st_size)))
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    header.pop("__metadata__", None)
    return header, 8 + header_size


def read_config(path: Path) -> dict[str, Any]:
    """Reads config.json of a gpt-oss checkpoint.

    Raises:
        CheckpointError: when the folder or the file is missing, broken, or of another architecture.
    """
    file = path / "config.json"
    if not path.is_dir():
        raise CheckpointError(
            Problem(
                "there is no model folder here",
                str(path),
                mend="give the folder that holds config.json and the *.safetensors files, "
                "or a model id with hub=true",
            )
        )
    if not file.is_file():
        raise CheckpointError(
            Problem(
                "config.json is missing", str(path), mend="copy it from the original checkpoint"
            )
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            Problem("config.json is not valid JSON", str(file), str(error))
        ) from error
    if config.get("model_type") != "gpt_oss":
        raise CheckpointError(
            Problem(
                "this is not a gpt-oss checkpoint",
                f"{file}: model_type",
                repr(config.get("model_type")),
                "use gpt-oss-20b, gpt-oss-120b or a checkpoint derived from them",
            )
        )
    return config


def _shard_files(path: Path) -> list[Path]:
    index = path / INDEX_NAME
    if not index.is_file():
        if (path / SINGLE_NAME).is_file():
            return [path / SINGLE_NAME]
        raise CheckpointError(
            Problem(
                f"neither {INDEX_NAME} nor {SINGLE_NAME} is here",
                str(path),
                mend="give a folder in the Hugging Face layout, not its `original/` subfolder",
            )
        )
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [
        Problem(
            "a shard named in the index is missing",
            str(path / name),
            mend="copy or download it again",
        )
        for name in names
        if not (path / name).is_file()
    ]
    if missing:
        raise CheckpointError(missing)
    return [path / name for name in names]


def read_header(file: Path) -> list[TensorInfo]:
    """Reads the header of one safetensors file, in the order of the offsets.

    Raises:
        ValueError, SafetensorError: when the file is shorter than its header says.
    """
    with safe_open(file, framework="pt"):
        pass  # safetensors validates offsets and length more strictly than needed below
    header, start = _raw_header(file)
    infos = [
        TensorInfo(
            name,
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    ]
    return sorted(infos, key=lambda info: info.offset)


def _layout_problems(checkpoint: Checkpoint) -> Iterator[Problem]:
    expected = expected_shapes(checkpoint.config, checkpoint.is_packed)
    for name, shape in expected.items():
        info = checkpoint.tensors.get(name)
        if info is None:
            yield Problem(
                "a tensor is missing", name, mend=f"complete the checkpoint in {checkpoint.path}"
            )
        elif info.shape != shape:
            yield Problem(
                "a tensor has the wrong shape",
                name,
                f"{list(info.shape)} in {info.file.name}, where config.json says {list(shape)}",
                "use config.json and weights of the same checkpoint",
            )
        elif (info.dtype == "U8") != name.endswith(("_blocks", "_scales")):
            yield Problem(
                "a tensor has the wrong dtype",
                name,
                f"{info.dtype} in {info.file.name}",
                "MXFP4 blocks and scales are U8, everything else is floating point",
            )
    for name in checkpoint.tensors.keys() - expected.keys():
        yield Problem(
            "a tensor does not belong to gpt-oss", name, mend="remove it from the checkpoint"
        )
