"""Settings of an export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptoss_ft.errors import Problem
from gptoss_ft.validation import (
    choice_field,
    dotted,
    field_problems,
    path_field,
    text_field,
    unknown_choice,
)

# What each target can hold, its default first.
TARGETS = {
    "openai": ("mxfp4",),
    "gguf": ("mxfp4", "f32", "bf16", "f16"),
    "gguf-lora": ("f32", "f16"),
    "ollama": ("mxfp4", "f32", "bf16", "f16"),
    "lmstudio": ("mxfp4", "f32", "bf16", "f16"),
    "vllm": ("mxfp4", "bf16"),
    "onnx": ("fp32", "int8"),
}
# Targets that are one file; its serving instructions stand beside it.
FILE_TARGETS = {"gguf": ".gguf", "gguf-lora": ".gguf"}


@dataclass
class ExportOptions:
    """Checkpoint, perhaps an adapter, target, and place.

    Attributes:
        model: folder of the checkpoint, in the Hugging Face layout.
        adapter: folder of an adapter on it, for the targets that carry one.
        out: folder to write, or file for `gguf` and `gguf-lora`; must not exist or be an empty
            folder. For `lmstudio` the models folder of LM Studio.
        to: one of `TARGETS`.
        dtype: what the weights are written as, of those that the target can hold; empty: its
            default.
        name: the model's name, for `lmstudio` and `ollama`; empty: the name of its folder.
        publisher: the folder above the model in LM Studio.
        dry_run: show the plan only.
    """

    model: str = path_field()
    adapter: str = path_field()
    out: str = path_field()
    to: str = choice_field("", TARGETS, "unknown target")
    dtype: str = ""
    name: str = text_field()
    publisher: str = text_field("gptoss-ft")
    dry_run: bool = False

    @property
    def written_dtype(self) -> str:
        """The dtype asked for, or the target's default."""
        return self.dtype or TARGETS[self.to][0]

    @property
    def model_name(self) -> str:
        """The name asked for, or that of the model's folder."""
        return self.name or Path(self.model).resolve().name

    @property
    def place(self) -> Path:
        """The file or folder that the export creates."""
        out = Path(self.out)
        return out / self.publisher / self.model_name if self.to == "lmstudio" else out

    @property
    def is_file(self) -> bool:
        """True if the target is one file."""
        return self.to in FILE_TARGETS

    @property
    def serve_file(self) -> Path:
        """Path of the serving instructions of a single-file target."""
        return self.place.with_name(f"{self.place.stem}.serve.md")

    def problems(self, key: str = "") -> list[Problem]:
        """Finds everything wrong with the values themselves, without looking at the disk."""
        return [
            *self._path_problems(key),
            *field_problems(self, key),
            *self._target_problems(key),
        ]

    def _path_problems(self, key: str) -> Iterator[Problem]:
        where = dotted(key, "out")
        if not self.model:
            yield Problem("must name a folder", dotted(key, "model"), mend="say model=DIR")
        if not self.out:
            yield Problem("must name what to write", where, mend="say out=PATH")
        suffix = FILE_TARGETS.get(self.to)
        if self.out and suffix and Path(self.out).suffix != suffix:
            mend = f"say out={Path(self.out).with_suffix(suffix)}"
            yield Problem(f"to={self.to} writes one {suffix} file", where, self.out, mend)
        for field in ("name", "publisher"):
            value = getattr(self, field)
            if "/" in value or value in (".", ".."):
                yield Problem("must be one name, without slashes", dotted(key, field), value)

    def _target_problems(self, key: str) -> Iterator[Problem]:
        known = TARGETS.get(self.to)
        if self.dtype and known and self.dtype not in known:
            what = f"to={self.to} cannot hold this"
            yield unknown_choice(what, dotted(key, "dtype"), self.dtype, known)
        if self.to == "lmstudio" and not self.publisher:
            mend = "say publisher=NAME: LM Studio looks for models in publisher/model"
            yield Problem("must be a name", dotted(key, "publisher"), mend=mend)
