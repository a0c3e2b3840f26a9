"""The tiny model: released layout, deterministic, loadable by stock transformers, confident."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stock import load_stock, load_tensors, logits_and_experts

from gptoss_ft.errors import ConfigError
from gptoss_ft.files import sha256_file
from gptoss_ft.harmony.vocabulary import TOKENIZER_JSON_SHA256
from gptoss_ft.model import tiny_options
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.mxfp4 import codec

SIZES = {"hidden_size": 64, "intermediate_size": 32, "heads": 2, "kv_heads": 1}
SMALL = TinyOptions(layers=2, experts=4, experts_per_token=2, **SIZES)


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    write_tiny(tmp_path / "one", SMALL)
    torch.manual_seed(2)
    write_tiny(tmp_path / "two", SMALL)
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "two")
    write_tiny(tmp_path / "three", TinyOptions(**(vars(SMALL) | {"seed": 1})))
    one, three = _hashes(tmp_path / "one"), _hashes(tmp_path / "three")
    assert {name for name in one if one[name] != three[name]} == {
        "model-00000-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
    }


def test_files_and_config_of_the_release(tiny_checkpoint: Path) -> None:
    names = {file.name for file in tiny_checkpoint.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model-00000-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert config["architectures"] == ["GptOssForCausalLM"]
    assert config["model_type"] == "gpt_oss"
    assert config["experts_per_token"] == config["num_experts_per_tok"] == 4
    assert config["rope_theta"] == 150000
    assert config["rope_scaling"] == {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    }
    assert config["initial_context_length"] == 4096
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    assert config["sliding_window"] == 128 and config["swiglu_limit"] == 7.0
    assert config["router_aux_loss_coef"] == 0.9
    assert config["vocab_size"] == 201_088
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    generation = json.loads((tiny_checkpoint / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [200002, 199999, 200012]


def test_released_tokenizer(tiny_checkpoint: Path) -> None:
    assert sha256_file(tiny_checkpoint / "tokenizer.json") == TOKENIZER_JSON_SHA256


def test_tensors_of_the_release(tiny_checkpoint: Path) -> None:
    """Names, dtypes and shapes as the released 20b has them, with these sizes."""
    found = {name: (t.dtype, tuple(t.shape)) for name, t in load_tensors(tiny_checkpoint).items()}
    layer = "model.layers.3"
    bf16, u8 = torch.bfloat16, torch.uint8
    expected = {
        f"{layer}.input_layernorm.weight": (bf16, (128,)),
        f"{layer}.post_attention_layernorm.weight": (bf16, (128,)),
        f"{layer}.self_attn.q_proj.weight": (bf16, (256, 128)),
        f"{layer}.self_attn.q_proj.bias": (bf16, (256,)),
        f"{layer}.self_attn.k_proj.weight": (bf16, (128, 128)),
        f"{layer}.self_attn.k_proj.bias": (bf16, (128,)),
        f"{layer}.self_attn.v_proj.weight": (bf16, (128, 128)),
        f"{layer}.self_attn.v_proj.bias": (bf16, (128,)),
        f"{layer}.self_attn.o_proj.weight": (bf16, (128, 256)),
        f"{layer}.self_attn.o_proj.bias": (bf16, (128,)),
        f"{layer}.self_attn.sinks": (bf16, (4,)),
        f"{layer}.mlp.router.weight": (bf16, (8, 128)),
        f"{layer}.mlp.router.bias": (bf16, (8,)),
        f"{layer}.mlp.experts.gate_up_proj_blocks": (u8, (8, 256, 4, 16)),
        f"{layer}.mlp.experts.gate_up_proj_scales": (u8, (8, 256, 4)),
        f"{layer}.mlp.experts.gate_up_proj_bias": (bf16, (8, 256)),
        f"{layer}.mlp.experts.down_proj_blocks": (u8, (8, 128, 4, 16)),
        f"{layer}.mlp.experts.down_proj_scales": (u8, (8, 128, 4)),
        f"{layer}.mlp.experts.down_proj_bias": (bf16, (8, 128)),
        "model.embed_tokens.weight": (bf16, (201_088, 128)),
        "model.norm.weight": (bf16, (128,)),
        "lm_head.weight": (bf16, (201_088, 128)),
    }
    in_layer = {name for name in found if name.startswith(f"{layer}.")}
    outside = {name for name in found if ".layers." not in name}
    assert in_layer | outside == expected.keys()
    assert {name: found[name] for name in expected} == expected
    assert len(found) == 4 * len(in_layer) + len(outside)


def test_loads_in_stock_transformers_and_can_be_confident(tiny_checkpoint: Path) -> None:
    model = load_stock(tiny_checkpoint)  # fails on missing and unexpected keys
    logits, hit = logits_and_experts(model)
    assert 2.5 < logits.std() < 3.5
    assert hit == [8] * 4, "some expert is never used"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 100}, "hidden_size: must be divisible by 32"),
        ({"intermediate_size": 33}, "intermediate_size: must be divisible by 32"),
        ({"layers": 0}, "layers: must be at least 1"),
        ({"kv_heads": 0}, "kv_heads: must be at least 1"),
        ({"heads": 3, "kv_heads": 2}, "kv_heads: must divide heads=3"),
        ({"experts": 2, "experts_per_token": 3}, "experts_per_token: must not exceed experts=2"),
    ],
)
def test_sizes_that_cannot_be_built(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_tiny(tmp_path / "out", TinyOptions(**sizes))
    assert message in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_all_problems_of_a_full_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError) as caught:
        write_tiny(tmp_path, TinyOptions(hidden_size=1, experts=-1))
    text = str(caught.value)
    for part in (
        "hidden_size",
        "experts: must be at least 1",
        f"out={tmp_path}: the folder is not",
    ):
        assert part in text
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_sizes_are_checked_against_the_block_of_the_format() -> None:
    assert tiny_options.BLOCK_SIZE == codec.BLOCK_SIZE
