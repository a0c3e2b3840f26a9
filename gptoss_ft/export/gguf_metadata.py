"""Metadata of a GGUF file, and the models that llama.cpp's gpt-oss cannot compute.

Keys and what is done with them: `src/models/openai-moe.cpp` and `src/llama-graph.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gptoss_ft.errors import Problem
from gptoss_ft.export.source import Source

if TYPE_CHECKING:
    from gguf import GGUFWriter

SWIGLU_LIMIT = 7.0
YARN_NOTE = """\
llama.cpp rounds the range over which YaRN blends frequencies to whole dimensions, for every
gpt-oss file; transformers does so only where config.json says `"truncate": true`, and the released
one says false. Its logits differ from those of training by that, and, with MXFP4 weights, by
activations rounded to 8 bits. With the same range in both and float32 weights they agree to 1e-4.
"""


def describe_model(writer: GGUFWriter, source: Source, name: str, file_type: str) -> None:
    """Adds the model's name and hyperparameters.

    Args:
        writer: of a file that has all its tensors' headers or none yet.
        source: the checkpoint.
        name: shown by the programs that load the file.
        file_type: a member of gguf's LlamaFileType.
    """
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType

    config = source.config
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(source.checkpoint.active_experts)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-5))
    _describe_rope(writer, source.rope)


def _describe_rope(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast", 32.0))
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow", 1.0))


def architecture_problems(source: Source) -> Iterator[Problem]:
    """Finds settings that llama.cpp's code fixes, and YaRN settings that it has no key for."""
    config, rope = source.config, source.rope
    layers = config["num_hidden_layers"]
    sliding = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    fixed: dict[str, tuple[Any, Any]] = {
        "layer_types": (config.get("layer_types", sliding), sliding),
        "swiglu_limit": (config.get("swiglu_limit", SWIGLU_LIMIT), SWIGLU_LIMIT),
        "rope_type": (rope.get("rope_type", rope.get("type")), "yarn"),
        "rope attention_factor": (rope.get("attention_factor"), None),
        "rope mscale": (rope.get("mscale"), None),
    }
    for name, (found, wanted) in fixed.items():
        if found != wanted:
            yield Problem(
                f"llama.cpp's gpt-oss fixes this to {wanted}",
                f"{source.folder / 'config.json'}: {name}",
                repr(found),
                "serve this model with vLLM (to=vllm) or transformers",
            )
