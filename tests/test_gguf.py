"""What stands in a GGUF file: every tensor's bytes, and the metadata.

The gguf package unpacks MXFP4. That the bytes are those of llama.cpp's own converter is checked in
runtimes/test_converter.py, which needs the network; here its rule for blocks is written down a
second time. No file with the whole vocabulary is read back here: the package needs ten seconds for
that. llama.cpp reads such files in test_llama_cpp.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize
from merges import same_bytes
from safetensors.torch import save_file
from stock import load_stock, load_tensors
from tokenizers import Tokenizer

from gptoss_ft.checkpoint.headers import read_header
from gptoss_ft.errors import ExportError
from gptoss_ft.export.gguf import layout
from gptoss_ft.export.gguf_metadata import describe_model
from gptoss_ft.export.gguf_tokenizer import describe_tokenizer
from gptoss_ft.export.gguf_values import GATE, UP, ggml_blocks, plain
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import Source, open_source
from gptoss_ft.mxfp4.codec import unpack

EXPERTS = {
    "ffn_gate_exps": ("gate_up_proj", slice(0, None, 2)),
    "ffn_up_exps": ("gate_up_proj", slice(1, None, 2)),
    "ffn_down_exps": ("down_proj", slice(None)),
}

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(scope="module")
def dense(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as stock transformers saves it dequantised, with dense experts in bfloat16."""
    out = tmp_path_factory.mktemp("dense") / "model"
    shutil.copytree(tiny_checkpoint, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    stock = load_stock(tiny_checkpoint, torch.bfloat16)
    save_file(dict(stock.state_dict()), out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return out


def _source(folder: Path) -> Source:
    source, problems = open_source(ExportOptions(model=str(folder), out="x.gguf", to="gguf"))
    assert source is not None and not problems
    return source


def _written(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """Every tensor of a file as it would be written; MXFP4 as bytes `[E, out, G * 17]`."""
    found = {}
    for tensor in layout(_source(folder), dtype):
        values = torch.cat([part.clone().flatten() for part in tensor.parts()])
        assert values.nbytes == tensor.nbytes, tensor.name
        if tensor.type == "MXFP4":
            found[tensor.name] = values.view(*tensor.shape[:2], -1)
        else:
            found[tensor.name] = values.view(TYPES[tensor.type]).view(tensor.shape)
    return found


def test_expert_blocks_keep_every_scale_and_nibble(tiny_checkpoint: Path) -> None:
    stored, written = load_tensors(tiny_checkpoint), _written(tiny_checkpoint, "mxfp4")
    for layer in range(4):
        for name, (projection, rows) in EXPERTS.items():
            stem = f"model.layers.{layer}.mlp.experts.{projection}"
            blocks = stored[f"{stem}_blocks"][:, rows].numpy()
            scales = stored[f"{stem}_scales"][:, rows].numpy()
            data = written[f"blk.{layer}.{name}.weight"].numpy()
            found = data.reshape(*scales.shape, 17)
            assert np.array_equal(found[..., 0], scales)
            nibbles = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, 32)
            assert np.array_equal(found[..., 1:] & 15, nibbles[..., :16])
            assert np.array_equal(found[..., 1:] >> 4, nibbles[..., 16:])
            exact = unpack(torch.from_numpy(blocks), torch.from_numpy(scales)).numpy()
            assert np.array_equal(dequantize(data, GGMLQuantizationType.MXFP4), exact)


def test_every_byte_and_scale() -> None:
    """All bytes at all places of a block, on rows taken two by two."""
    values = torch.arange(256, dtype=torch.uint8)
    blocks = torch.stack([values.roll(17 * place) for place in range(16)], -1).view(64, 4, 16)
    scales = values.view(64, 4)
    for rows in (GATE, UP):
        found = ggml_blocks(blocks[rows], scales[rows]).view(32, 4, 17)
        assert torch.equal(found[..., 0], scales[rows])
        first, second = found[..., 1:] & 15, found[..., 1:] >> 4
        back = torch.cat([first, second], -1)
        assert torch.equal(back[..., ::2] | back[..., 1::2] << 4, blocks[rows])


def test_other_tensors_of_an_mxfp4_file(tiny_checkpoint: Path) -> None:
    """Matrices keep their bfloat16; vectors, biases and routers are float32."""
    stored, written = load_tensors(tiny_checkpoint), _written(tiny_checkpoint, "mxfp4")
    layer = "model.layers.1."
    biases = stored[f"{layer}mlp.experts.gate_up_proj_bias"]
    expected = {
        "token_embd.weight": stored["model.embed_tokens.weight"],
        "output.weight": stored["lm_head.weight"],
        "blk.1.attn_q.weight": stored[f"{layer}self_attn.q_proj.weight"],
        "blk.1.attn_output.weight": stored[f"{layer}self_attn.o_proj.weight"],
        "output_norm.weight": stored["model.norm.weight"].float(),
        "blk.1.attn_sinks.weight": stored[f"{layer}self_attn.sinks"].float(),
        "blk.1.ffn_gate_inp.weight": stored[f"{layer}mlp.router.weight"].float(),
        "blk.1.ffn_gate_exps.bias": biases[:, ::2].float(),
        "blk.1.ffn_up_exps.bias": biases[:, 1::2].float(),
    }
    for name, tensor in expected.items():
        assert same_bytes(written[name], tensor), name


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_floating_point_files(tiny_checkpoint: Path, dense: Path, dtype: str) -> None:
    """Packed and dense experts give the same values, those of stock transformers."""
    packed, plain = _written(tiny_checkpoint, dtype), _written(dense, dtype)
    assert packed.keys() == plain.keys()
    for name, tensor in packed.items():
        assert torch.equal(tensor, plain[name]), name
    stock = load_stock(tiny_checkpoint).state_dict()
    for layer in range(4):
        for name, (projection, rows) in EXPERTS.items():
            expected = stock[f"model.layers.{layer}.mlp.experts.{projection}"].mT[:, rows]
            found = packed[f"blk.{layer}.{name}.weight"]
            assert torch.equal(found, expected.to(found.dtype)), name


def test_a_value_beyond_float16(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"lm_head.weight": torch.tensor([[1.0], [-1e5]], dtype=torch.bfloat16)}, file)
    with pytest.raises(ExportError, match=r"up to 9\.98e\+04, where 65504 is the limit") as caught:
        list(plain(read_header(file)[0], "F16"))
    assert "say dtype=bf16" in str(caught.value)


@pytest.fixture(scope="module")
def metadata(tiny_checkpoint: Path) -> dict[str, Any]:
    """Key and value of everything that stands before the tensors."""
    writer = GGUFWriter(None, "gpt-oss")
    describe_model(writer, _source(tiny_checkpoint), "a name", "MOSTLY_MXFP4_MOE")
    describe_tokenizer(writer, _source(tiny_checkpoint))
    return {key: item.value for key, item in writer.kv_data[0].items()}


def test_settings(tiny_checkpoint: Path, metadata: dict[str, Any]) -> None:
    expected = {
        "general.architecture": "gpt-oss",
        "general.type": "model",
        "general.name": "a name",
        "general.file_type": 38,  # mostly MXFP4
        "gpt-oss.block_count": 4,
        "gpt-oss.context_length": 131072,
        "gpt-oss.embedding_length": 128,
        "gpt-oss.feed_forward_length": 128,
        "gpt-oss.expert_feed_forward_length": 128,
        "gpt-oss.expert_count": 8,
        "gpt-oss.expert_used_count": 4,
        "gpt-oss.attention.head_count": 4,
        "gpt-oss.attention.head_count_kv": 2,
        "gpt-oss.attention.key_length": 64,
        "gpt-oss.attention.value_length": 64,
        "gpt-oss.attention.sliding_window": 128,
        "gpt-oss.attention.layer_norm_rms_epsilon": 1e-5,
        "gpt-oss.rope.freq_base": 150000.0,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": 32.0,
        "gpt-oss.rope.scaling.original_context_length": 4096,
        "gpt-oss.rope.scaling.yarn_beta_fast": 32.0,
        "gpt-oss.rope.scaling.yarn_beta_slow": 1.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
        "tokenizer.ggml.bos_token_id": 199998,
        "tokenizer.ggml.eos_token_id": 200002,
        "tokenizer.ggml.padding_token_id": 199999,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": (tiny_checkpoint / "chat_template.jinja").read_text(),
    }
    assert {key: metadata[key] for key in expected} == expected


def test_tokenizer(tiny_checkpoint: Path, metadata: dict[str, Any]) -> None:
    """Names by id are those of the tokenizers library; specials are control tokens."""
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    names = metadata["tokenizer.ggml.tokens"]
    assert names[:200_019] == [tokenizer.id_to_token(row) for row in range(200_019)]
    assert names[200_019:] == [f"[PAD{row}]" for row in range(200_019, 201_088)]
    types = metadata["tokenizer.ggml.token_type"]
    normal, control, unused = TokenType.NORMAL, TokenType.CONTROL, TokenType.UNUSED
    assert types == [normal] * 199_998 + [control] * 21 + [unused] * 1069
    merges = json.loads((tiny_checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    assert [pair.split(" ") for pair in metadata["tokenizer.ggml.merges"]] == merges
