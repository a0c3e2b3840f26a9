"""Adapter folders: stock PEFT's are read as PEFT reads them, broken ones are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from stock import ATTENTION, EXPERTS, load_stock, write_stock_adapter

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import Adapter, LoraHeaders, open_adapter
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.errors import AdapterError
from gptoss_ft.model.tiny import TinyOptions, write_tiny

PREFIX = "base_model.model.model.layers"
RANK, EXPERT_COUNT, HIDDEN, INTERMEDIATE = 3, 4, 64, 32
SMALL = TinyOptions(
    layers=2,
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    heads=2,
    kv_heads=1,
    experts=EXPERT_COUNT,
    experts_per_token=2,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("small") / "model"
    write_tiny(out, SMALL)
    return open_checkpoint(out)


def _tensors() -> dict[str, torch.Tensor]:
    """LoRA of rank 3 on q_proj of layer 0 and on the experts of layer 1, by hand."""
    experts = f"{PREFIX}.1.mlp.experts"
    rows = EXPERT_COUNT * RANK
    return {
        f"{PREFIX}.0.self_attn.q_proj.lora_A.weight": torch.ones(RANK, HIDDEN),
        f"{PREFIX}.0.self_attn.q_proj.lora_B.weight": torch.ones(128, RANK),
        f"{experts}.base_layer.lora_A.weight": torch.ones(rows, HIDDEN),
        f"{experts}.base_layer.lora_B.weight": torch.ones(2 * INTERMEDIATE, rows),
        f"{experts}.lora_A.weight": torch.ones(rows, INTERMEDIATE),
        f"{experts}.lora_B.weight": torch.ones(HIDDEN, rows),
    }


def _write(
    folder: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    trained: dict[str, torch.Tensor] | None = None,
    info: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Writes an adapter by hand; `config` overrides keys of a sound adapter_config.json."""
    folder.mkdir(exist_ok=True)
    sound = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none"}
    sound |= {"target_modules": ["layers.0.self_attn.q_proj"]}
    sound |= {"target_parameters": [f"layers.1.{name}" for name in EXPERTS]}
    (folder / "adapter_config.json").write_text(json.dumps(sound | config))
    save_file(_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    if trained is not None:
        save_file(trained, folder / "trained_tensors.safetensors")
    if info is not None:
        (folder / "gptoss_ft.json").write_text(json.dumps(info))
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        open_adapter(folder)
    return str(caught.value)


def _misfit(folder: Path, checkpoint: Checkpoint) -> str:
    with pytest.raises(AdapterError) as caught:
        check_adapter(open_adapter(folder), checkpoint)
    return str(caught.value)


def _delta(update: LoraHeaders) -> torch.Tensor:
    """The dense update in the orientation of stock transformers, whose experts are transposed."""
    A, B = update.read()
    delta = update.scaling * (B @ A)
    return delta.transpose(1, 2) if update.is_experts else delta


def test_stock_adapter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    deltas = write_stock_adapter(checkpoint.path, tmp_path / "adapter", r=5, lora_alpha=15)
    adapter = open_adapter(tmp_path / "adapter")
    assert adapter.base_fingerprint is None and adapter.kinds == () and adapter.trained == {}
    assert adapter.path == tmp_path / "adapter" and adapter.config["r"] == 5
    assert {file.name for file in adapter.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    stems = {f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ATTENTION}
    stems |= {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in EXPERTS}
    assert adapter.updates.keys() == stems
    for stem, update in adapter.updates.items():
        assert (update.stem, update.rank, update.scaling) == (stem, 5, 3.0)
        assert update.is_experts == ("experts" in stem)
        dense = deltas[stem if update.is_experts else f"{stem}.weight"]
        torch.testing.assert_close(_delta(update), dense, rtol=1e-4, atol=1e-7)
    A, B = adapter.updates["model.layers.0.mlp.experts.gate_up_proj"].read()
    assert A.shape == (4, 5, 64) and B.shape == (4, 64, 5) and B.is_contiguous()
    check_adapter(adapter, checkpoint)


def test_ranks_and_scalings_equal_pefts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Against the `r` and `scaling` of PEFT's own layers, for patterns of every form.

    PEFT sorts the patterns when it saves them, and the first match wins: what counts is the model
    that PEFT loads from the folder.
    """
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=ATTENTION,
        target_parameters=EXPERTS,
        rank_pattern={r"layers\.1\..*_proj": 3, "mlp.experts.down_proj": 5, "proj": 9, "q_proj": 2},
        alpha_pattern={"model.layers.0.self_attn.k_proj": 1, "experts.gate_up_proj": 7, "_proj": 8},
    )
    get_peft_model(load_stock(checkpoint.path), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(load_stock(checkpoint.path), tmp_path)
    expected = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "scaling") and hasattr(module, "lora_A"):
            stem = name.replace(".base_layer", "")
            stem += f".{module.parameter_name}" if hasattr(module, "parameter_name") else ""
            expected[stem] = (module.r["default"], pytest.approx(module.scaling["default"]))
    adapter = open_adapter(tmp_path)
    found = {stem: (update.rank, update.scaling) for stem, update in adapter.updates.items()}
    assert found == expected
    assert len({rank for rank, _ in found.values()}) == 4, "the patterns match too little"
    check_adapter(adapter, checkpoint)


def test_layout_of_experts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Experts major in the rows of A, fastest in the columns of B."""
    tensors = _tensors()
    rows = EXPERT_COUNT * RANK
    experts = f"{PREFIX}.1.mlp.experts"
    tensors[f"{experts}.lora_A.weight"] = (
        torch.arange(rows).float()[:, None].repeat(1, INTERMEDIATE)
    )
    tensors[f"{experts}.lora_B.weight"] = torch.arange(rows).float()[None].repeat(HIDDEN, 1)
    update = open_adapter(_write(tmp_path, tensors)).updates["model.layers.1.mlp.experts.down_proj"]
    A, B = update.read()
    assert A[2, :, 0].tolist() == [6, 7, 8]
    assert B[2, 0].tolist() == [2, 6, 10]
    assert update.scaling == 2.0


def test_low_precision_factors_are_read_as_float32(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in _tensors().items()}
    for update in open_adapter(_write(tmp_path, tensors)).updates.values():
        assert [factor.dtype for factor in update.read()] == [torch.float32] * 2


def test_our_own_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    trained = {"model.layers.0.self_attn.sinks": torch.ones(2), "model.norm.weight": torch.ones(64)}
    info = {"format": 1, "kinds": ["attention", "experts"], "version": "0"}
    info["base_fingerprint"] = fingerprint(checkpoint)
    adapter = open_adapter(_write(tmp_path, trained=trained, info=info))
    assert adapter.kinds == ("attention", "experts")
    assert adapter.base_fingerprint == fingerprint(checkpoint)
    assert adapter.trained.keys() == trained.keys()
    assert len(adapter.files) == 4
    check_adapter(adapter, checkpoint)


def test_trained_tensors_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    trained = {"model.layers.1.mlp.router.weight": torch.ones(4, 64)}
    nothing = {"target_modules": [], "target_parameters": None}
    adapter = open_adapter(_write(tmp_path, tensors={}, trained=trained, **nothing))
    assert adapter.updates == {}
    check_adapter(adapter, checkpoint)
    (tmp_path / "trained_tensors.safetensors").unlink()
    assert "the adapter holds no tensor" in _refusal(tmp_path)


# What `open_adapter` refuses.


def test_missing_folder_and_files(tmp_path: Path) -> None:
    text = _refusal(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: there is no adapter folder here" in text
    text = _refusal(tmp_path)
    assert f"{tmp_path}: adapter_config.json is missing" in text
    assert f"{tmp_path}: adapter_model.safetensors is missing" in text


def test_pickled_adapter(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    text = _refusal(tmp_path)
    assert "a pickle can run any code" in text and "safe_serialization=True" in text


def test_broken_files(tmp_path: Path) -> None:
    _write(tmp_path, trained={}, info={})
    (tmp_path / "adapter_config.json").write_text("{")
    (tmp_path / "gptoss_ft.json").write_text("[1]")
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[:-1])
    (tmp_path / "trained_tensors.safetensors").write_bytes(b"")
    text = _refusal(tmp_path)
    assert "adapter_config.json is not valid JSON" in text
    assert "gptoss_ft.json is not a JSON object" in text
    for name in ("adapter_model", "trained_tensors"):
        where = tmp_path / f"{name}.safetensors"
        assert f"{where}: this is not a whole safetensors file" in text


@pytest.mark.parametrize(
    ("config", "where", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type", "this is not a LoRA adapter"),
        ({"use_dora": True}, "use_dora", "not plain LoRA"),
        ({"lora_bias": True}, "lora_bias", "not plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save", "not plain LoRA"),
        ({"bias": "lora_only"}, "bias", "biases trained by PEFT are not read"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights", "changes the base"),
        ({"r": 0}, "r", "must be a whole number from 1"),
        ({"r": 2.5}, "r", "must be a whole number from 1"),
        ({"lora_alpha": None}, "lora_alpha", "must be a number"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern.q_proj", "must be a whole number"),
        ({"alpha_pattern": {"q_(proj": 8}}, "alpha_pattern", "not a regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern", "this is not an object"),
    ],
)
def test_settings(tmp_path: Path, config: dict[str, Any], where: str, message: str) -> None:
    text = _refusal(_write(tmp_path, **config))
    assert f"{tmp_path / 'adapter_config.json'}: {where}: " in text
    assert message in text


def test_settings_that_are_plain_lora(tmp_path: Path) -> None:
    for init in (True, False, "gaussian", "eva", "orthogonal"):
        open_adapter(_write(tmp_path, init_lora_weights=init, lora_dropout=0.1))


def test_format_of_another_version(tmp_path: Path) -> None:
    text = _refusal(_write(tmp_path, info={"format": 2}))
    assert "written in another format" in text and "found: 2" in text


def test_lonely_and_unknown_tensors(tmp_path: Path) -> None:
    tensors = _tensors()
    del tensors[f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"]
    del tensors[f"{PREFIX}.1.mlp.experts.base_layer.lora_A.weight"]
    dora = f"{PREFIX}.0.self_attn.q_proj.lora_magnitude_vector"
    embedding = "base_model.model.model.embed_tokens.lora_embedding_A"
    deep = f"{PREFIX}.1.mlp.experts.base_layer.base_layer.lora_A.weight"
    tensors |= {dora: torch.ones(1), embedding: torch.ones(1, 1), deep: torch.ones(1, 1)}
    text = _refusal(_write(tmp_path, tensors))
    assert f"{PREFIX}.0.self_attn.q_proj.lora_A.weight: lora_A has no lora_B" in text
    assert f"{PREFIX}.1.mlp.experts.base_layer.lora_B.weight: lora_B has no lora_A" in text
    for name in (dora, embedding, deep):
        assert f"{name}: this adapter tensor is not understood" in text


@pytest.mark.parametrize("target_parameters", [None, [], ["mlp.experts.gate_up_proj_bias"]])
def test_experts_that_the_config_does_not_name(
    tmp_path: Path, target_parameters: list[str] | None
) -> None:
    text = _refusal(_write(tmp_path, target_parameters=target_parameters))
    assert f"{PREFIX}.1.mlp.experts.lora_A.weight: this adapter tensor is not understood" in text
    assert "q_proj" not in text


# What `check_adapter` refuses.


def test_another_base(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = _misfit(_write(tmp_path, info={"format": 1, "base_fingerprint": "sha256:1"}), checkpoint)
    assert f"{tmp_path}: the adapter was trained on another base" in text
    assert "trained on sha256:1, but" in text and fingerprint(checkpoint) in text


def test_tensors_that_the_base_lacks(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = {name.replace("layers.1.", "layers.9."): t for name, t in _tensors().items()}
    trained = {
        "model.layers.9.self_attn.sinks": torch.ones(2),
        "model.layers.0.mlp.experts.down_proj_scales": torch.ones(4, 64, 1),
    }
    targets = [f"layers.9.{name}" for name in EXPERTS]
    text = _misfit(_write(tmp_path, tensors, trained, target_parameters=targets), checkpoint)
    assert f"{PREFIX}.9.mlp.experts.base_layer.lora_A.weight: the base has no matrix for" in text
    assert "no model.layers.9.mlp.experts.gate_up_proj_blocks or" in text
    assert "model.layers.9.self_attn.sinks: the base has no tensor that this could replace" in text
    assert "down_proj_scales: the base has no tensor that this could replace" in text


def _check(folder: Path, checkpoint: Checkpoint) -> Adapter:
    adapter = open_adapter(folder)
    check_adapter(adapter, checkpoint)
    return adapter


def test_wrong_rank_shape_and_expert_count(checkpoint: Checkpoint, tmp_path: Path) -> None:
    _check(_write(tmp_path), checkpoint)
    text = _misfit(_write(tmp_path, rank_pattern={"q_proj": 2}), checkpoint)
    assert f"{PREFIX}.0.self_attn.q_proj.lora_A.weight: an adapter tensor has the wrong" in text
    assert "[3, 64], where a matrix with 64 inputs, 128 outputs and rank 2" in text
    assert "need [2, 64]" in text and "need [128, 2]" in text

    tensors = _tensors()
    experts = f"{PREFIX}.1.mlp.experts"
    tensors[f"{experts}.lora_A.weight"] = torch.ones(8 * RANK, INTERMEDIATE)
    tensors[f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"] = torch.ones(64, RANK)
    text = _misfit(_write(tmp_path, tensors), checkpoint)
    assert f"{experts}.lora_A.weight: an adapter tensor has the wrong shape" in text
    assert "[24, 32], where 4 experts with 32 inputs, 64 outputs and rank 3" in text
    assert "[64, 3], where a matrix with 64 inputs, 128 outputs" in text
    assert text.count("wrong shape") == 2


def test_wrong_trained_tensors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    trained = {
        "model.layers.0.self_attn.sinks": torch.ones(3),
        "model.norm.weight": torch.ones(64, dtype=torch.uint8),
        "model.layers.0.self_attn.q_proj.weight": torch.ones(128, 64),
    }
    text = _misfit(_write(tmp_path, trained=trained), checkpoint)
    assert "sinks: a trained tensor has the wrong shape or dtype" in text
    assert "F32 [3] in trained_tensors.safetensors, [2] in the base" in text
    assert "model.norm.weight: a trained tensor has the wrong shape or dtype" in text
    assert "q_proj.weight: a tensor has both a LoRA update and a trained value" in text


def test_values_that_are_not_finite(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = _tensors()
    q_proj = f"{PREFIX}.0.self_attn.q_proj.lora_B.weight"
    tensors[q_proj][1, 1] = math.nan
    trained = {"model.norm.weight": torch.full((64,), -math.inf)}
    text = _misfit(_write(tmp_path, tensors, trained), checkpoint)
    assert f"{q_proj}: an adapter tensor holds NaN or infinity" in text
    assert "1 of 384 values in adapter_model.safetensors" in text
    assert "model.norm.weight: an adapter tensor holds NaN or infinity" in text
    assert "64 of 64 values in trained_tensors.safetensors" in text
    assert text.count("NaN") == 2


def test_integer_factors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = {name: tensor.to(torch.uint8) for name, tensor in _tensors().items()}
    text = _misfit(_write(tmp_path, tensors), checkpoint)
    assert text.count("an adapter tensor is not floating point") == 6
