"""Merging: every refusal comes before a byte is written, and names the tensor."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from merges import SMALL, Case, edit_tensor, full, lossless, merge_to, refusal, small
from safetensors.torch import load_file, save_file

from gptoss_ft.checkpoint.digests import fingerprint, tensor_digests
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.errors import MergeError
from gptoss_ft.merge import plan
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.model.tiny import write_tiny

__all__ = ["full", "lossless", "small"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder / "merged"


def test_nearest_is_refused_and_says_what_keeps_more(small: Path, full: Case, out: Path) -> None:
    text = refusal(out, base=small, adapter=full.adapter, experts="nearest")
    assert "rounding expert updates to the nearest 4-bit value erases" in text
    assert "updates of 4 expert projections" in text
    ways = ["experts=adapter", "experts=gptq calibration=FILE", "to=bf16", "lossless", "force=true"]
    places = [text.index(way) for way in ways]
    assert places[:3] == sorted(places[:3])
    assert f"gptoss-ft generate model={small} adapter={full.adapter}" in text


def test_choices_that_do_not_suit_the_adapter(
    small: Path, full: Case, lossless: Case, out: Path
) -> None:
    text = refusal(out, base=small, adapter=full.adapter, experts="copy")
    assert "experts=copy would lose expert updates" in text
    for experts in ("adapter", "nearest"):
        text = refusal(out, base=small, adapter=lossless.adapter, experts=experts)
        assert "the adapter changes no expert" in text


def test_dense_base_to_mxfp4_is_refused(
    small: Path, lossless: Case, out: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "dense"
    merge_to(small, lossless.adapter, dense, "bf16")
    text = refusal(out, base=dense, adapter=lossless.adapter, to="mxfp4")
    assert "a dense base cannot be merged to MXFP4" in text


def test_float32_base_is_refused(small: Path, lossless: Case, out: Path, tmp_path: Path) -> None:
    base = tmp_path / "float32"
    shutil.copytree(small, base)
    file = base / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file, metadata={"format": "pt"})
    text = refusal(out, base=base, adapter=lossless.adapter)
    assert "model.norm.weight: only bfloat16 checkpoints can be merged" in text
    assert "F32" in text


def test_all_problems_at_once(tmp_path: Path, out: Path) -> None:
    text = refusal(out, base=tmp_path / "no", adapter=tmp_path / "neither", to="int4")
    assert "to: unknown target\n    found: 'int4'" in text
    assert f"{tmp_path / 'no'}: there is no model folder here" in text
    assert f"{tmp_path / 'neither'}: there is no adapter folder here" in text


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"base": "", "adapter": "", "out": ""}, ["base", "adapter", "out"]),
        ({"max_shard_gb": 0}, ["max_shard_gb"]),
        ({"to": "int4"}, ["to"]),
        ({"experts": "round"}, ["experts"]),
        ({"to": "bf16", "experts": "nearest"}, ["experts"]),
        ({"experts": "gptq"}, ["calibration"]),
        ({"calibration": "rows.jsonl"}, ["calibration"]),
        ({"calibration_rows": 0}, ["calibration_rows"]),
        ({"adapter": ["a", "b"], "weights": [1.0]}, ["weights"]),
        ({"weights": [math.nan]}, ["weights"]),
        ({"weights": [0.0]}, ["weights"]),
        ({"adapter": ["a", "a"]}, ["adapter"]),
        ({"adapter": ["a", "b"], "weights": [1.0, -0.5]}, []),
    ],
)
def test_option_values(settings: dict[str, object], where: list[str]) -> None:
    options = MergeOptions(**{"base": "a", "adapter": "b", "out": "c", **settings})
    found = [problem.where for problem in options.problems("merge")]
    assert found == [f"merge.{name}" for name in where]
    if where:
        with pytest.raises(MergeError):
            plan_merge(options)


def test_out_in_the_way(small: Path, lossless: Case, out: Path) -> None:
    adapter = lossless.adapter
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    assert "the folder is not empty" in refusal(out, base=small, adapter=adapter)
    assert (out / "mine.txt").read_text() == "keep me"
    text = refusal(out / "mine.txt", base=small, adapter=adapter)
    assert "a file is in the way" in text
    text = refusal(small, base=small, adapter=adapter)
    assert "out is the base itself" in text
    spelt_otherwise = adapter / ".." / adapter.name
    text = refusal(spelt_otherwise, base=small, adapter=adapter)
    assert "out is the adapter itself" in text


def test_empty_out_folder_is_fine(small: Path, lossless: Case, out: Path) -> None:
    out.mkdir()
    merge_to(small, lossless.adapter, out, "mxfp4")
    assert (out / "manifest.json").is_file()


def test_too_little_disk(
    small: Path, lossless: Case, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100_000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    text = refusal(out, base=small, adapter=lossless.adapter)
    assert "the disk has too little space" in text
    assert "0.000 GB free" in text


def test_adapter_of_another_base(small: Path, lossless: Case, out: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(lossless.adapter, adapter)
    info = {"format": 1, "kinds": ["lossless"], "base_fingerprint": "sha256:abc"}
    (adapter / "gptoss_ft.json").write_text(json.dumps(info))
    text = refusal(out, base=small, adapter=adapter)
    assert "the adapter was trained on another base" in text
    assert "trained on sha256:abc" in text
    assert fingerprint(open_checkpoint(small)) in text


def test_another_base_is_told_by_its_tensors(
    small: Path, lossless: Case, out: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(lossless.adapter, adapter)
    tensors = tensor_digests(open_checkpoint(small))
    changed = "model.layers.1.self_attn.q_proj.weight"
    info = {"format": 1, "kinds": ["lossless"], "base_fingerprint": "sha256:abc"}
    info |= {"base_tensors": {**tensors, changed: "0" * 16}}
    (adapter / "gptoss_ft.json").write_text(json.dumps(info))
    text = refusal(out, base=small, adapter=adapter)
    assert f"differing tensors (1): {changed}" in text


@pytest.mark.parametrize("to", ["bf16", "mxfp4"])
def test_nan_scales(small: Path, full: Case, out: Path, tmp_path: Path, to: str) -> None:
    """Wherever experts are unpacked; what is copied is nobody's business but the base's."""

    def spoil(scales: torch.Tensor) -> None:
        scales[3, 1, 0] = scales[1, 2, 0] = 255

    name = "model.layers.1.mlp.experts.down_proj_scales"
    base = _changed_base(small, tmp_path, name, spoil)
    settings = {"experts": "nearest", "force": True} if to == "mxfp4" else {}
    text = refusal(out, base=base, adapter=full.adapter, to=to, **settings)
    for expert in (1, 3):
        assert (
            f"{name}: the base holds NaN scales\n    found: scale byte 255 in expert {expert}"
            in text
        )
    if to == "mxfp4":
        merge_to(base, full.adapter, out, to, experts="adapter")


def _changed_base(small: Path, tmp_path: Path, name: str, change: object) -> Path:
    base = tmp_path / "base"
    shutil.copytree(small, base)
    edit_tensor(base, name, change)
    return base


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def _changed_adapter(case: Case, tmp_path: Path, change: object) -> Path:
    """A copy of an adapter with a function applied to its tensors."""
    adapter = tmp_path / "changed"
    shutil.copytree(case.adapter, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return adapter


def _changed_config(case: Case, tmp_path: Path, **settings: object) -> Path:
    adapter = tmp_path / "changed"
    shutil.copytree(case.adapter, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
    return adapter


def _drop_both(tensors: dict[str, torch.Tensor]) -> None:
    for factor in "AB":
        del tensors[KEY.format(factor)]


def _add_layer(tensors: dict[str, torch.Tensor]) -> None:
    for factor in "AB":
        key = KEY.format(factor)
        tensors[key.replace("layers.1.", "layers.7.")] = tensors[key].clone()


def _one_rank_less(tensors: dict[str, torch.Tensor]) -> None:
    tensors[KEY.format("A")] = tensors[KEY.format("A")][:-1].clone()


def _one_expert_less(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if "layers.0.mlp.experts.lora_A" in key)
    tensors[key] = tensors[key][:-4].clone()


def _not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[KEY.format("B")][3, 1] = math.nan


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_drop_both, ["model.layers.1.self_attn.q_proj: the adapter lacks the update"]),
        (
            lambda tensors: tensors.pop(KEY.format("B")),
            [f"{KEY.format('A')}: lora_A has no lora_B"],
        ),
        (_add_layer, ["layers.7.self_attn.q_proj.lora_A.weight: the base has no matrix"]),
        (_one_rank_less, [f"{KEY.format('A')}: an adapter tensor has the wrong shape", "[3, 64]"]),
        (_one_expert_less, ["layers.0.mlp.experts.lora_A", "4 experts with 32 inputs"]),
        (_not_a_number, [f"{KEY.format('B')}: an adapter tensor holds NaN", "1 of 512 values"]),
    ],
)
def test_adapter_tensors_that_do_not_fit(
    small: Path, full: Case, out: Path, tmp_path: Path, change: object, parts: list[str]
) -> None:
    text = refusal(out, base=small, adapter=_changed_adapter(full, tmp_path, change), to="bf16")
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"use_dora": True}, ["adapter_config.json: use_dora", "not plain LoRA"]),
        ({"r": 5}, ["the wrong shape", "q_proj.lora_A.weight", "rank 5"]),
        ({"rank_pattern": {"k_proj": 2}}, ["the wrong shape", "k_proj.lora_B.weight", "rank 2"]),
    ],
)
def test_adapter_settings_that_do_not_fit(
    small: Path,
    full: Case,
    out: Path,
    tmp_path: Path,
    settings: dict[str, object],
    parts: list[str],
) -> None:
    text = refusal(out, base=small, adapter=_changed_config(full, tmp_path, **settings))
    for part in parts:
        assert part in text, text


def test_dora_tensors(small: Path, full: Case, out: Path, tmp_path: Path) -> None:
    """Also when the setting was lost and only the tensors tell."""
    name = KEY.format("magnitude_vector")
    adapter = _changed_adapter(
        full, tmp_path, lambda tensors: tensors.update({name: torch.ones(4)})
    )
    text = refusal(out, base=small, adapter=adapter)
    assert f"{name}: this adapter tensor is not understood" in text


def test_a_base_with_other_experts(full: Case, out: Path, tmp_path: Path) -> None:
    write_tiny(tmp_path / "base", replace(SMALL, experts=8))
    text = refusal(out, base=tmp_path / "base", adapter=full.adapter)
    assert "layers.0.mlp.experts.lora_A.weight: an adapter tensor has the wrong shape" in text
    assert "8 experts with" in text


@pytest.mark.parametrize("layers", [1, 3])
def test_a_base_with_another_depth(full: Case, out: Path, tmp_path: Path, layers: int) -> None:
    write_tiny(tmp_path / "base", replace(SMALL, layers=layers))
    text = refusal(out, base=tmp_path / "base", adapter=full.adapter)
    if layers == 1:
        assert "layers.1.self_attn.q_proj.lora_A.weight: the base has no matrix" in text
    else:
        assert "model.layers.2.self_attn.q_proj: the adapter lacks the update" in text


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def _garble(file: Path) -> None:
    file.write_bytes(b"\xff" * 4096)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (_cut, "it should hold model.layers.1.mlp.experts.gate_up_proj_blocks and 1 more"),
        (_garble, "it should hold model.layers.0.input_layernorm.weight and 37 more"),
    ],
)
def test_damaged_shards(
    small: Path, full: Case, out: Path, tmp_path: Path, damage: object, part: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(small, base)
    damage(base / "model-00000-of-00002.safetensors")  # type: ignore[operator]
    text = refusal(out, base=base, adapter=full.adapter)
    assert "model-00000-of-00002.safetensors: this shard is not a whole safetensors file" in text
    assert part in text


def test_damaged_adapter(small: Path, full: Case, out: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(full.adapter, adapter)
    _cut(adapter / "adapter_model.safetensors")
    text = refusal(out, base=small, adapter=adapter)
    assert "adapter_model.safetensors: this is not a whole safetensors file" in text


def test_a_target_that_cannot_be_written_to(small: Path, full: Case) -> None:
    """/proc refuses new folders to everyone."""
    with pytest.raises(MergeError) as caught:
        plan_merge(MergeOptions(str(small), str(full.adapter), "/proc/merged"))
    assert "out=/proc/merged: the target cannot be written to" in str(caught.value)


def test_problems_of_every_adapter(small: Path, full: Case, out: Path, tmp_path: Path) -> None:
    broken = _changed_adapter(full, tmp_path, _not_a_number)
    text = refusal(out, base=small, adapter=[broken, full.adapter, tmp_path / "none"], to="bf16")
    assert "holds NaN" in text and f"{tmp_path / 'none'}: there is no adapter folder" in text


def test_calibration_rows_are_read_first(
    small: Path, full: Case, out: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    settings = {"experts": "gptq", "calibration": str(file)}
    text = refusal(out, base=small, adapter=full.adapter, **settings)
    assert f"calibration={file}: there is no such file" in text
    file.write_text('{"messages": "none"}\n')
    text = refusal(out, base=small, adapter=full.adapter, **settings)
    assert f"{file}:1" in text


def test_unconsumed_adapter_tensors_are_a_problem(
    small: Path, full: Case, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that forgets part of the adapter is caught before anything is written."""
    everything = plan._plan_tensors

    def forgetful(*args: object) -> list[object]:
        return [tensor for tensor in everything(*args) if "layers.1.self_attn.q" not in tensor.name]

    monkeypatch.setattr(plan, "_plan_tensors", forgetful)
    text = refusal(out, base=small, adapter=full.adapter, to="bf16")
    for factor in "AB":
        name = f"base_model.model.model.layers.1.self_attn.q_proj.lora_{factor}.weight"
        assert f"{name}: an adapter tensor would not be merged exactly once" in text
