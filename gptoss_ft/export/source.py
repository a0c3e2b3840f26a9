"""The source of an export: a checkpoint folder, opened and checked once for every target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import ADAPTER_CONFIG, Adapter, open_adapter
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.errors import GptOssFtError, Problem
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.harmony.vocabulary import load_vocabulary

# A merge with experts=adapter leaves what was trained in the experts in this folder of its output.
EXPERT_ADAPTER = "expert_adapter"


@dataclass(frozen=True)
class Source:
    """A checkpoint and perhaps an adapter that fits it.

    Attributes:
        checkpoint: every tensor's header, and config.json.
        adapter: the adapter on it, or None.
        expert_adapter: the folder in the checkpoint's that holds the experts' part of its
            fine-tune, or None; without it the checkpoint is only a part of what was trained.
    """

    checkpoint: Checkpoint = field(repr=False)
    adapter: Adapter | None = field(repr=False)
    expert_adapter: Path | None

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.checkpoint.path

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the checkpoint."""
        return self.checkpoint.config

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary settings with `rope_theta`, from the current or the legacy keys."""
        scaling = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        theta = scaling.get("rope_theta", self.config.get("rope_theta"))
        return {**scaling, "rope_theta": theta}


def open_source(options: ExportOptions) -> tuple[Source | None, list[Problem]]:
    """Opens what the options name; the source is None when the checkpoint itself is unsound.

    Returns:
        the source, and what is wrong with the checkpoint, the adapter and their fit.
    """
    problems: list[Problem] = []
    checkpoint, adapter = None, None
    if options.model:
        try:
            checkpoint = open_checkpoint(Path(options.model))
        except GptOssFtError as error:
            problems += error.problems
    if options.adapter:
        try:
            adapter = open_adapter(Path(options.adapter))
            if checkpoint is not None:
                check_adapter(adapter, checkpoint)
        except GptOssFtError as error:
            problems += error.problems
    if checkpoint is None:
        return None, problems
    beside = checkpoint.path / EXPERT_ADAPTER
    found = beside if (beside / ADAPTER_CONFIG).is_file() else None
    return Source(checkpoint, adapter, found), problems


def tokenizer_problems(source: Source) -> list[Problem]:
    """Checks that the checkpoint's tokenizer is Harmony's, which the runtimes take for granted."""
    try:
        vocabulary = load_vocabulary(source.folder)
    except GptOssFtError as error:
        return list(error.problems)
    if vocabulary.identity.startswith("o200k_harmony:"):
        return []
    return [
        Problem(
            "this tokenizer is not Harmony's, and the runtime would encode text otherwise",
            str(source.folder / "tokenizer.json"),
            vocabulary.identity,
            "copy tokenizer.json from the released gpt-oss; a model with a vocabulary of its own "
            "is served by transformers from the folder as it is",
        )
    ]


def no_adapter_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    """Refuses an adapter, given or left beside the checkpoint, for targets that carry none."""
    if source.adapter is not None:
        yield Problem(
            f"to={options.to} carries no adapter",
            f"adapter={options.adapter}",
            mend=f"merge it first: gptoss-ft merge base={options.model} adapter={options.adapter} "
            "out=DIR, and export DIR; or keep it apart with to=vllm or to=ollama",
        )
    yield from left_out_problems(source, options)


def left_out_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    """Checks whether the experts' part of the fine-tune lies beside the checkpoint and would be
    lost.
    """
    beside = source.expert_adapter
    if beside is None or (source.adapter and source.adapter.path.resolve() == beside.resolve()):
        return
    yield Problem(
        f"to={options.to} would leave out what was trained in the experts",
        f"model={options.model}",
        f"{beside} holds it",
        f"export it beside the checkpoint: to=vllm adapter={beside}, or to=ollama "
        f"adapter={beside} (two GGUF files, also for llama.cpp); or merge again with to=mxfp4 "
        "experts=gptq, which rounds it into the weights, or with to=bf16",
    )


def packed_problems(source: Source, options: ExportOptions, mend: str = "") -> Iterator[Problem]:
    """Refuses a dense checkpoint for targets that hold MXFP4 experts."""
    if not source.checkpoint.is_packed:
        yield Problem(
            f"to={options.to} dtype={options.written_dtype} needs MXFP4 experts",
            f"model={options.model}",
            "dense experts (a bf16 checkpoint)",
            mend or "merge with to=mxfp4 and export that folder",
        )


def alternating_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    """Checks the layer types for runtimes whose code puts sliding attention in layers 0, 2, 4 and
    so on.
    """
    layers = range(source.config["num_hidden_layers"])
    wanted = ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
    found = source.config.get("layer_types", wanted)
    if found != wanted:
        yield Problem(
            f"the runtime of to={options.to} alternates sliding and full attention, sliding first",
            f"{source.folder / 'config.json'}: layer_types",
            ", ".join(found),
            "serve this architecture with transformers, from the folder as it is",
        )
