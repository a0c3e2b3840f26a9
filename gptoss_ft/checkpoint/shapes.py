"""The tensors that a gpt-oss checkpoint must hold, from its config.json."""

from __future__ import annotations

from typing import Any


def expected_shapes(config: dict[str, Any], packed: bool) -> dict[str, tuple[int, ...]]:
    """Returns name and shape of every tensor of a gpt-oss checkpoint in the released layout.

    Args:
        config: config.json.
        packed: MXFP4 experts (`…_blocks`, `…_scales`), else dense ones, which transformers stores
            transposed, `[E, in, out]`.
    """
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    heads = config["num_attention_heads"] * head_dim
    kv_heads = config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, out, width in (
            ("q_proj", heads, hidden),
            ("k_proj", kv_heads, hidden),
            ("v_proj", kv_heads, hidden),
            ("o_proj", hidden, heads),
        ):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (out, width)
            shapes[f"{prefix}.self_attn.{name}.bias"] = (out,)
        shapes[f"{prefix}.self_attn.sinks"] = (config["num_attention_heads"],)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes.update(_mlp_shapes(config, f"{prefix}.mlp", packed))
    return shapes


def _mlp_shapes(config: dict[str, Any], prefix: str, packed: bool) -> dict[str, tuple[int, ...]]:
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    experts = config["num_local_experts"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.router.weight": (experts, hidden),
        f"{prefix}.router.bias": (experts,),
    }
    for name, out, width in (
        ("gate_up_proj", 2 * intermediate, hidden),
        ("down_proj", hidden, intermediate),
    ):
        shapes[f"{prefix}.experts.{name}_bias"] = (experts, out)
        if packed:
            shapes[f"{prefix}.experts.{name}_blocks"] = (experts, out, width // 32, 16)
            shapes[f"{prefix}.experts.{name}_scales"] = (experts, out, width // 32)
        else:
            shapes[f"{prefix}.experts.{name}"] = (experts, width, out)
    return shapes
