"""The layout of OpenAI's reference implementation, loaded and run by that implementation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import (
    DRIVERS,
    TOKENS,
    Answers,
    ask_stock,
    export,
    linked_copy,
    prompts,
    refusal,
    run_driver,
)
from merges import merge_to, write_small
from safetensors.torch import load_file
from stock import load_tensors, write_stock_adapter

from gptoss_ft.harmony.vocabulary import SPECIAL_NAMES
from gptoss_ft.model.tiny import TinyOptions, write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts are not square and not as wide as the heads."""
    out = tmp_path_factory.mktemp("openai") / "model"
    write_tiny(out, TinyOptions(layers=3, hidden_size=64, intermediate_size=96))
    return out


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    return export(model, model.with_name("openai"), "openai")


def test_the_reference_computes_what_transformers_does(
    model: Path, exported: Path, tmp_path: Path
) -> None:
    expected = ask_stock(model)
    asked = {"prompts": prompts(), "tokens": TOKENS, "drafts": expected.greedy}
    found = run_driver("gpt_oss_reference.py", exported, tmp_path, **asked)
    logits = torch.from_numpy(np.load(tmp_path / "out.logits.npy"))
    expected.assert_agree(Answers(logits, found["greedy"]), log_probs=1e-4)


def test_a_draft_cannot_change_the_answer() -> None:
    """The driver's answer without a draft, with a right one, and with wrong ones."""
    spec = importlib.util.spec_from_file_location("driver", DRIVERS / "gpt_oss_reference.py")
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    torch.manual_seed(0)
    table = torch.randn(50, 50)

    def model(ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(1, len(ids) + 1)
        return table[(ids * places).cumsum(0) % 50]  # the next token depends on all before it

    first, expected = driver.answer(model, [3, 4], 12, [])
    assert len(set(expected)) > 3
    for draft in (expected, expected[:5] + [7] * 7, [7] * 12):
        logits, ids = driver.answer(model, [3, 4], 12, draft)
        assert ids == expected
        assert np.array_equal(logits, first)


def test_bytes_are_those_of_the_checkpoint(model: Path, exported: Path) -> None:
    """Every tensor is there, unchanged, and nothing else is."""
    stored = load_tensors(model)
    found = load_file(exported / "model.safetensors")
    for layer in range(3):
        theirs, ours = f"block.{layer}", f"model.layers.{layer}"
        for number, name in ((1, "gate_up_proj"), (2, "down_proj")):
            for part in ("blocks", "scales"):
                expected = stored.pop(f"{ours}.mlp.experts.{name}_{part}")
                assert torch.equal(found.pop(f"{theirs}.mlp.mlp{number}_weight.{part}"), expected)
            bias = stored.pop(f"{ours}.mlp.experts.{name}_bias")
            assert torch.equal(found.pop(f"{theirs}.mlp.mlp{number}_bias"), bias)
        for part in ("weight", "bias"):
            attention = [stored.pop(f"{ours}.self_attn.{name}_proj.{part}") for name in "qkv"]
            assert torch.equal(found.pop(f"{theirs}.attn.qkv.{part}"), torch.cat(attention))
    rest = [stored[name].flatten() for name in sorted(stored)]
    assert sum(tensor.numel() for tensor in rest) == sum(t.numel() for t in found.values())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_config_has_only_the_fields_of_the_reference(exported: Path) -> None:
    from gpt_oss.torch.model import ModelConfig

    config = json.loads((exported / "config.json").read_text())
    assert config.keys() == ModelConfig.__dataclass_fields__.keys()
    assert ModelConfig(**config).num_experts == 8


def test_the_serving_instructions_name_the_folder(exported: Path) -> None:
    text = (exported / "serve.md").read_text()
    assert f"gpt_oss.chat --backend torch {exported}" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rms_norm_eps": 1e-6}, "fixes this to 1e-05"),
        ({"truncate": True}, "truncate: the reference implementation fixes this to False"),
        ({"layer_types": ["full_attention"] * 3}, "alternates sliding and full attention"),
    ],
)
def test_settings_that_the_reference_fixes(
    model: Path, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    assert message in refusal(
        linked_copy(model, tmp_path / "m", **values), tmp_path / "o", "openai"
    )


def test_what_it_cannot_hold_is_refused(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_stock_adapter(model, adapter)
    text = refusal(model, tmp_path / "o", "openai", adapter=str(adapter))
    assert "to=openai carries no adapter" in text
    assert f"gptoss-ft merge base={model} adapter={adapter}" in text


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dense`, a merge to bfloat16, and `apart`, one with its experts beside it."""
    folder = tmp_path_factory.mktemp("merges")
    write_small(folder / "base")
    write_stock_adapter(folder / "base", folder / "adapter")
    merge_to(folder / "base", folder / "adapter", folder / "dense", "bf16")
    merge_to(folder / "base", folder / "adapter", folder / "apart", "mxfp4")
    return folder


def test_dense_experts_and_another_tokenizer(merges: Path, tmp_path: Path) -> None:
    """Both are said at once."""
    model = linked_copy(merges / "dense", tmp_path / "model")
    (model / "tokenizer.json").unlink()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "added_tokens": [
            {"id": token, "content": name, "special": True, **flags}
            for token, name in SPECIAL_NAMES.items()
        ],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = refusal(model, tmp_path / "o", "openai")
    assert "needs MXFP4 experts" in text
    assert "merge with to=mxfp4" in text
    assert "this tokenizer is not Harmony's" in text


def test_experts_beside_the_checkpoint_are_not_left_out(merges: Path, tmp_path: Path) -> None:
    text = refusal(merges / "apart", tmp_path / "o", "openai")
    assert "would leave out what was trained in the experts" in text
    assert f"to=vllm adapter={merges / 'apart/expert_adapter'}" in text
