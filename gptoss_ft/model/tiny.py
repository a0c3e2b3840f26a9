"""A tiny gpt-oss with random weights, in exactly the layout of the released checkpoints.

It has the real architecture, vocabulary and tokenizer, alternates sliding and full attention, and
stores its experts in MXFP4. It stands in for the real model wherever only the machinery is under
test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gptoss_ft.checkpoint.headers import (
    DTYPES,
    INDEX_NAME,
    Checkpoint,
    TensorInfo,
    expected_shapes,
)
from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.files import atomic_folder, is_empty, write_json
from gptoss_ft.harmony.vocabulary import write_tokenizer_files
from gptoss_ft.model.tiny_options import TinyCommand, TinyOptions
from gptoss_ft.mxfp4.codec import BLOCK_SIZE, floor_scales, pack

VOCABULARY_ROWS = 201_088
LOGIT_STD = 3.0


def run(options: TinyCommand, context: Context) -> Outcome:
    """Writes the tiny model where the settings say.

    Raises:
        ConfigError: no folder, sizes that cannot be built, or a folder that is not empty.
    """
    if not options.out:
        raise ConfigError(Problem("no folder for the model", "out", mend="say out=DIR"))
    write_tiny(Path(options.out), options)
    context.say(f"tiny gpt-oss written to {options.out}")
    return Outcome()


def write_tiny(out: Path, options: TinyOptions) -> None:
    """Writes a tiny checkpoint: config, generation config, two shards with an index, tokenizer
    files.

    Raises:
        ConfigError: sizes that cannot be built, or a folder that is not empty.
    """
    problems = options.problems()
    if not is_empty(out):
        problems.append(
            Problem(
                "the folder is not empty", f"out={out}", mend="choose another folder or remove it"
            )
        )
    if problems:
        raise ConfigError(problems)
    config = tiny_config(options)
    with atomic_folder(out) as folder:
        write_json(folder / "config.json", config)
        write_json(folder / "generation_config.json", GENERATION_CONFIG)
        _write_shards(folder, dict(_tensors(config, options.seed)))
        write_tokenizer_files(folder)


def describe_tiny(path: Path, options: TinyOptions) -> Checkpoint:
    """Returns the checkpoint that `write_tiny` would write, by its configuration and headers.

    Nothing is read or written. Offsets are 0, as there are no files yet.
    """
    config = tiny_config(options)
    tensors = {}
    for name, shape in expected_shapes(config, packed=True).items():
        dtype = "U8" if name.endswith(("_blocks", "_scales")) else "BF16"
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        tensors[name] = TensorInfo(name, path / _shard_of(name), dtype, shape, 0, nbytes)
    return Checkpoint(path, config, tensors)


GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": 199998,
    "do_sample": True,
    "eos_token_id": [200002, 199999, 200012],
    "pad_token_id": 199999,
}


def tiny_config(options: TinyOptions) -> dict[str, Any]:
    """Returns config.json in the released style, with the keys that converters of other projects
    read.
    """
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": options.experts_per_token,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": options.hidden_size,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": options.intermediate_size,
        "layer_types": [
            "full_attention" if layer % 2 else "sliding_attention"
            for layer in range(options.layers)
        ],
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": options.heads,
        "num_experts_per_tok": options.experts_per_token,
        "num_hidden_layers": options.layers,
        "num_key_value_heads": options.kv_heads,
        "num_local_experts": options.experts,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "transformers_version": "4.55.0.dev0",
        "use_cache": True,
        "vocab_size": VOCABULARY_ROWS,
    }


def _tensors(config: dict[str, Any], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields random tensors in the released names, shapes and dtypes.

    Matrices have standard deviation 1 / sqrt(in), so that activations keep their size. The head is
    larger: normalised hidden states have length sqrt(hidden), so its rows give logits of deviation
    `LOGIT_STD` and the model can become confident.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, shape in expected_shapes(config, packed=True).items():
        if name.endswith("_scales"):
            continue  # made together with the blocks
        if name.endswith("_blocks"):
            values = torch.randn(*shape[:2], shape[2] * BLOCK_SIZE, generator=generator)
            values /= math.sqrt(values.shape[-1])
            scales = floor_scales(values)
            yield name, pack(values, scales)
            yield name.removesuffix("_blocks") + "_scales", scales
            continue
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1 + 0.1 * values
        elif name == "lm_head.weight":
            values *= LOGIT_STD / math.sqrt(shape[-1])
        elif name.endswith("bias"):
            values *= 0.1
        elif len(shape) == 2 and name != "model.embed_tokens.weight":
            values /= math.sqrt(shape[-1])
        yield name, values.to(torch.bfloat16)


def _shard_of(name: str) -> str:
    """Returns the file of a tensor: layers in the first shard, embedding, norm and head in the
    second, named as in the release."""
    return f"model-{0 if name.startswith('model.layers.') else 1:05d}-of-00002.safetensors"


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes both shards and their index."""
    weight_map = {name: _shard_of(name) for name in tensors}
    for file in dict.fromkeys(weight_map.values()):
        shard = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(
        folder / INDEX_NAME,
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )
