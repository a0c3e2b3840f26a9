"""`to=gguf-lora`: an adapter as llama.cpp's `--lora` and Ollama's `ADAPTER` read it.

Every adapted tensor has `<name>.lora_a` `[r, in]` and `<name>.lora_b` `[out, r]`, those of experts
with a leading dimension `[E, …]`. llama.cpp adds `alpha / r * B @ A`, with one alpha for the whole
file (`src/llama-adapter.cpp` and `src/llama-graph.cpp`).
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from gptoss_ft.adapters.files import Adapter, LoraHeaders
from gptoss_ft.errors import Problem
from gptoss_ft.export.gguf import EXPERTS, LAYER, OUTSIDE
from gptoss_ft.export.gguf_file import GgufTensor, data_bytes, package_problems, write_gguf
from gptoss_ft.export.gguf_metadata import architecture_problems
from gptoss_ft.export.gguf_values import EVERY, converted
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import Source

if TYPE_CHECKING:
    from gguf import GGUFWriter

HEADER_BYTES = 1 << 16


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds a missing adapter, and trained tensors that a GGUF adapter has no place for."""
    found = [*package_problems(), *architecture_problems(source)]
    if source.adapter is None:
        if not options.adapter:
            mend = "say adapter=DIR; a model without one is exported with to=gguf"
            found.append(Problem(f"to={options.to} needs an adapter", "adapter", mend=mend))
        return found
    return [*found, *adapter_problems(source, source.adapter, options)]


def adapter_problems(source: Source, adapter: Adapter, options: ExportOptions) -> Iterator[Problem]:
    """Finds trained tensors that a GGUF adapter has no place for."""
    merge = (
        f"merge it first: gptoss-ft merge base={options.model} adapter={options.adapter} out=DIR "
    )
    if adapter.trained:
        names = sorted(adapter.trained)
        apart = any(update.is_experts for update in adapter.updates.values())
        route = (
            "experts=adapter, then export model=DIR adapter=DIR/expert_adapter to=ollama: base and "
            "adapter as GGUF files, for llama.cpp too"
            if apart
            else "to=mxfp4, then export DIR with to=gguf"
        )
        yield Problem(
            "a GGUF adapter holds LoRA only, and this one also trains whole tensors",
            str(adapter.path),
            f"{len(names)} of them, such as {names[0]}",
            merge + route,
        )
    known = _names(source)
    for stem, update in adapter.updates.items():
        if stem not in known:
            yield Problem(
                "llama.cpp's gpt-oss has no tensor for this update",
                update.A.name,
                mend=merge + "to=mxfp4, then export DIR with to=gguf",
            )


def size(source: Source, options: ExportOptions) -> int:
    """Returns the bytes of the tensors plus an upper bound for the metadata."""
    return data_bytes(layout(source, factor_type(options))) + HEADER_BYTES


def factor_type(options: ExportOptions) -> str:
    """Returns the GGML type of the factors: float32 unless a half-precision type was asked for."""
    return "F16" if options.to == "gguf-lora" and options.written_dtype == "f16" else "F32"


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Writes the source's adapter as the file `out`, a factor at a time."""

    def describe(writer: GGUFWriter) -> None:
        from gguf import GGUFType, Keys

        writer.add_type(GGUFType.ADAPTER)
        writer.add_name(f"{options.model_name} adapter")
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, common_alpha(_adapter(source)))

    write_gguf(out, describe, layout(source, factor_type(options)), progress)


def layout(source: Source, type: str) -> list[GgufTensor]:
    """Returns every tensor of the file in file order, factors in the given GGML type."""
    adapter, names = _adapter(source), _names(source)
    alpha = common_alpha(adapter)
    return [
        tensor
        for stem, update in adapter.updates.items()
        for name, rows in names[stem]
        for tensor in _pair(update, name, rows, type, _alpha(update) / alpha)
    ]


def common_alpha(adapter: Adapter) -> float:
    """Returns the alpha of most updates with rsLoRA's square root folded in; the B of the others is
    scaled to it.

    Never 0, which llama.cpp takes for a missing one.
    """
    alphas = Counter(filter(None, map(_alpha, adapter.updates.values())))
    return alphas.most_common(1)[0][0] if alphas else 1.0


def _alpha(update: LoraHeaders) -> float:
    """Returns alpha as llama.cpp uses it, which divides by the rank."""
    return update.scaling * update.rank


def _adapter(source: Source) -> Adapter:
    if source.adapter is None:
        raise ValueError("no adapter; see `problems`")
    return source.adapter


def _names(source: Source) -> dict[str, list[tuple[str, slice]]]:
    """Maps each stem of the base to the GGUF tensors it became, and to the outputs that each one
    holds.
    """
    found = {stored.removesuffix(".weight"): [(name, EVERY)] for name, stored in OUTSIDE.items()}
    del found["model.embed_tokens"], found["model.norm"]  # no matrices of a linear layer
    for layer in range(source.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, stored in LAYER.items():
            if stored.endswith(("_proj.weight", "router.weight")):
                stem = prefix + stored.removesuffix(".weight")
                found[stem] = [(f"blk.{layer}.{name}", EVERY)]
        for name, (projection, rows) in EXPERTS.items():
            stem = f"{prefix}mlp.experts.{projection}"
            found.setdefault(stem, []).append((f"blk.{layer}.{name}.weight", rows))
    return found


def _pair(
    update: LoraHeaders, name: str, rows: slice, type: str, factor: float
) -> Iterator[GgufTensor]:
    (joined, width), out = update.A.shape, update.B.shape[0]
    experts = (joined // update.rank,) if update.is_experts else ()
    outputs = len(range(out)[rows])

    def values(which: str) -> Iterator[torch.Tensor]:
        A, B = update.read()
        chosen = A if which == "a" else B[..., rows, :] * factor
        yield converted(chosen.contiguous(), type, getattr(update, which.upper()).name)

    shapes = {"a": (*experts, update.rank, width), "b": (*experts, outputs, update.rank)}
    for which, shape in shapes.items():
        yield GgufTensor(f"{name}.lora_{which}", type, shape, partial(values, which))


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to serve the file with llama.cpp."""
    place = shlex.quote(str(options.place.absolute()))
    model = shlex.quote(options.model)
    command, file = f"gptoss-ft export model={model} out=BASE.gguf to=gguf", "BASE.gguf"
    if source.expert_adapter is not None:  # then to=gguf would leave something out, and refuses
        adapter = shlex.quote(options.adapter)
        command = f"gptoss-ft export model={model} adapter={adapter} out=BASE to=ollama"
        file = "BASE/model.gguf"
    return f"""# Serving this adapter with llama.cpp

It belongs to the model in `{options.model}`, which is exported once, for all its adapters:

```sh
{command}
llama-server --model {file} --lora {place} --jinja --ctx-size 16384
```

Attention and experts are in it; nothing was rounded. Give `--lora` once per adapter, and
`--lora-scaled FILE:SCALE` to weigh one.

For Ollama, `gptoss-ft export to=ollama adapter=…` writes base, adapter and Modelfile together.
"""
