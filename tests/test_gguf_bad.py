"""What cannot be exported to GGUF is refused before writing, with the route that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import linked_copy, refusal
from merges import SMALL
from safetensors.torch import save_file

from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.export import gguf_file
from gptoss_ft.harmony.vocabulary import write_tokenizer_files
from gptoss_ft.model.tiny import tiny_config

SINGLE_FILE = "model.safetensors"


def _write(
    folder: Path, tokenizer: Path | None = None, packed: bool = True, **settings: Any
) -> Path:
    """A checkpoint of zeros whose shapes follow from its settings; tokenizer files are linked."""
    folder.mkdir()
    config = tiny_config(SMALL) | settings
    tensors = {}
    for name, shape in expected_shapes(config, packed).items():
        dtype = torch.uint8 if name.endswith(("_blocks", "_scales")) else torch.bfloat16
        tensors[name] = torch.zeros(shape, dtype=dtype)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is None:
        write_tokenizer_files(folder)
    else:
        for name in ("tokenizer.json", "chat_template.jinja"):
            (folder / name).symlink_to(tokenizer / name)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("model") / "model")


def test_dense_experts(model: Path, tmp_path: Path) -> None:
    """A bfloat16 folder where MXFP4 is the default."""
    dense = _write(tmp_path / "dense", model, packed=False)
    for to, name in (("gguf", "x.gguf"), ("ollama", "x"), ("lmstudio", "x")):
        message = refusal(dense, tmp_path / name, to)
        assert f"to={to} dtype=mxfp4 needs MXFP4 experts" in message
        assert "say dtype=bf16, or merge with to=mxfp4" in message


def test_rows_that_are_no_whole_blocks_and_too_few_of_them(model: Path, tmp_path: Path) -> None:
    """Both problems at once."""
    cut = _write(tmp_path / "cut", model, hidden_size=48, vocab_size=1000)
    message = refusal(cut, tmp_path / "x.gguf", "gguf")
    assert "MXFP4 rows must be divisible by 32" in message
    assert "config.json: hidden_size" in message and "found: 48" in message
    assert "the model has fewer rows than Harmony has tokens" in message
    assert "vocab_size 1000, where 200019 are needed" in message


@pytest.mark.parametrize(
    ("settings", "name", "found"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit", "5.0"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types", "['full_attention', 'full"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type", "'linear'"),
        ({"rope_parameters": {"attention_factor": 1.2}}, "rope attention_factor", "1.2"),
    ],
)
def test_what_llama_cpp_fixes(
    model: Path, tmp_path: Path, settings: dict[str, Any], name: str, found: str
) -> None:
    message = refusal(
        linked_copy(model, tmp_path / "model", **settings), tmp_path / "x.gguf", "gguf"
    )
    assert "llama.cpp's gpt-oss fixes this to" in message
    assert f"config.json: {name}" in message and f"found: {found}" in message
    assert "to=vllm" in message


def test_another_tokenizer(model: Path, tmp_path: Path) -> None:
    changed = linked_copy(model, tmp_path / "model")
    (changed / "tokenizer.json").unlink()
    (changed / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    message = refusal(changed, tmp_path / "x.gguf", "gguf")
    assert "<|return|> is not the special token 200002" in message
    assert "use the tokenizer.json of a gpt-oss checkpoint" in message


def test_no_chat_template(model: Path, tmp_path: Path) -> None:
    changed = linked_copy(model, tmp_path / "model")
    (changed / "chat_template.jinja").unlink()
    message = refusal(changed, tmp_path / "x.gguf", "gguf")
    assert "there is no chat template" in message
    assert "copy chat_template.jinja from the released checkpoint" in message


def test_no_gguf_package(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    message = refusal(model, tmp_path / "x.gguf", "gguf")
    assert 'pip install "gptoss-ft[gguf]"' in message


def test_wrong_name_and_taken_place(model: Path, tmp_path: Path) -> None:
    assert "say out=" in refusal(model, tmp_path / "x", "gguf")
    (tmp_path / "x.gguf").write_text("mine")
    assert "a file is in the way" in refusal(model, tmp_path / "x.gguf", "gguf")
    assert (tmp_path / "x.gguf").read_text() == "mine"


def test_what_was_trained_in_the_experts_is_not_left_out(model: Path, tmp_path: Path) -> None:
    """A merge with experts=adapter is only a part of the fine-tune."""
    changed = linked_copy(model, tmp_path / "model")
    (changed / "expert_adapter").mkdir()
    (changed / "expert_adapter" / "adapter_config.json").write_text("{}")
    for to, name in (("gguf", "x.gguf"), ("ollama", "x"), ("lmstudio", "x")):
        message = refusal(changed, tmp_path / name, to)
        assert f"to={to} would leave out what was trained in the experts" in message
        assert f"adapter={changed / 'expert_adapter'}" in message
