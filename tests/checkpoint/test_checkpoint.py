"""What `open_checkpoint` accepts, every refusal with its message, and the fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import INDEX_NAME, Checkpoint, open_checkpoint, read_header
from gptoss_ft.errors import CheckpointError
from gptoss_ft.model.tiny import TinyOptions, write_tiny

LAYERS_FILE = "model-00000-of-00002.safetensors"
OUTSIDE_FILE = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint; copied, never changed."""
    out = tmp_path_factory.mktemp("original") / "model"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "heads": 2, "kv_heads": 1}
    write_tiny(out, TinyOptions(layers=2, experts=2, experts_per_token=1, **sizes))
    return out


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage; weights are linked, so replace files instead of writing into them."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", INDEX_NAME):
        shutil.copy(original / name, copy)
    for name in (LAYERS_FILE, OUTSIDE_FILE):
        (copy / name).hardlink_to(original / name)
    return copy


def _refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def _replace(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the tensors of the layers' shard."""
    file = folder / LAYERS_FILE
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def _edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_headers_describe_the_bytes(original: Path) -> None:
    checkpoint = open_checkpoint(original)
    expected = {n: t for file in original.glob("*.safetensors") for n, t in load_file(file).items()}
    assert checkpoint.tensors.keys() == expected.keys()
    assert checkpoint.is_packed
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())
    for name, tensor in expected.items():
        info = checkpoint.tensors[name]
        assert (info.name, info.shape, info.nbytes) == (name, tuple(tensor.shape), tensor.nbytes)
        assert info.dtype == {torch.bfloat16: "BF16", torch.uint8: "U8"}[tensor.dtype]
        with info.file.open("rb") as stream:
            stream.seek(info.offset)
            assert stream.read(info.nbytes) == tensor.view(torch.uint8).numpy().tobytes()
        assert torch.equal(checkpoint.read(name), tensor)


def test_headers_come_in_the_order_of_the_file(original: Path) -> None:
    infos = read_header(original / LAYERS_FILE)
    ends = [info.offset + info.nbytes for info in infos]
    assert [info.offset for info in infos[1:]] == ends[:-1]
    assert ends[-1] == (original / LAYERS_FILE).stat().st_size


def _resharded(checkpoint: Checkpoint, out: Path, shards: int) -> Path:
    out.mkdir()
    shutil.copy(checkpoint.path / "config.json", out)
    names = sorted(checkpoint.tensors, key=lambda name: name[::-1])
    weight_map = {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"part{number}.safetensors"
        part = {name: checkpoint.read(name) for name in names[number::shards]}
        save_file(part, out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        (out / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return out


def test_fingerprint_is_stable_under_resharding(original: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(original)
    found = fingerprint(checkpoint)
    assert found.startswith("sha256:") and len(found) == 7 + 64
    for shards in (1, 5):
        moved = open_checkpoint(_resharded(checkpoint, tmp_path / str(shards), shards))
        assert fingerprint(moved) == found


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.sinks",
        "model.layers.0.mlp.experts.gate_up_proj_blocks",
        "model.layers.1.mlp.experts.down_proj_scales",
        "model.layers.0.input_layernorm.weight",
    ],
)
def test_fingerprint_tells_other_weights(original: Path, folder: Path, name: str) -> None:
    _replace(folder, lambda tensors: tensors[name].view(torch.uint8).flatten()[-1].add_(1))
    assert fingerprint(open_checkpoint(folder)) != fingerprint(open_checkpoint(original))


def test_no_folder(tmp_path: Path) -> None:
    text = _refusal(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: there is no model folder here" in text
    assert "config.json and the *.safetensors files" in text


def test_config_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert f"{folder}: config.json is missing" in _refusal(folder)


def test_config_broken(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    text = _refusal(folder)
    assert "config.json is not valid JSON" in text and "line 1 column" in text


def test_not_gpt_oss(folder: Path) -> None:
    _edit_config(folder, model_type="llama")
    text = _refusal(folder)
    assert "this is not a gpt-oss checkpoint" in text and "found: 'llama'" in text


def test_no_weights(folder: Path) -> None:
    (folder / INDEX_NAME).unlink()
    assert "neither model.safetensors.index.json nor model.safetensors" in _refusal(folder)


def test_missing_shard(folder: Path) -> None:
    (folder / OUTSIDE_FILE).unlink()
    text = _refusal(folder)
    assert f"{folder / OUTSIDE_FILE}: a shard named in the index is missing" in text


def test_truncated_shards(folder: Path, original: Path) -> None:
    for name in (LAYERS_FILE, OUTSIDE_FILE):
        (folder / name).unlink()
        (folder / name).write_bytes((original / name).read_bytes()[:-10])
    text = _refusal(folder)
    for name in (LAYERS_FILE, OUTSIDE_FILE):
        assert f"{folder / name}: this shard is not a whole safetensors file" in text


def test_empty_shard(folder: Path) -> None:
    (folder / LAYERS_FILE).unlink()
    (folder / LAYERS_FILE).touch()
    assert "this shard is not a whole safetensors file" in _refusal(folder)


def test_every_wrong_tensor_is_named(folder: Path) -> None:
    layer = "model.layers.0"

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{layer}.self_attn.sinks"]
        tensors[f"{layer}.self_attn.q_proj.weight"] = torch.zeros(3, 5, dtype=torch.bfloat16)
        tensors["model.layers.7.extra"] = torch.zeros(1)
        scales = f"{layer}.mlp.experts.down_proj_scales"
        tensors[scales] = tensors[scales].float()

    _replace(folder, damage)
    text = _refusal(folder)
    assert f"{layer}.self_attn.sinks: a tensor is missing" in text
    assert f"{layer}.self_attn.q_proj.weight: a tensor has the wrong shape" in text
    assert "[3, 5] in model-00000-of-00002.safetensors, where config.json says [128, 32]" in text
    assert "model.layers.7.extra: a tensor does not belong to gpt-oss" in text
    assert f"{layer}.mlp.experts.down_proj_scales: a tensor has the wrong dtype" in text


def test_config_of_another_size(folder: Path) -> None:
    _edit_config(folder, num_local_experts=4)
    text = _refusal(folder)
    assert "model.layers.1.mlp.router.weight: a tensor has the wrong shape" in text
    assert "[2, 32] in model-00000-of-00002.safetensors, where config.json says [4, 32]" in text


def test_dense_checkpoint(folder: Path) -> None:
    def dense(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            prefix = f"model.layers.{layer}.mlp.experts"
            for name, shape in (("gate_up_proj", (2, 32, 64)), ("down_proj", (2, 32, 32))):
                del tensors[f"{prefix}.{name}_blocks"], tensors[f"{prefix}.{name}_scales"]
                tensors[f"{prefix}.{name}"] = torch.zeros(shape, dtype=torch.bfloat16)

    _replace(folder, dense)
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.is_packed
