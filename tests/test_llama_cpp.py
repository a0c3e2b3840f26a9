"""GGUF files in llama.cpp itself: logits, greedy answers, adapters, tokens and chat template.

llama.cpp always rounds YaRN's range to whole dimensions, so the models here say `truncate: true`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from exports import Answers, ask_stock, export, linked_copy, run_driver
from gguf_files import ask_llama_cpp, rendered_chats, write_model
from peft import PeftModel
from stock import load_stock, write_stock_adapter

from gptoss_ft.harmony.vocabulary import packaged_vocabulary


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def file(model: Path) -> Path:
    """The model in float32."""
    return export(model, model.with_name("f32.gguf"), "gguf", dtype="f32")


@pytest.fixture(scope="module")
def base_answers(model: Path) -> Answers:
    return ask_stock(model)


def test_float32(file: Path, base_answers: Answers, tmp_path: Path) -> None:
    found = ask_llama_cpp(file, tmp_path)
    base_answers.assert_agree(found, logits=1e-4, log_probs=1e-4)


def test_adapter_on_attention_and_experts(
    model: Path, file: Path, base_answers: Answers, tmp_path: Path
) -> None:
    """rsLoRA and different ranks, so that one alpha does not fit all updates."""
    adapter = tmp_path / "adapter"
    settings = {"rank_pattern": {"mlp.experts.down_proj": 2}, "use_rslora": True}
    write_stock_adapter(model, adapter, std=0.06, **settings)
    lora = export(model, tmp_path / "lora.gguf", "gguf-lora", adapter=str(adapter))
    found = ask_llama_cpp(file, tmp_path, lora)
    expected = ask_stock(PeftModel.from_pretrained(load_stock(model), adapter).eval())
    expected.assert_agree(found, log_probs=1e-3)
    assert (expected.log_probs - base_answers.log_probs).abs().max() > 1


def test_mxfp4(model: Path, tmp_path: Path) -> None:
    """llama.cpp rounds the activations of MXFP4 products to 8 bits.

    In a random model that flips close calls of the router, hence all experts are active here.
    """
    active = {"num_experts_per_tok": 8, "experts_per_token": 8}
    model = linked_copy(model, tmp_path / "model", **active)
    found = ask_llama_cpp(export(model, tmp_path / "mxfp4.gguf", "gguf"), tmp_path)
    expected = ask_stock(model)
    error = (expected.log_probs - found.log_probs).abs()
    assert error.mean() <= 0.02 * expected.log_probs.std()
    assert error.max() <= 0.2 * expected.log_probs.std()


def test_tokens_and_chat_template(file: Path, tmp_path: Path) -> None:
    """llama.cpp's own tokenizer and template engine give the ids that we train, at every effort."""
    asked, expected = rendered_chats()
    texts = [packaged_vocabulary().decode(ids) for ids in expected]
    questions = {"chats": asked, "texts": texts, "prompts": [], "tokens": 1}
    found = run_driver("llama_cpp_server.py", file, tmp_path, **questions)
    assert found["chats"] == texts
    assert found["texts"] == expected
