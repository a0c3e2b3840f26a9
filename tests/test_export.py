"""The command `export`: planned and checked before writing, whole or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from exports import export, refusal
from merges import contents, write_small
from stock import write_stock_adapter

from gptoss_ft.cli import run
from gptoss_ft.errors import ExportError
from gptoss_ft.export import onnx, openai
from gptoss_ft.export.command import plan_export
from gptoss_ft.export.options import TARGETS, ExportOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    write_small(out)
    return out


def test_the_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"model={model}", "out=sub/out (v1)", "to=openai"]
    assert run("export", [*arguments, "dry_run=true"]) == 0
    text = capsys.readouterr().out
    assert "2 layers, 4 experts each, MXFP4" in text
    assert "gpt_oss.chat" in text
    assert list(tmp_path.iterdir()) == []
    assert run("export", arguments) == 0
    assert "how to serve it: sub/out (v1)/serve.md" in capsys.readouterr().out
    assert contents(tmp_path / "sub/out (v1)").keys() == {
        "config.json",
        "model.safetensors",
        "serve.md",
    }
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["out (v1)"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["say model=DIR", "say out=PATH", "unknown target"]),
        (["model=m", "out=o", "to=gguff"], ["one of openai, gguf, gguf-lora", "m: there is no"]),
        (["model=m", "out=o", "to=gguf"], ["say out=o.gguf", "m: there is no model folder"]),
        (["model=m", "out=o", "to=openai", "dtype=f32"], ["cannot hold this", "write mxfp4"]),
        (["model=m", "out=o", "to=lmstudio", "name=a/b"], ["must be one name"]),
        (["model=m", "adapter=a", "out=o", "to=vllm"], ["no model folder", "no adapter folder"]),
        (["modle=m"], ["did you mean model?"]),
    ],
)
def test_all_problems_at_once(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    messages: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", arguments) == 2
    text = capsys.readouterr().err
    assert all(message in text for message in messages), text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(model, out, "openai")  # an empty folder is fine
    assert "the folder is not empty" in refusal(model, out, "openai")
    assert "out is the model itself" in refusal(model, model, "openai")
    file = tmp_path / "file"
    file.write_text("mine")
    assert "a file is in the way" in refusal(model, file, "openai")
    assert "a file is in the way" in refusal(model, file / "below", "openai")
    with pytest.raises(ExportError, match="cannot be written to"):
        export(model, Path("/proc/exported"), "openai")


def test_an_adapter_of_another_base(model: Path, tmp_path: Path) -> None:
    write_small(tmp_path / "other", rows=300)
    write_stock_adapter(tmp_path / "other", tmp_path / "adapter")
    (tmp_path / "adapter/gptoss_ft.json").write_text(
        '{"format": 1, "kinds": ["experts"], "base_fingerprint": "sha256:abc"}'
    )
    text = refusal(model, tmp_path / "o", "vllm", adapter=str(tmp_path / "adapter"))
    assert "the adapter was trained on another base" in text


def test_too_little_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    assert "the disk has too little space" in refusal(model, tmp_path / "o", "openai")


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_stopped_export_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write = openai.write

    def stopped(*arguments: object) -> None:
        write(*arguments)
        raise error

    monkeypatch.setattr(openai, "write", stopped)
    expected = ExportError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export(model, tmp_path / "o", "openai")
    assert list(tmp_path.iterdir()) == []


def test_every_target_has_a_module(model: Path, tmp_path: Path) -> None:
    for to in TARGETS:
        try:
            plan_export(ExportOptions(str(model), out=str(tmp_path / "o.gguf"), to=to))
        except ExportError as error:
            assert "unknown target" not in str(error), to


def test_onnx_without_its_extra(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "MODULES", ("no_such_runtime",))
    text = refusal(model, tmp_path / "o", "onnx")
    assert "no module no_such_runtime" in text
    assert "pip install 'gptoss-ft[onnx]'" in text


def test_onnx_needs_the_memory_that_its_builder_takes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "MODULES", ())
    memory = SimpleNamespace(available=1000)
    monkeypatch.setattr(onnx.psutil, "virtual_memory", lambda: memory)
    assert "holds the dense model in memory" in refusal(model, tmp_path / "o", "onnx")


def test_a_failing_builder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words are shown, and nothing stays."""
    monkeypatch.setattr(onnx, "MODULES", ())
    monkeypatch.setattr(onnx, "BUILDER", "json.tool")
    text = refusal(model, tmp_path / "o", "onnx", dtype="int8")
    assert "the builder failed" in text
    assert "Is a directory" in text
    assert "moe_quant_type=int8" in text
