"""Every file of data/formats/ through the command line: preview, and training or refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss_ft.cli import run
from gptoss_ft.data.formats import FORMATS, KINDS
from gptoss_ft.model.tiny import TinyOptions, write_tiny

REPOSITORY = Path(__file__).parents[1]
FILES = sorted((REPOSITORY / "data/formats").iterdir())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "model"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "heads": 1, "kv_heads": 1}
    write_tiny(out, TinyOptions(layers=1, **sizes))
    return out


def _arguments(file: Path) -> list[str]:
    """`harmony` is never detected, because it makes special tokens out of text."""
    named = ["data.format=harmony"] if file.stem == "harmony" else []
    return [f"data.path={file}", *named]


def test_every_format_has_a_file() -> None:
    assert {file.stem for file in FILES} == set(FORMATS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_formats_file_previews(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert run("preview", [*_arguments(file), f"html={page}"]) == 0
    shown = capsys.readouterr().out
    assert file.stem in shown, "the format is said"
    assert "<|return|>" in shown or "<|endoftext|>" in shown or "<|call|>" in shown
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_formats_file_trains_or_is_refused(
    file: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*_arguments(file), f"model.path={small}", f"output={tmp_path}", "name=r"]
    code = run("train", ["sft=lora_20b", *arguments, "trainer.max_steps=1"])
    captured = capsys.readouterr()
    if KINDS[file.stem] == "sft":
        assert code == 0, captured.err
        manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
        assert manifest["data_summary"]["formats"].keys() == {file.stem}
    else:
        assert code == 2
        assert "dpo=" in captured.err
        assert str(file) in captured.err
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("recipe", "formats"),
    [
        ("orpo_20b", {"trl_preference", "openai_preference"}),
        ("kto_20b", {"trl_preference", "openai_preference", "kto"}),
    ],
)
def test_formats_of_pairs_and_ratings_train(
    recipe: str, formats: set[str], small: Path, tmp_path: Path
) -> None:
    named = ", ".join(f"{{path: {REPOSITORY}/data/formats/{name}.jsonl}}" for name in formats)
    arguments = [f"data.sources=[{named}]", f"model.path={small}", f"output={tmp_path}", "name=r"]
    assert run("train", [f"dpo={recipe}", *arguments, "trainer.max_steps=1"]) == 0
    summary = json.loads((tmp_path / "r" / "manifest.json").read_text())["data_summary"]
    assert summary["formats"].keys() == formats


def test_preview_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"data.path={REPOSITORY / 'data/lighthouse.jsonl'}"
    assert run("preview", [data, "rows=2:4"]) == 0
    shown = capsys.readouterr().out
    assert "lighthouse.jsonl:3" in shown and "lighthouse.jsonl:4" in shown
    assert "lighthouse.jsonl:2 " not in shown and "lighthouse.jsonl:5" not in shown
    assert run("preview", [data, "lines=[7]"]) == 0
    assert "lighthouse.jsonl:7" in capsys.readouterr().out
    for bad, message in (
        (["rows=x"], "not a range"),
        (["data.path="], "no data file"),
        ([data, "lims=3"], "unknown setting"),
        ([f"data.path={tmp_path / 'none.jsonl'}"], "no such file"),
    ):
        assert run("preview", bad if "data" in bad[0] else [data, *bad]) == 2
        assert message in capsys.readouterr().err


def test_bad_rows_are_all_reported_by_preview(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([json.dumps(good), "[", json.dumps(good), '{"messages": 3}']))
    assert run("preview", [f"data.path={file}", f"html={tmp_path / 'a.html'}"]) == 2
    text = capsys.readouterr().err
    assert f"{file}:2" in text and f"{file}:4" in text
