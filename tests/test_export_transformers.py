"""config.json of derived checkpoints, as transformers reads it, and the files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GptOssConfig

from gptoss_ft.checkpoint.companions import checkpoint_config, copy_companion_files
from gptoss_ft.model.tiny import TinyOptions, tiny_config


@pytest.fixture
def released() -> dict[str, Any]:
    """A config in the released style, with values that differ from every default."""
    config = tiny_config(TinyOptions(experts_per_token=3))
    config["rope_theta"] = 160000
    config["rope_scaling"] = config["rope_scaling"] | {"factor": 16.0}
    return config


@pytest.mark.parametrize("packed", [True, False])
def test_every_key_of_the_base_is_kept(released: dict[str, Any], packed: bool) -> None:
    config = checkpoint_config(released, packed)
    kept = {key for key in released if config.get(key) == released[key]}
    assert kept == released.keys() - (set() if packed else {"quantization_config"})
    assert ("quantization_config" in config) == packed
    added = {"rope_parameters"} | (set() if packed else {"dtype", "torch_dtype"})
    assert config.keys() - released.keys() == added
    assert config["router_aux_loss_coef"] == 0.9
    assert packed or config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_legacy_and_current_names(released: dict[str, Any]) -> None:
    del released["num_experts_per_tok"]
    config = checkpoint_config(released, packed=True)
    assert config["num_experts_per_tok"] == config["experts_per_token"] == 3
    assert config["rope_parameters"] == released["rope_scaling"] | {"rope_theta": 160000}


def _read(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config as transformers understands it."""
    (folder / "config.json").write_text(json.dumps(config))
    return GptOssConfig.from_pretrained(folder).to_dict()


def test_transformers_reads_the_same_model(released: dict[str, Any], tmp_path: Path) -> None:
    base = _read(released, tmp_path)
    assert base["rope_parameters"]["factor"] == 16.0 and base["num_experts_per_tok"] == 3
    assert _read(checkpoint_config(released, packed=True), tmp_path) == base
    dense = _read(checkpoint_config(released, packed=False), tmp_path)
    assert dense.pop("dtype") == "bfloat16"
    del base["quantization_config"], base["dtype"]
    assert {key: dense[key] for key in base} == base
    assert "quantization_config" not in dense


def test_config_saved_by_transformers(released: dict[str, Any], tmp_path: Path) -> None:
    """transformers 5 writes the current names only; readers of the legacy ones get theirs back."""
    current = _read(released, tmp_path)
    for key in ("rope_scaling", "rope_theta", "experts_per_token"):
        current.pop(key, None)
    config = checkpoint_config(current, packed=True)
    for key in ("rope_scaling", "rope_theta", "experts_per_token"):
        assert config[key] == released[key], key
    assert _read(config, tmp_path)["rope_parameters"] == current["rope_parameters"]


def test_companion_files(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir(), out.mkdir()
    names = {"tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"}
    for name in names | {"README.md", "model.safetensors", "config.json"}:
        (base / name).write_text(name)
    copy_companion_files(base, out)
    assert {file.name for file in out.iterdir()} == names
    assert all((out / name).read_text() == name for name in names)
