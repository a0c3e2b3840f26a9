"""`to=gguf`: one file for llama.cpp, Ollama and LM Studio.

Experts stay in MXFP4, re-ordered but unchanged bit for bit, or are written in the floating-point
type that is asked for, like all other matrices. One-dimensional tensors, biases, sinks and routers
are float32, as llama.cpp wants them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from gptoss_ft.errors import Problem
from gptoss_ft.export.gguf_file import GgufTensor, data_bytes, package_problems, write_gguf
from gptoss_ft.export.gguf_metadata import YARN_NOTE, architecture_problems, describe_model
from gptoss_ft.export.gguf_tokenizer import describe_tokenizer, header_bytes
from gptoss_ft.export.gguf_tokenizer import problems as gguf_tokenizer_problems
from gptoss_ft.export.gguf_values import (
    EVERY,
    GATE,
    UP,
    dense_experts,
    packed_experts,
    plain,
    unpacked_experts,
)
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import Source, no_adapter_problems, packed_problems
from gptoss_ft.mxfp4.codec import BLOCK_SIZE

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE_TYPES = {
    "mxfp4": "MOSTLY_MXFP4_MOE",
    "bf16": "MOSTLY_BF16",
    "f16": "MOSTLY_F16",
    "f32": "ALL_F32",
}
# Stored dtypes that a file with MXFP4 experts keeps for its other matrices.
KEPT_TYPES = {"BF16": "BF16", "F16": "F16", "F32": "F32", "F64": "F32"}

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
}
# The experts' projections: of which stored one, and which of its outputs.
EXPERTS = {
    "ffn_gate_exps": ("gate_up_proj", GATE),
    "ffn_up_exps": ("gate_up_proj", UP),
    "ffn_down_exps": ("down_proj", EVERY),
}


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds what one GGUF file cannot hold, and what llama.cpp would compute differently."""
    return [*no_adapter_problems(source, options), *model_problems(source, options)]


def model_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    """Finds what `problems` does, adapters left out."""
    yield from package_problems()
    yield from architecture_problems(source)
    yield from gguf_tokenizer_problems(source)
    if options.written_dtype == "mxfp4":
        mend = f"say dtype=bf16, or merge with to=mxfp4 and export that folder with to={options.to}"
        yield from packed_problems(source, options, mend)
    if source.checkpoint.is_packed:
        yield from _block_problems(source)


def _block_problems(source: Source) -> Iterator[Problem]:
    for key in ("hidden_size", "intermediate_size"):
        if source.config[key] % BLOCK_SIZE:
            yield Problem(
                "MXFP4 rows must be divisible by 32, the size of a block",
                f"{source.folder / 'config.json'}: {key}",
                str(source.config[key]),
                "use config.json and weights of the same checkpoint",
            )


def size(source: Source, options: ExportOptions) -> int:
    """Returns the bytes of the tensors plus an upper bound for the metadata."""
    return data_bytes(layout(source, options.written_dtype)) + header_bytes(source.folder)


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Writes the file `out`, a few MB at a time."""
    dtype = options.written_dtype

    def describe(writer: GGUFWriter) -> None:
        describe_model(writer, source, options.model_name, FILE_TYPES[dtype])
        describe_tokenizer(writer, source)

    write_gguf(out, describe, layout(source, dtype), progress)
    progress.update(header_bytes(source.folder))


def layout(source: Source, dtype: str) -> list[GgufTensor]:
    """Returns every tensor of the file in file order, layer by layer.

    Args:
        source: the checkpoint.
        dtype: of the experts: `mxfp4`, where all other matrices keep the dtype that they have; or
            of all matrices: `f32`, `bf16`, `f16`.
    """
    names = list(OUTSIDE.items())
    tensors = [_plain(source, name, stored, dtype) for name, stored in names[:1]]
    for layer in range(source.config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors += [
            _plain(source, f"blk.{layer}.{name}", prefix + stored, dtype)
            for name, stored in LAYER.items()
        ]
        for name, (projection, rows) in EXPERTS.items():
            stem = f"{prefix}mlp.experts.{projection}"
            tensors += [
                _expert_weights(source, f"blk.{layer}.{name}.weight", stem, rows, dtype),
                _expert_biases(source, f"blk.{layer}.{name}.bias", stem, rows),
            ]
    return tensors + [_plain(source, name, stored, dtype) for name, stored in names[1:]]


def _plain(source: Source, name: str, stored: str, dtype: str) -> GgufTensor:
    info = source.checkpoint.tensors[stored]
    matrix = len(info.shape) == 2 and not name.endswith("ffn_gate_inp.weight")
    kept = KEPT_TYPES[info.dtype] if dtype == "mxfp4" else dtype.upper()
    type = kept if matrix else "F32"
    return GgufTensor(name, type, info.shape, partial(plain, info, type))


def _expert_weights(source: Source, name: str, stem: str, rows: slice, dtype: str) -> GgufTensor:
    tensors, type = source.checkpoint.tensors, dtype.upper()
    if not source.checkpoint.is_packed:
        info = tensors[stem]
        experts, width, out = info.shape
        parts = partial(dense_experts, info, type, rows)
    else:
        blocks, scales = tensors[f"{stem}_blocks"], tensors[f"{stem}_scales"]
        experts, out, width = scales.shape[0], scales.shape[1], scales.shape[2] * BLOCK_SIZE
        if dtype == "mxfp4":
            parts = partial(packed_experts, blocks, scales, rows)
        else:
            parts = partial(unpacked_experts, blocks, scales, type, rows)
    return GgufTensor(name, type, (experts, _count(out, rows), width), parts)


def _expert_biases(source: Source, name: str, stem: str, rows: slice) -> GgufTensor:
    info = source.checkpoint.tensors[f"{stem}_bias"]
    shape = (info.shape[0], _count(info.shape[1], rows))
    return GgufTensor(name, "F32", shape, partial(plain, info, "F32", rows))


def _count(out: int, rows: slice) -> int:
    """Counts how many of `out` rows a slice takes."""
    return len(range(out)[rows])


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to serve the file with llama.cpp."""
    place = shlex.quote(str(options.place.absolute()))
    return f"""# Serving this model with llama.cpp

```sh
llama-server --model {place} --jinja --ctx-size 16384
```

`--jinja` makes the server read and write Harmony through the chat template in the file: answers
arrive as `content`, the analysis channel as `reasoning_content`, tool calls as `tool_calls`.

The released template writes today's date where training has a pinned one, and two line ends after
the instructions that training, like OpenAI's own renderer, does not have. To send a prompt exactly
as it was trained, give `/completion` its token ids.

{YARN_NOTE}
LM Studio and Ollama read the same file: `gptoss-ft export to=lmstudio` puts it where LM Studio
looks, `to=ollama` writes a Modelfile beside it.
"""
