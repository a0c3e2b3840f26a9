"""Merging: what stock transformers and stock PEFT compute is what the merged checkpoint holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from stock import (
    EXPERTS,
    load_stock,
    load_tensors,
    logits_and_experts,
    set_tensors,
    write_stock_adapter,
    write_trained_tensors,
)

from gptoss_ft.errors import MergeError
from gptoss_ft.files import sha256_file
from gptoss_ft.merge import plan as plan_module
from gptoss_ft.merge.plan import Action, MergeOptions, MergePlan, plan_merge
from gptoss_ft.merge.stream import add_low_rank, merge
from gptoss_ft.model.checkpoint import fingerprint, open_checkpoint, read_header
from gptoss_ft.model.tiny import TinyOptions, write_tiny

SMALL = TinyOptions(
    layers=2,
    hidden_size=64,
    intermediate_size=32,
    heads=2,
    kv_heads=1,
    experts=4,
    experts_per_token=2,
)


@dataclass(frozen=True)
class Case:
    """A random adapter: its folder, what it adds to each weight, the tensors it trains in full."""

    adapter: Path
    deltas: dict[str, torch.Tensor]
    trained: dict[str, torch.Tensor]


def _case(base: Path, adapter: Path, experts: bool) -> Case:
    deltas = write_stock_adapter(base, adapter, experts=experts)
    return Case(adapter, deltas, write_trained_tensors(base, adapter))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller base whose experts are not square, for what needs no logits."""
    out = tmp_path_factory.mktemp("small") / "model"
    write_tiny(out, SMALL)
    return out


@pytest.fixture(scope="module")
def full(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LoRA on attention and experts of the small base, every other small tensor trained."""
    return _case(small, tmp_path_factory.mktemp("full") / "adapter", experts=True)


@pytest.fixture(scope="module")
def lossless(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LoRA on attention of the small base, every other small tensor trained, experts untouched."""
    return _case(small, tmp_path_factory.mktemp("lossless") / "adapter", experts=False)


def _merge(base: Path, adapter: Path, out: Path, to: str, **settings: float) -> MergePlan:
    plan = plan_merge(MergeOptions(str(base), str(adapter), str(out), to=to, **settings))
    result = merge(plan)
    assert result.nbytes == plan.nbytes == sum(t.nbytes for t in load_tensors(out).values())
    return plan


def _assert_rounded(merged: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    """`merged` is the bfloat16 nearest to `exact`, but for float32 noise that may tip a tie."""
    assert merged.dtype == torch.bfloat16
    spacing = torch.exp2(torch.frexp(exact).exponent.float() - 8)
    error = (merged.float() - exact).abs()
    assert (error <= spacing / 2 + 1e-6).all(), name
    assert (merged == exact.to(torch.bfloat16)).float().mean() > 0.999, name


def _assert_parity(base: Path, out: Path, case: Case) -> None:
    """Logits differ from base + adapter as much as rounding alone makes stock's differ."""
    model = load_stock(base)
    base_logits, _ = logits_and_experts(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_tensors(model, case.trained)
    adapted = PeftModel.from_pretrained(model, case.adapter)
    logits, hit = logits_and_experts(adapted)
    assert hit == [8] * 4, "a router left some expert out"

    stock = adapted.merge_and_unload()
    merged = load_tensors(out)
    for name, exact in stock.state_dict().items():
        change = (exact - weights[name]).norm() / weights[name].norm()
        assert change == 0 or change >= 1e-2, name
        if name in merged:
            _assert_rounded(merged[name], exact, name)
    changed = {
        name for name, tensor in stock.state_dict().items() if (tensor != weights[name]).any()
    }
    assert changed == case.deltas.keys() | case.trained.keys()

    state = stock.state_dict()
    set_tensors(stock, {name: tensor.to(torch.bfloat16) for name, tensor in state.items()})
    rounded, _ = logits_and_experts(stock)
    found, hit = logits_and_experts(load_stock(out))
    assert hit == [8] * 4
    rounding = (rounded - logits).norm()
    assert rounding < 0.3 * (logits - base_logits).norm(), "nothing but rounding to be seen"
    assert (found - logits).norm() <= 1.02 * rounding
    assert (found - rounded).norm() <= 0.05 * rounding


def test_bf16_with_experts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    case = _case(tiny_checkpoint, tmp_path / "adapter", experts=True)
    _merge(tiny_checkpoint, case.adapter, tmp_path / "out", "bf16")
    merged, base = load_tensors(tmp_path / "out"), load_tensors(tiny_checkpoint)
    assert len(case.deltas) == 4 * 6
    assert merged.keys() == {
        name.removesuffix("_blocks") for name in base if not name.endswith("_scales")
    }
    _assert_parity(tiny_checkpoint, tmp_path / "out", case)


def test_mxfp4_without_experts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    case = _case(tiny_checkpoint, tmp_path / "adapter", experts=False)
    _merge(tiny_checkpoint, case.adapter, tmp_path / "out", "mxfp4")
    merged, base = load_tensors(tmp_path / "out"), load_tensors(tiny_checkpoint)
    assert merged.keys() == base.keys()
    packed = {name for name in base if name.endswith(("_blocks", "_scales"))}
    assert len(packed) == 4 * 4
    changed = {name for name in base if not _same_bytes(merged[name], base[name])}
    assert changed == case.deltas.keys() | case.trained.keys()
    assert not changed & packed
    _assert_parity(tiny_checkpoint, tmp_path / "out", case)


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_form = a.dtype == b.dtype and a.shape == b.shape
    return same_form and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("to", ["mxfp4", "bf16"])
def test_zero_adapter_changes_no_byte(small: Path, tmp_path: Path, to: str) -> None:
    """Fresh PEFT adapters have B = 0, here negative zeros; trained values are the base's."""
    base_copy = tmp_path / "base"
    shutil.copytree(small, base_copy)
    _negative_zeros(base_copy, "model.layers.1.self_attn.q_proj.weight")
    adapter = tmp_path / "adapter"
    write_stock_adapter(base_copy, adapter, experts=to == "bf16")
    tensors = load_file(adapter / "adapter_model.safetensors")
    zero = {n: -t.abs() * 0.0 if ".lora_B." in n else t for n, t in tensors.items()}
    save_file(zero, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    base = load_tensors(base_copy)
    trained = {
        n: t.float() for n, t in base.items() if "sinks" in n or "norm" in n or "router" in n
    }
    save_file(trained, adapter / "trained_tensors.safetensors")

    plan = _merge(base_copy, adapter, tmp_path / "out", to)

    merged = load_tensors(tmp_path / "out")
    if to == "bf16":
        assert plan.totals()[Action.DEQUANTIZE_ADD]["tensors"] == 4
        base = load_stock(base_copy, torch.bfloat16).state_dict()
        experts = base["model.layers.0.mlp.experts.gate_up_proj"]
        assert (torch.signbit(experts) & (experts == 0)).any(), "no negative zero to keep"
    assert merged.keys() == base.keys()
    assert [name for name in base if not _same_bytes(merged[name], base[name])] == []


def _negative_zeros(folder: Path, name: str) -> None:
    """Makes the first row of a tensor of a checkpoint negative zeros."""
    info = open_checkpoint(folder).tensors[name]
    tensors = load_file(info.file)
    tensors[name][0] = -0.0
    save_file(tensors, info.file, metadata={"format": "pt"})


def test_bf16_without_expert_updates_is_stock_dequantisation(
    small: Path, lossless: Case, tmp_path: Path
) -> None:
    plan = _merge(small, lossless.adapter, tmp_path / "out", "bf16")
    assert plan.totals()[Action.DEQUANTIZE]["tensors"] == 4
    assert Action.DEQUANTIZE_ADD not in plan.totals()
    merged = load_tensors(tmp_path / "out")
    stock = load_stock(small, torch.bfloat16).state_dict()
    for name in [name for name in stock if name.endswith(("gate_up_proj", "down_proj"))]:
        assert _same_bytes(merged[name], stock[name]), name


def test_dense_base(small: Path, full: Case, tmp_path: Path) -> None:
    """A dense base of the same values gives the same merged bytes as the packed one."""
    zero = tmp_path / "zero"
    write_stock_adapter(small, zero, std=0.0)
    dense = tmp_path / "dense"
    _merge(small, zero, dense, "bf16")
    _merge(small, full.adapter, tmp_path / "from_packed", "bf16")
    plan = _merge(dense, full.adapter, tmp_path / "from_dense", "bf16")
    assert plan.totals().keys() == {"copy", "add", "replace"}
    packed, unpacked = load_tensors(tmp_path / "from_packed"), load_tensors(tmp_path / "from_dense")
    assert packed.keys() == unpacked.keys()
    assert [name for name in packed if not _same_bytes(packed[name], unpacked[name])] == []


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"use_rslora": True}, id="rslora"),
        pytest.param(
            {
                "rank_pattern": {"mlp.experts.down_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
                "alpha_pattern": {"k_proj": 32, "model.layers.0.mlp.experts.gate_up_proj": 2},
            },
            id="patterns",
        ),
        pytest.param(
            {"use_rslora": True, "rank_pattern": {".*_proj": 2, "q_proj": 8}},
            id="first-pattern-wins",
        ),
        pytest.param({"target_parameters": [EXPERTS[0]]}, id="gate-up-only"),
        pytest.param({"target_parameters": [EXPERTS[1]]}, id="down-only"),
        pytest.param({"target_modules": [], "target_parameters": EXPERTS}, id="experts-only"),
        pytest.param({"target_parameters": ["router.weight"]}, id="router"),
        pytest.param({"target_modules": ["lm_head"], "experts": False}, id="head"),
    ],
)
def test_ranks_scalings_and_targets_as_in_peft(
    small: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    adapter = tmp_path / "adapter"
    deltas = write_stock_adapter(small, adapter, **settings)
    assert deltas
    _merge(small, adapter, tmp_path / "out", "bf16")
    merged = load_tensors(tmp_path / "out")
    base = load_stock(small, torch.bfloat16).state_dict()
    for name, tensor in base.items():
        if name in deltas:
            _assert_rounded(merged[name], tensor.float() + deltas[name], name)
        else:
            assert _same_bytes(merged[name], tensor), name


def test_shards_index_and_order(small: Path, lossless: Case, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    plan = _merge(small, lossless.adapter, one, "mxfp4")
    assert [shard.file for shard in plan.shards] == ["model-00001-of-00001.safetensors"]
    _merge(small, lossless.adapter, many, "mxfp4", max_shard_gb=0.001)
    index = json.loads((many / "model.safetensors.index.json").read_text())
    files = sorted(many.glob("*.safetensors"))
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    for file in files:
        infos = read_header(file)
        assert {index["weight_map"][info.name] for info in infos} == {file.name}
        assert len(infos) == 1 or sum(info.nbytes for info in infos) <= 1e6
        assert (infos[0].offset % 8) == 0
        assert all(info.offset % (1 if info.dtype == "U8" else 2) == 0 for info in infos)
    assert fingerprint(open_checkpoint(one)) == fingerprint(open_checkpoint(many))
    assert index["metadata"]["total_size"] == open_checkpoint(many).nbytes


def test_large_tensors_in_parts(
    small: Path, full: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of rows held at a time changes nothing but float32 noise in the products."""
    _merge(small, full.adapter, tmp_path / "whole", "bf16")
    monkeypatch.setattr("gptoss_ft.merge.stream.CHUNK_BYTES", 7 * 4 * 64)
    _merge(small, full.adapter, tmp_path / "parts", "bf16")
    whole, parts = load_tensors(tmp_path / "whole"), load_tensors(tmp_path / "parts")
    for name in whole:
        if name in full.deltas:
            assert (whole[name] == parts[name]).float().mean() > 0.999, name
        else:
            assert _same_bytes(whole[name], parts[name]), name


def test_files_beside_the_weights(small: Path, full: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = _merge(small, full.adapter, out, "bf16")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (small / name).read_bytes()
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == json.loads((small / "generation_config.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["base_fingerprint"] == fingerprint(open_checkpoint(small))
    assert manifest["to"] == "bf16"
    assert manifest["adapter_sha256"] == {
        name: sha256_file(full.adapter / name)
        for name in (
            "adapter_config.json",
            "adapter_model.safetensors",
            "trained_tensors.safetensors",
        )
    }
    counts = {name: total["tensors"] for name, total in manifest["actions"].items()}
    trained = len(full.trained)
    plain = 2 * 17 + 3 - 8 - 4 - trained
    assert counts == {"copy": plain, "add": 8, "replace": trained, "dequantize_add": 4}
    assert sum(total["bytes"] for total in manifest["actions"].values()) == manifest["bytes"]
    assert manifest["shards"] == [shard.file for shard in plan.shards]


def test_plan_reads(small: Path, full: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = MergeOptions(str(small), str(full.adapter), str(out), to="bf16", dry_run=True)
    text = "\n".join(plan_merge(options).lines())
    for part in ("12 low-rank updates", f"{len(full.trained)} trained tensors", "dequantize_add"):
        assert part in text
    assert "shards: 1\nfree: " in text
    assert not out.exists()


def test_zero_update_keeps_the_base_bits() -> None:
    base = torch.tensor([[-0.0, 0.0, 1.5, -2.0]])
    A, B = torch.tensor([[1.0, -1.0, 0.0, 0.5]]), torch.tensor([[0.0]])
    kept = add_low_rank(base, A, B, -1.0)
    assert torch.equal(kept.view(torch.int32), base.view(torch.int32))
    added = add_low_rank(base, A, torch.tensor([[2.0]]), 0.5)
    assert torch.equal(added, torch.tensor([[1.0, -1.0, 1.5, -1.5]]))


# Refusals: every one with its message, and nothing at `out`.


def _refusal(out: Path, *, base: Path, adapter: Path, **settings: object) -> str:
    there = sorted(out.parent.iterdir())
    with pytest.raises(MergeError) as caught:
        merge(plan_merge(MergeOptions(str(base), str(adapter), str(out), **settings)))
    assert sorted(out.parent.iterdir()) == there, "something was left behind"
    return str(caught.value)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder / "merged"


def test_expert_lora_to_mxfp4_is_refused(small: Path, full: Case, out: Path) -> None:
    text = _refusal(out, base=small, adapter=full.adapter, to="mxfp4")
    assert "LoRA on the experts cannot be merged to MXFP4" in text
    assert "updates of 4 expert projections" in text
    assert "to=bf16" in text and "lossless" in text
    assert f"gptoss-ft generate model={small} adapter={full.adapter}" in text


def test_dense_base_to_mxfp4_is_refused(
    small: Path, lossless: Case, out: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "dense"
    _merge(small, lossless.adapter, dense, "bf16")
    text = _refusal(out, base=dense, adapter=lossless.adapter, to="mxfp4")
    assert "a dense base cannot be merged to MXFP4" in text


def test_float32_base_is_refused(small: Path, lossless: Case, out: Path, tmp_path: Path) -> None:
    base = tmp_path / "float32"
    shutil.copytree(small, base)
    file = base / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, file, metadata={"format": "pt"})
    text = _refusal(out, base=base, adapter=lossless.adapter)
    assert "model.norm.weight: only bfloat16 checkpoints can be merged" in text
    assert "F32" in text


def test_all_problems_at_once(tmp_path: Path, out: Path) -> None:
    text = _refusal(out, base=tmp_path / "no", adapter=tmp_path / "neither", to="int4")
    assert "to: unknown target\n    found: 'int4'" in text
    assert f"{tmp_path / 'no'}: there is no model folder here" in text
    assert f"{tmp_path / 'neither'}: there is no adapter folder here" in text


def test_option_values() -> None:
    texts = [str(p) for p in MergeOptions("", "", "", max_shard_gb=0).problems("merge.")]
    assert [text.partition(":")[0] for text in texts] == [
        "merge.base",
        "merge.adapter",
        "merge.out",
        "merge.max_shard_gb",
    ]
    assert MergeOptions("a", "b", "c").problems() == []
    with pytest.raises(MergeError, match="base: must name a folder"):
        plan_merge(MergeOptions("", "", ""))


def test_out_in_the_way(small: Path, lossless: Case, out: Path) -> None:
    adapter = lossless.adapter
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    assert "the folder is not empty" in _refusal(out, base=small, adapter=adapter)
    assert (out / "mine.txt").read_text() == "keep me"
    text = _refusal(out / "mine.txt", base=small, adapter=adapter)
    assert "a file is in the way" in text
    text = _refusal(small, base=small, adapter=adapter)
    assert "out is the base itself" in text
    spelt_otherwise = adapter / ".." / adapter.name
    text = _refusal(spelt_otherwise, base=small, adapter=adapter)
    assert "out is the adapter itself" in text


def test_empty_out_folder_is_fine(small: Path, lossless: Case, out: Path) -> None:
    out.mkdir()
    _merge(small, lossless.adapter, out, "mxfp4")
    assert (out / "manifest.json").is_file()


def test_too_little_disk(
    small: Path, lossless: Case, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: Usage)
    text = _refusal(out, base=small, adapter=lossless.adapter)
    assert "the disk has too little space" in text
    assert "0.001 GB free" in text


def test_adapter_of_another_base(small: Path, lossless: Case, out: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(lossless.adapter, adapter)
    info = {"format": 1, "kinds": ["lossless"], "base_fingerprint": "sha256:abc"}
    (adapter / "gptoss_ft.json").write_text(json.dumps(info))
    text = _refusal(out, base=small, adapter=adapter)
    assert "the adapter was trained on another base" in text
    assert "trained on sha256:abc" in text
    assert fingerprint(open_checkpoint(small)) in text


def test_nan_scale_stops_halfway_and_leaves_nothing(
    small: Path, lossless: Case, out: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(small, base)
    file = base / "model-00000-of-00002.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.experts.down_proj_scales"][3, 1, 0] = 255
    save_file(tensors, file, metadata={"format": "pt"})
    text = _refusal(out, base=base, adapter=lossless.adapter, to="bf16")
    assert "model.layers.1.mlp.experts.down_proj_scales: the base holds NaN scales" in text
    assert "scale byte 255 in expert 3" in text


def test_unconsumed_adapter_tensors_are_a_problem(
    small: Path, full: Case, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that forgets part of the adapter is caught before anything is written."""
    everything = plan_module._plan_tensors

    def forgetful(*args: object) -> list[object]:
        return [tensor for tensor in everything(*args) if "layers.1.self_attn.q" not in tensor.name]

    monkeypatch.setattr(plan_module, "_plan_tensors", forgetful)
    text = _refusal(out, base=small, adapter=full.adapter, to="bf16")
    for factor in "AB":
        name = f"base_model.model.model.layers.1.self_attn.q_proj.lora_{factor}.weight"
        assert f"{name}: an adapter tensor would not be merged exactly once" in text
