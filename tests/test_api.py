"""The public API: its names, when they are imported, and that they do what the commands do.

The examples of docs/api.md run in test_readme.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai_harmony as oh
import pytest
import torch
import yaml
from harmony_oracle import harmony_encoding, oracle_messages, prompt_ids
from peft import PeftModel
from stock import load_stock, write_stock_adapter

import gptoss_ft
from gptoss_ft.cli import run
from gptoss_ft.config import options_to_yaml

__all__ = ["harmony_encoding"]

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs/api.md").read_text()
CHATS = REPOSITORY / "data/lighthouse.jsonl"


def _alone(code: str) -> str:
    """Runs code in a process of its own and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_is_documented_twice() -> None:
    """In its docstring, and in docs/api.md, which names nothing that is not there."""
    for name in gptoss_ft.__all__:
        value = getattr(gptoss_ft, name)
        assert value.__doc__ and not value.__doc__.startswith(f"{name}("), name  # not dataclass's
        assert f"`{name}`" in PAGE, name
        assert name in dir(gptoss_ft)
    first_table = PAGE.partition("\n\nThe options")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", first_table, re.MULTILINE)) == gptoss_ft.__all__


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, gptoss_ft; dir(gptoss_ft); gptoss_ft.read_rows\n"
        "print(sorted({'torch', 'transformers', 'trl', 'omegaconf'} & set(sys.modules)))"
    )
    assert _alone(code) == "[]\n"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = gptoss_ft.trian


def test_a_room_never_takes_the_place_of_the_function_that_is_named_like_it() -> None:
    """Python binds submodules to their names in the package, at whatever time they are imported."""
    code = (
        "import gptoss_ft\n"
        "gptoss_ft.train, gptoss_ft.MergeOptions\n"
        "import gptoss_ft.train.run, gptoss_ft.merge.options, gptoss_ft.generate\n"
        "import gptoss_ft.verify, gptoss_ft.export.options\n"
        "from gptoss_ft.merge import options\n"
        "from gptoss_ft import train, merge, verify, export, generate\n"
        "print([f.__module__ for f in (train, merge, verify, export, generate, gptoss_ft.train)])\n"
        "print(options.__name__, gptoss_ft.errors.__name__)"
    )
    functions, modules = _alone(code).splitlines()
    assert functions == str(["gptoss_ft.api"] * 6)
    assert modules == "gptoss_ft.merge.options gptoss_ft.errors"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """A run with values that Hydra's grammar would not take as they stand."""
    return [
        "sft=lora_20b",
        "model=tiny",
        f"data.path={tmp_path}/a, (b) 'c'.jsonl",
        "name=Olá = 1",
        'data.render.identity=You are ${x}, "really".',
        "trainer.max_steps=1",
        "adapter.kinds=[router]",
    ]


def test_compose_gives_what_the_command_composes(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", [*settings, "--cfg", "job", "--resolve"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(options_to_yaml(gptoss_ft.compose(*settings))) == yaml.safe_load(shown)


def test_compose_takes_recipes_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my/sft").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults:\n  - lora_20b\n\nseed: 7\n"
    (tmp_path / "my/sft/mine.yaml").write_text(recipe)
    options = gptoss_ft.compose("sft=mine", config_dir=tmp_path / "my")
    assert (options.seed, options.adapter.r) == (7, 32)
    assert gptoss_ft.compose("sft=lora_20b").seed == 0


def test_compose_refuses_what_the_command_refuses() -> None:
    with pytest.raises(gptoss_ft.GptOssFtError) as caught:
        gptoss_ft.compose("sft=lora_20", "sead=1")
    text = str(caught.value)
    assert "did you mean sft=lora_20b?" in text and "did you mean seed?" in text
    with pytest.raises(gptoss_ft.GptOssFtError, match="seed"):
        gptoss_ft.compose("seed=many")


def test_bad_rows_are_named_after_the_good_ones(tmp_path: Path) -> None:
    good = CHATS.read_text().splitlines()[0]
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"messages": 3}}\n{good}\nnot JSON\n{good}\n')
    rows = gptoss_ft.read_rows(file)
    assert next(rows).where == f"{file}:2"
    assert next(rows).where == f"{file}:4"
    with pytest.raises(gptoss_ft.GptOssFtError) as caught:
        next(rows)
    assert [problem.where.split(" ")[0] for problem in caught.value.problems][-1] == f"{file}:3"
    assert len(caught.value.problems) == 2
    with pytest.raises(gptoss_ft.GptOssFtError, match="unknown format"):
        list(gptoss_ft.read_rows(file, "chats"))


def test_rendered_rows_begin_with_the_prompt_of_openai_harmony(
    harmony_encoding: oh.HarmonyEncoding,
) -> None:
    options = gptoss_ft.RenderOptions(effort="high")
    parsed = next(gptoss_ft.read_rows(CHATS))
    (row,) = gptoss_ft.render([parsed], options=options)
    messages: list[Any] = oracle_messages(parsed.example, options)
    prompt = prompt_ids(harmony_encoding, messages[:-2])  # without analysis and final
    trained = [place for place, label in enumerate(row.labels) if label != -100]
    assert row.input_ids[: len(prompt)] == prompt
    assert trained == list(range(len(prompt), len(row)))
    assert [row.loss_weights[place] for place in trained] == [1.0] * len(trained)


def test_every_kind_of_example_renders() -> None:
    formats = REPOSITORY / "data/formats"
    for name, rows in (("trl_preference", 2), ("kto", 1), ("text", 1)):
        parsed = next(gptoss_ft.read_rows(formats / f"{name}.jsonl"))
        assert len(list(gptoss_ft.render([parsed]))) == rows, name
    spelled = gptoss_ft.read_rows(formats / "harmony.jsonl", "harmony")
    assert len(list(gptoss_ft.render(spelled))) >= 1


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock PEFT adapter with random values."""
    out = tmp_path_factory.mktemp("adapter") / "adapter"
    write_stock_adapter(tiny_checkpoint, out, experts=True)
    return out


def test_a_loaded_adapter_gives_the_logits_of_stock_peft(
    tiny_checkpoint: Path, adapter: Path
) -> None:
    stock = PeftModel.from_pretrained(load_stock(tiny_checkpoint), str(adapter))
    model = gptoss_ft.load_adapter(gptoss_ft.load_model(tiny_checkpoint, device="cpu"), adapter)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids = torch.randint(0, 1000, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)
        base = gptoss_ft.load_model(tiny_checkpoint)(ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(ids).logits, base, atol=0, rtol=0)
        assert (model(ids).logits - base).abs().max() > 1e-3


def test_a_loaded_model_answers_as_the_named_one(tiny_checkpoint: Path, adapter: Path) -> None:
    asked = {"prompt": "When does the tower open?", "max_new_tokens": 6}
    named = gptoss_ft.GenerateOptions(model=str(tiny_checkpoint), adapter=str(adapter), **asked)
    (expected,) = gptoss_ft.generate(named)
    model = gptoss_ft.load_adapter(gptoss_ft.load_model(tiny_checkpoint), adapter)
    (answer,) = gptoss_ft.generate(gptoss_ft.GenerateOptions(**asked), model)
    assert answer.ids == expected.ids and len(answer.ids) > 0
    with pytest.raises(gptoss_ft.GptOssFtError, match="the model is given already"):
        gptoss_ft.generate(named, model)


def test_settings_that_only_commands_act_on_are_refused() -> None:
    calls: list[tuple[Any, Any, str]] = [
        (gptoss_ft.merge, gptoss_ft.MergeOptions(dry_run=True), "dry_run"),
        (gptoss_ft.export, gptoss_ft.ExportOptions(dry_run=True), "dry_run"),
        (gptoss_ft.verify, gptoss_ft.VerifyOptions(out="x.json"), "out"),
        (gptoss_ft.generate, gptoss_ft.GenerateOptions(min_exact=0.5), "min_exact"),
    ]
    for function, options, name in calls:
        with pytest.raises(gptoss_ft.GptOssFtError, match="only the command") as caught:
            function(options)
        assert [problem.where for problem in caught.value.problems] == [name]


def test_an_impossible_run_is_refused_with_all_of_its_problems() -> None:
    with pytest.raises(gptoss_ft.GptOssFtError) as caught:
        gptoss_ft.train(gptoss_ft.TrainOptions(early_stopping=-1))
    found = {problem.where for problem in caught.value.problems}
    assert {"name", "model.path", "data.path", "early_stopping"} <= found
