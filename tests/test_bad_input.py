"""What a user can get wrong: each mistake has its message, exit code 2, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from stock import write_stock_adapter

from gptoss_ft.checkpoint.headers import INDEX_NAME
from gptoss_ft.cli import run
from gptoss_ft.model.tiny import TinyOptions, write_tiny

SMALL = {"layers": 1, "hidden_size": 32, "intermediate_size": 32, "heads": 1, "kv_heads": 1}
USER = {"role": "user", "content": "Hello?"}
ANSWER = {"role": "assistant", "content": "Hello."}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "model"
    write_tiny(out, TinyOptions(**SMALL))
    return out


def _refused(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> str:
    assert run(command, list(arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def _train(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path, output: Path, *more: str
) -> str:
    arguments = [f"model.path={model}", f"data.path={data}", f"output={output}", "name=r", *more]
    text = _refused(capsys, "train", *arguments)
    assert not output.exists(), "nothing was written"
    return text


def _line(*messages: Any, **keys: Any) -> str:
    return json.dumps({"messages": list(messages), **keys})


BAD_ROWS = {
    "broken JSON": ('{"messages": [', ["not JSON", "column 15"]),
    "not an object": ("[1, 2]", ["object"]),
    "unknown role": (_line({"role": "robot", "content": "x"}, ANSWER), ["role", '"robot"']),
    "assistant without content": (_line(USER, {"role": "assistant"}), ["content"]),
    "tool result without its call": (
        _line(USER, {"role": "tool", "tool_call_id": "c9", "content": "1"}, ANSWER),
        ["c9"],
    ),
    "image part": (_line({"role": "user", "content": [IMAGE]}, ANSWER), ["image_url"]),
    "all prompt": (_line(USER), ["assistant"]),
    "misspelt key": (_line(USER, {**ANSWER, "thinkin": "x"}), ["thinkin", "thinking"]),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows(
    capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path, kind: str
) -> None:
    row, parts = BAD_ROWS[kind]
    data = tmp_path / "chats.jsonl"
    data.write_text(_line(USER, ANSWER) + "\n" + row + "\n")
    text = _train(capsys, small, data, tmp_path / "out")
    assert f"{data}:2" in text
    assert "fix:" in text
    for part in parts:
        assert part in text, text


def test_all_bad_rows_are_reported(
    capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path
) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join(row for row, _ in BAD_ROWS.values()) + "\n")
    text = _train(capsys, small, data, tmp_path / "out")
    assert text.startswith(f"{len(BAD_ROWS)} problems")
    for number in range(1, len(BAD_ROWS) + 1):
        assert f"{data}:{number}" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("empty.jsonl", "", "empty"),
        ("blank.jsonl", "\n \n", "empty"),
        ("latin.jsonl", b'{"messages": "\xe9"}\n', "UTF-8"),
    ],
)
def test_bad_files(
    capsys: pytest.CaptureFixture[str],
    small: Path,
    tmp_path: Path,
    name: str,
    content: str | bytes | None,
    message: str,
) -> None:
    data = tmp_path / name
    if isinstance(content, str):
        data.write_text(content)
    elif content is not None:
        data.write_bytes(content)
    text = _train(capsys, small, data, tmp_path / "out")
    assert message in text
    assert name in text


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "good.jsonl"
    file.write_text(_line(USER, ANSWER) + "\n")
    return file


def _broken(original: Path, copy: Path, kind: str) -> Path:
    shutil.copytree(original, copy)
    shard = copy / "model-00001-of-00002.safetensors"
    if kind == "missing shard":
        shard.unlink()
    else:
        name = "model.layers.0.self_attn.sinks"
        index = json.loads((copy / INDEX_NAME).read_text())
        file = copy / index["weight_map"][name]
        tensors = load_file(file)
        tensors[name] = tensors[name].repeat(2)
        save_file(tensors, file, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("missing shard", ["model-00001-of-00002.safetensors", "missing"]),
        ("wrong shape", ["model.layers.0.self_attn.sinks", "[2]", "[1]"]),
    ],
)
def test_broken_checkpoints_in_every_command(
    capsys: pytest.CaptureFixture[str],
    small: Path,
    chats: Path,
    tmp_path: Path,
    kind: str,
    parts: list[str],
) -> None:
    broken = _broken(small, tmp_path / "broken", kind)
    write_stock_adapter(small, tmp_path / "adapter", experts=False)
    texts = [
        _train(capsys, broken, chats, tmp_path / "out"),
        _refused(
            capsys,
            "merge",
            f"base={broken}",
            f"adapter={tmp_path / 'adapter'}",
            f"out={tmp_path / 'out'}",
        ),
        _refused(capsys, "generate", f"model={broken}", "prompt=x"),
    ]
    assert not (tmp_path / "out").exists()
    for text in texts:
        for part in parts:
            assert part in text, text


def test_an_adapter_for_another_base(
    capsys: pytest.CaptureFixture[str], small: Path, chats: Path, tmp_path: Path
) -> None:
    arguments = [f"model.path={small}", f"data.path={chats}", f"output={tmp_path}", "name=r"]
    assert run("train", [*arguments, "trainer.max_steps=1", "trainer.save_strategy=no"]) == 0
    capsys.readouterr()
    other = tmp_path / "other"
    write_tiny(other, TinyOptions(**SMALL, seed=1))
    adapter = tmp_path / "r" / "adapter"
    merge = [f"base={other}", f"adapter={adapter}", f"out={tmp_path / 'merged'}"]
    for command, rest in (
        ("merge", merge),
        ("generate", [f"model={other}", f"adapter={adapter}", "prompt=x"]),
    ):
        text = _refused(capsys, command, *rest)
        assert "trained on another base" in text
        assert str(adapter) in text
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_shape(
    capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path
) -> None:
    write_stock_adapter(small, tmp_path / "adapter", experts=False)
    other = tmp_path / "other"
    write_tiny(other, TinyOptions(**(SMALL | {"hidden_size": 64})))
    merge = [f"base={other}", f"adapter={tmp_path / 'adapter'}", f"out={tmp_path / 'merged'}"]
    text = _refused(capsys, "merge", *merge)
    assert "wrong shape" in text
    assert "q_proj" in text


def test_expert_lora_to_mxfp4(
    capsys: pytest.CaptureFixture[str], small: Path, tmp_path: Path
) -> None:
    write_stock_adapter(small, tmp_path / "adapter")
    merge = [f"base={small}", f"adapter={tmp_path / 'adapter'}", f"out={tmp_path / 'merged'}"]
    text = _refused(capsys, "merge", *merge, "experts=nearest")
    assert "nearest 4-bit value" in text
    for alternative in ("experts=adapter", "to=bf16", "gptoss-ft generate", "lossless"):
        assert alternative in text


def test_a_run_folder_that_is_in_use(
    capsys: pytest.CaptureFixture[str], small: Path, chats: Path, tmp_path: Path
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    arguments = [f"model.path={small}", f"data.path={chats}", f"output={tmp_path}", "name=r"]
    assert "resume=true" in _refused(capsys, "train", *arguments)
    assert "not a run" in _refused(capsys, "train", *arguments, "resume=true")
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("recipe", ["sft=demo", "dpo=demo", "dpo=kto_20b"])
def test_values_that_only_the_trainer_knows(
    recipe: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused in its words, before data are rendered or weights are loaded."""
    data = tmp_path / "rows.jsonl"
    data.write_text(_line(USER, ANSWER))
    text = _train(capsys, small, data, tmp_path / "out", recipe, "trainer.optim=adamm")
    assert "adamm is not a valid OptimizerNames" in text and "fix:" in text


def test_rows_longer_than_allowed(
    capsys: pytest.CaptureFixture[str], small: Path, chats: Path, tmp_path: Path
) -> None:
    text = _train(capsys, small, chats, tmp_path / "out", "data.max_length=10")
    assert "no row is left to train on" in text
    more = ["data.max_length=10", "data.on_too_long=error"]
    assert f"{chats}:1" in _train(capsys, small, chats, tmp_path / "out", *more)
