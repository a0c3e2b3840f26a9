"""Merging: files, shards, index, manifest, plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from merges import Case, contents, full, lossless, merge_to, small

from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint, read_header
from gptoss_ft.cli import run
from gptoss_ft.files import sha256_file
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge

__all__ = ["full", "lossless", "small"]


def test_shards_index_and_order(small: Path, lossless: Case, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    plan = merge_to(small, lossless.adapter, one, "mxfp4")
    assert [shard.file for shard in plan.shards] == ["model-00001-of-00001.safetensors"]
    merge_to(small, lossless.adapter, many, "mxfp4", max_shard_gb=2e-5)
    index = json.loads((many / "model.safetensors.index.json").read_text())
    files = sorted(many.glob("*.safetensors"))
    assert len(files) > 3
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    for file in files:
        infos = read_header(file)
        assert {index["weight_map"][info.name] for info in infos} == {file.name}
        units = {info.name.rpartition("_")[0] for info in infos if ".experts." in info.name}
        alone = len(infos) == 1 or (len(units) == 1 and len(infos) == 3)
        assert alone or sum(info.nbytes for info in infos) <= 2e4
        assert (infos[0].offset % 8) == 0
        assert all(info.offset % (1 if info.dtype == "U8" else 2) == 0 for info in infos)
    assert fingerprint(open_checkpoint(one)) == fingerprint(open_checkpoint(many))
    assert index["metadata"]["total_size"] == open_checkpoint(many).nbytes


def test_files_beside_the_weights(small: Path, full: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = merge_to(small, full.adapter, out, "bf16")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (small / name).read_bytes()
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == json.loads((small / "generation_config.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    inputs = manifest["inputs"]
    assert inputs["base"] == fingerprint(open_checkpoint(small))
    assert inputs["to"] == "bf16"
    names = ("adapter_config.json", "adapter_model.safetensors", "trained_tensors.safetensors")
    files = {name: sha256_file(full.adapter / name) for name in names}
    assert inputs["adapters"] == [{"weight": 1.0, "files": files}]
    counts = {name: total["tensors"] for name, total in manifest["actions"].items()}
    trained = len(full.trained)
    plain = 2 * 17 + 3 - 8 - 4 - trained
    assert counts == {"copy": plain, "add": 8, "replace": trained, "dequantize_add": 4}
    assert sum(total["bytes"] for total in manifest["actions"].values()) == manifest["bytes"]
    assert manifest["shards"] == [shard.file for shard in plan.shards]
    found = {name: sha256_file(out / name) for name in contents(out) if name != "manifest.json"}
    assert manifest["files"] == found


def test_plan_reads(
    small: Path, full: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dry_run` names every tensor, what becomes of it, its size and the time it takes."""
    out = tmp_path / "out"
    arguments = [f"base={small}", f"adapter={full.adapter}", f"out={out}", "to=mxfp4"]
    assert run("merge", [*arguments, "dry_run=true"]) == 0
    text = capsys.readouterr().out
    for part in ("12 low-rank updates", f"{len(full.trained)} trained tensors", "experts=adapter"):
        assert part in text
    assert not out.exists()
    lines = [line.split() for line in text.splitlines()]
    rows = {line[0]: line[1:] for line in lines if len(line) == 6 and line[-1] == "s"}
    plan = plan_merge(MergeOptions(str(small), str(full.adapter), str(out)))
    assert {name: row[0] for name, row in rows.items()} == {t.name: t.action for t in plan.tensors}
    assert rows["model.layers.1.mlp.experts.down_proj_blocks"][0] == "copy"
    assert rows["model.layers.1.self_attn.q_proj.weight"][0] == "add"
    assert float(text.partition("estimated time: ")[2].split()[0]) < 60


def test_the_command_shows_what_it_did(
    small: Path, full: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [f"base={small}", f"adapter={full.adapter}", f"out={out}", "experts=nearest"]
    assert run("merge", [*arguments, "force=true"]) == 0
    text = capsys.readouterr().out
    assert "model.layers.*.mlp.experts.down_proj_blocks " in text
    report = json.loads((out / "merge_report.json").read_text())
    table = (out / "merge_report.txt").read_text()
    assert len(report["tensors"]) == len(full.trained) + 8 + 4
    for name, numbers in report["tensors"].items():
        (line,) = [line.split() for line in table.splitlines() if line.startswith(f"{name} ")]
        assert float(line[1]) == pytest.approx(numbers["epsilon"], rel=1e-2)
        assert float(line[3]) == pytest.approx(numbers["max_error"], rel=1e-2)
    assert run("merge", [*arguments, "force=true"]) == 0
    assert "holds this merge already" in capsys.readouterr().out


def test_output_does_not_depend_on_where_it_is(small: Path, full: Case, tmp_path: Path) -> None:
    merge_to(small, full.adapter, tmp_path / "one", "mxfp4")
    merge_to(small, full.adapter, tmp_path / "deeper" / "two", "mxfp4")
    assert contents(tmp_path / "one") == contents(tmp_path / "deeper" / "two")


def test_several_adapters_on_the_command_line(
    small: Path, full: Case, lossless: Case, tmp_path: Path
) -> None:
    out, adapters = tmp_path / "out", f"[{full.adapter},{lossless.adapter}]"
    arguments = [f"base={small}", f"adapter={adapters}", f"out={out}", "weights=[1,0.5]"]
    assert run("merge", [*arguments, "to=bf16"]) == 0
    inputs = json.loads((out / "manifest.json").read_text())["inputs"]
    assert [adapter["weight"] for adapter in inputs["adapters"]] == [1.0, 0.5]
