"""`to=openai`: the layout of OpenAI's own reference implementation, the `gpt-oss` package.

Source of the names: `gpt_oss/torch/model.py` and `weights.py` of that package, version 0.0.9. Its
attention keeps q, k and v in one matrix; everything else is the Hugging Face checkpoint under other
names. Experts stay MXFP4, block for block. What its ModelConfig has no field for is fixed in its
code, so checkpoints that deviate there are refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gptoss_ft.checkpoint.shards import Joined, write_joined
from gptoss_ft.errors import Problem
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import (
    Source,
    alternating_problems,
    no_adapter_problems,
    packed_problems,
    tokenizer_problems,
)
from gptoss_ft.files import write_json

FILE_NAME = "model.safetensors"
# The package looks expert tensors up in a table of this many layers.
MAX_LAYERS = 36
RMS_NORM_EPS = 1e-5
_OUTSIDE = {
    "embedding.weight": ("model.embed_tokens.weight",),
    "norm.scale": ("model.norm.weight",),
    "unembedding.weight": ("lm_head.weight",),
}
_LAYER = {
    "attn.norm.scale": ("input_layernorm.weight",),
    "attn.qkv.weight": tuple(f"self_attn.{name}_proj.weight" for name in "qkv"),
    "attn.qkv.bias": tuple(f"self_attn.{name}_proj.bias" for name in "qkv"),
    "attn.out.weight": ("self_attn.o_proj.weight",),
    "attn.out.bias": ("self_attn.o_proj.bias",),
    "attn.sinks": ("self_attn.sinks",),
    "mlp.norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate.weight": ("mlp.router.weight",),
    "mlp.gate.bias": ("mlp.router.bias",),
    "mlp.mlp1_weight.blocks": ("mlp.experts.gate_up_proj_blocks",),
    "mlp.mlp1_weight.scales": ("mlp.experts.gate_up_proj_scales",),
    "mlp.mlp1_bias": ("mlp.experts.gate_up_proj_bias",),
    "mlp.mlp2_weight.blocks": ("mlp.experts.down_proj_blocks",),
    "mlp.mlp2_weight.scales": ("mlp.experts.down_proj_scales",),
    "mlp.mlp2_bias": ("mlp.experts.down_proj_bias",),
}


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds what the reference implementation cannot hold or would compute differently."""
    return [
        *no_adapter_problems(source, options),
        *packed_problems(source, options),
        *tokenizer_problems(source),
        *alternating_problems(source, options),
        *_fixed_problems(source),
    ]


def _fixed_problems(source: Source) -> Iterator[Problem]:
    """Checks the settings that the reference's code fixes."""
    config, rope = source.config, source.rope
    fixed: dict[str, tuple[Any, Any]] = {
        "rms_norm_eps": (config.get("rms_norm_eps", RMS_NORM_EPS), RMS_NORM_EPS),
        "rope_type": (rope.get("rope_type", rope.get("type")), "yarn"),
        "truncate": (rope.get("truncate", True), False),
        "attention_factor": (rope.get("attention_factor"), None),
    }
    for name, (found, wanted) in fixed.items():
        if found != wanted:
            yield _fixed(source, name, found, wanted)
    if (layers := config["num_hidden_layers"]) > MAX_LAYERS:
        yield _fixed(source, "num_hidden_layers", layers, f"at most {MAX_LAYERS}")


def _fixed(source: Source, name: str, found: object, wanted: object) -> Problem:
    return Problem(
        f"the reference implementation fixes this to {wanted}",
        f"{source.folder / 'config.json'}: {name}",
        repr(found),
        "to=vllm reads it from the configuration",
    )


def size(source: Source, options: ExportOptions) -> int:
    """Returns the bytes of the tensors, which are the checkpoint's, unchanged."""
    return source.checkpoint.nbytes


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Writes config.json and one safetensors file, a few MB at a time."""
    write_json(out / "config.json", model_config(source))
    write_joined(out / FILE_NAME, layout(source), progress)


def layout(source: Source) -> list[Joined]:
    """Returns every tensor of the reference with the checkpoint's tensors that it is made of."""
    names: dict[str, tuple[str, ...]] = {**_OUTSIDE}
    for layer in range(source.config["num_hidden_layers"]):
        for name, parts in _LAYER.items():
            stored = tuple(f"model.layers.{layer}.{part}" for part in parts)
            names[f"block.{layer}.{name}"] = stored
    tensors = source.checkpoint.tensors
    return [Joined(name, tuple(tensors[part] for part in parts)) for name, parts in names.items()]


def model_config(source: Source) -> dict[str, Any]:
    """Returns the fields of the reference's ModelConfig, which takes no others."""
    config, rope = source.config, source.rope
    copied = (
        "num_hidden_layers",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
    )
    return {
        **{name: config[name] for name in copied},
        "num_experts": config["num_local_experts"],
        "experts_per_token": source.checkpoint.active_experts,
        "swiglu_limit": config.get("swiglu_limit", 7.0),
        "initial_context_length": rope["original_max_position_embeddings"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": rope.get("beta_slow", 1.0),
        "rope_ntk_beta": rope.get("beta_fast", 32.0),
    }


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to run the folder with the `gpt-oss` package."""
    place = shlex.quote(str(options.place.absolute()))
    return f"""# Serving this checkpoint with OpenAI's reference implementation

The folder has the layout of `original/` in the released gpt-oss checkpoints. The `gpt-oss` package
(Python 3.12 or newer) reads it:

```sh
pip install "gpt-oss[torch]"
torchrun --nproc-per-node=4 -m gpt_oss.chat --backend torch {place}
```

With its Triton kernels on one GPU: `pip install "gpt-oss[triton]"` and
`python -m gpt_oss.chat --backend triton {place}`.
"""
