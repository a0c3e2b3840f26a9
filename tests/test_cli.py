"""The command line: help, literal values, refused arguments, exit codes, sweeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from extra_command import ECHO

from gptoss_ft import cli
from gptoss_ft.arguments import quoted
from gptoss_ft.cli import run
from gptoss_ft.commands import COMMANDS, Command
from gptoss_ft.context import Context, Outcome
from gptoss_ft.generate.options import GenerateOptions
from gptoss_ft.train.options import TrainOptions

REPOSITORY = Path(__file__).parents[1]
HELPERS = Path(__file__).parent / "helpers"


def _refused(
    capsys: pytest.CaptureFixture[str], command: str, *arguments: str, code: int = 2
) -> str:
    """Runs a command that must fail with `code`; its message, which has no traceback in it."""
    assert run(command, list(arguments)) == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert "error: " in text or "problems:" in text
    return text


def _composed(capsys: pytest.CaptureFixture[str], command: str, *arguments: str) -> dict[str, Any]:
    """The configuration as `--cfg job` prints it."""
    assert run(command, [*arguments, "--cfg", "job"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_help_lists_commands_groups_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
        assert done.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in text
    for recipe in (REPOSITORY / "recipes/sft").glob("*.yaml"):
        assert f"sft={recipe.stem} " in text
    for group in ("model", "adapter", "data", "trainer", "tracker"):
        for choice in (REPOSITORY / "configs" / group).glob("*.yaml"):
            assert f"{group}={choice.stem} " in text
    assert run("train", ["--help"]) == 0
    said = capsys.readouterr().out
    assert "sft=demo " in said and "tracker=wandb " in said
    assert "  adapter.r=INTEGER   (default: 16)\n      rank on the attention matrices.\n" in said
    assert "  trainer.KEY=VALUE\n" in said


def test_no_command_and_an_unknown_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main([])
    assert done.value.code == 2
    with pytest.raises(SystemExit) as done:
        cli.main(["trian"])
    assert done.value.code == 2
    assert "trian" in capsys.readouterr().err


LITERALS = [
    'Olá, "x" (y)=z',
    "it's",
    r"back\slash \' and \\",
    "ends in \\",
    "${not.interpolated}",
    "a: b, [c], {d}",
    " spaces  kept ",
    "<|end|> & $HOME ~ # no comment",
    "linha 1\nlinha 2",
    "null",
    "1e3",
    "true",
]


@pytest.mark.parametrize("text", LITERALS)
def test_text_values_are_taken_literally(capsys: pytest.CaptureFixture[str], text: str) -> None:
    composed = _composed(capsys, "generate", f"prompt={text}", "model=m")
    assert composed["prompt"] == text.replace("${", r"\${")  # as OmegaConf writes a literal
    options = _options_of("generate", ["model=m", f"prompt={text}"])
    assert options.prompt == text


def _options_of(name: str, arguments: list[str]) -> Any:
    """The options that reach a command: its line in the table, with another function to run."""
    seen: list[Any] = []
    (command,) = (command for command in COMMANDS if command.name == name)
    table = [replace(command, run="test_cli:remember")]
    REMEMBERED.set(seen)
    assert run(name, arguments, table) == 0
    return seen[0]


REMEMBERED: ContextVar[list[Any]] = ContextVar("remembered")


def remember(options: Any, context: Context) -> Outcome:
    """Stands for what a command runs: keeps its options for the test."""
    REMEMBERED.get().append(options)
    return Outcome()


@pytest.mark.parametrize("path", ["my (v1), final=yes.jsonl", "naïve/ação.jsonl", "a'b.jsonl"])
def test_path_values_are_taken_literally(capsys: pytest.CaptureFixture[str], path: str) -> None:
    train = _composed(capsys, "train", f"data.path={path}", f"model.path={path}", f"output={path}")
    assert train["data"]["path"] == train["model"]["path"] == train["output"] == path
    merge = _composed(capsys, "merge", f"base={path}", f"adapter={path}", f"out={path}")
    assert merge["base"] == merge["adapter"] == merge["out"] == path


def test_a_tilde_in_paths_is_the_home_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert _composed(capsys, "tiny", "out=~/x")["out"] == "/home/someone/x"
    composed = _composed(capsys, "train", "data.path=~/d.jsonl", "model.path=~/m")
    assert composed["data"]["path"] == "/home/someone/d.jsonl"
    assert quoted("prompt=~/x", GenerateOptions) == "prompt='~/x'"
    assert quoted("model=~/x", GenerateOptions) == "model='/home/someone/x'"
    assert quoted("model=tiny", TrainOptions) == "model=tiny", "a group choice is not a path"
    assert quoted("trainer.output_dir=~", TrainOptions) == "trainer.output_dir=~"
    assert (
        quoted("trainer.template_path=~", TrainOptions) == "trainer.template_path='/home/someone'"
    )


def test_keys_named_like_groups_are_plain_keys_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _composed(capsys, "merge", "adapter=dir/a")["adapter"] == "dir/a"
    assert _composed(capsys, "generate", "model=dir/m", "prompt=x")["model"] == "dir/m"


def test_sources_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    sources = "[{path: mine.jsonl}, {path: some/other-file.parquet, weight: 0.3, format: chat}]"
    for command in ("train", "preview"):
        composed = _composed(capsys, command, f"data.sources={sources}")
        assert [source["weight"] for source in composed["data"]["sources"]] == [1.0, 0.3]
        assert composed["data"]["sources"][1]["path"] == "some/other-file.parquet"
    text = _refused(capsys, "train", "model=tiny", "data.sources=[{path: a, wieght: 2}]")
    assert "wieght" in text
    text = _refused(capsys, "train", "model=tiny", "data.sources=[{path: a, weight: -2}]")
    assert "data.sources[0].weight" in text


def test_any_setting_of_trl_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    composed = _composed(capsys, "train", "trainer.max_steps=7", "trainer.adam_beta1=0.8")
    assert composed["trainer"]["max_steps"] == 7
    assert composed["trainer"]["adam_beta1"] == 0.8


BAD_ARGUMENTS = [
    (["sft=demoo"], "did you mean sft=demo?"),
    (["adapter=atention"], "did you mean adapter=attention?"),
    (["model=gpt_oss_70b"], "choose from"),
    (["data.pth=x"], "did you mean data.path?"),
    (["learning_rate=1"], "unknown setting"),
    (["sft=demo", "dpo=demo"], "two recipes at once"),
    (["sft=demo", "sft=lora_20b"], "given more than once"),
    (["name=a", "name=b"], "given more than once"),
    (["sft=demo", "trainer.lerning_rate=1"], "did you mean trainer.learning_rate?"),
    (["sft=demo", "trainer.learning_rate=-1"], "must be above 0"),
    (["sft=demo", "trainer.learning_rate=fast"], "must be a number"),
    (["sft=demo", "trainer.packing=true"], "trainer.packing"),
    (["sft=demo", "trainer.output_dir=x"], "name=NAME"),
    (["sft=demo", "adapter.r=0"], "adapter.r"),
    (["sft=demo", "adapter.r=many"], "adapter.r"),
    (["sft=demo", "adapter.kinds=[attention,banana]"], "banana"),
    (["sft=demo", "data.max_length=0"], "data.max_length"),
    (["sft=demo", "data.validation_split=1.5"], "data.validation_split"),
    (["sft=demo", "data.render.effort=extreme"], "data.render.effort"),
    (["sft=demo", "model.tiny.heads=3"], "heads"),
    (["sft=demo", "early_stopping=3"], "data.validation_split"),
    (["sft=demo", "tracker.kind=mlflow"], "tracker.kind"),
    (["sft=demo", "name=a/b"], "name"),
    (["sft=demo", "data.path=["], "[: no such file"),
    (["model=tiny"], "data.path=FILE.jsonl"),
    (["just-a-word"], "just-a-word"),
    (["sft=demo", "adapter.init=x", "adapter.r=8"], "adapter.r: this is about a fresh adapter"),
    (["sft=demo", "adapter=router", "adapter.init=x"], "those of the adapter in adapter.init"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_of_train(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in _refused(capsys, "train", *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing was written"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("merge", ["base=a", "adapter=b", "out=c", "to=int8"], "mxfp4 or bf16"),
        ("merge", ["bse=a"], "did you mean base?"),
        ("merge", [], "must name a folder"),
        ("generate", ["model=m"], "exactly one of prompt and file"),
        ("generate", ["model=m", "prompt=x", "effort=max"], "effort"),
        ("generate", ["prompt=x"], "say model=DIR"),
        ("generate", ["model=m", "prompt=x", "temperature=-1"], "temperature"),
        ("generate", ["model=nowhere", "prompt=x"], "nowhere"),
        ("tiny", [], "say out=DIR"),
        ("tiny", ["out=t", "heads=0"], "heads"),
        ("tiny", ["out=t", "hidden_size=100"], "divisible by 32"),
    ],
)
def test_bad_arguments_of_other_commands(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in _refused(capsys, command, *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_all_problems_come_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = _refused(capsys, "train", "sft=nothing", "data.pth=x", "nmae=y")
    assert text.startswith("3 problems")
    text = _refused(capsys, "train", "sft=demo", "adapter.r=0", "trainer.learning_rat=1")
    assert "adapter.r" in text and "trainer.learning_rat" in text


def test_a_recipe_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    recipe = "# @package _global_\n# mine\ndefaults:\n  - override /model: tiny\nseed: 5\n"
    (tmp_path / "sft" / "mine.yaml").write_text(recipe)
    composed = _composed(capsys, "train", "--config-dir", str(tmp_path), "sft=mine")
    assert composed["seed"] == 5
    assert composed["model"]["tiny"] is not None
    _refused(capsys, "train", "--config-dir", str(tmp_path), "sft=other")


def test_scripts_are_the_same_commands() -> None:
    for script in ("train", "merge"):
        text = (REPOSITORY / "scripts" / f"{script}.py").read_text()
        assert f"from gptoss_ft.cli import {script}" in text
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/merge.py", "base=a", "adapter=b", "out=c", "to=x"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "mxfp4 or bf16" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_makes_one_run_per_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    arguments = ["-m", "model=tiny", "model.tiny.layers=1", "data.path=d.jsonl", "name=sweep"]
    arguments += ["trainer.max_steps=1", "trainer.learning_rate=1e-4,2e-4"]
    assert run("train", arguments) == 0, capsys.readouterr().err
    folders = list((tmp_path / "outputs").glob("sweep-*"))
    configs = {path.name: yaml.safe_load((path / "config.yaml").read_text()) for path in folders}
    rates = {name: config["trainer"]["learning_rate"] for name, config in configs.items()}
    assert rates == {"sweep-0": 1e-4, "sweep-1": 2e-4}
    assert all((tmp_path / "outputs" / name / "adapter").is_dir() for name in rates)
    assert all(config["name"] == name for name, config in configs.items())


def _echoed(tmp_path: Path, *arguments: str, table: str = "ECHO") -> str:
    """Runs the extra command in a new process, whose Hub library reads the setting."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_HUB")}
    code = (
        "import sys, extra_command\n"
        "from gptoss_ft.cli import main\n"
        f"main(sys.argv[1:], [extra_command.{table}])"
    )
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(HELPERS)])
    done = subprocess.run(
        [sys.executable, "-c", code, "echo", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "offline"),
    [
        ([], True),
        (["hub=false"], True),
        (["hub=0"], True),
        (["hub=true"], False),
        (["hub=1"], False),
        (["hub=yes"], False),
        (["+hub=true"], False),
        (["++hub=True"], False),
    ],
)
def test_the_network_is_off_unless_the_settings_ask_for_it(
    tmp_path: Path, arguments: list[str], offline: bool
) -> None:
    said = _echoed(tmp_path, *arguments)
    assert f"HF_HUB_OFFLINE={int(offline)}\nconstant {offline}\n" in said


def test_a_recipe_may_ask_for_the_network(tmp_path: Path) -> None:
    for folder in ("sft", "part"):
        (tmp_path / folder).mkdir()
    (tmp_path / "part" / "usual.yaml").write_text("path: here\n")
    (tmp_path / "sft" / "online.yaml").write_text("# @package _global_\nhub: true\n")
    (tmp_path / "sft" / "offline.yaml").write_text("# @package _global_\ntimes: 1\n")
    (tmp_path / "echo.yaml").write_text(
        "defaults: [echo_schema, quiet, part: usual, _self_, sft: null,"
        " override hydra/job_logging: none, override hydra/hydra_logging: none]\n"
    )
    own = ("--config-dir", str(tmp_path))
    said = _echoed(tmp_path, *own, "sft=online", table="RECIPE_ECHO")
    assert "HF_HUB_OFFLINE=0\nconstant False\n" in said
    assert "recipe 'online', job None, given ['sft']" in said
    said = _echoed(tmp_path, *own, "sft=offline", table="RECIPE_ECHO")
    assert "HF_HUB_OFFLINE=1\nconstant True\n" in said


def test_a_sweep_is_online_or_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", ["-m", "hub=false,true"], [ECHO]) == 2
    assert "online or offline" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_settings_are_read_before_anything_heavy(command: Command) -> None:
    """The Hub's library must not be imported before the settings say whether it may be online."""
    module = command.options.partition(":")[0]
    heavy = ("torch", "transformers", "huggingface_hub", "datasets", "peft", "trl")
    code = f"import sys, gptoss_ft.cli, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_telemetry_is_off(tmp_path: Path) -> None:
    assert "HF_HUB_DISABLE_TELEMETRY=1\n" in _echoed(tmp_path)


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", ["end=interrupt"], [ECHO]) == 130
    assert "interrupted; nothing was lost\n" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run("echo", ["end=bug"], [ECHO])


def test_an_expected_error_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", ["end=error"], [ECHO]) == 2
    assert capsys.readouterr().err == "error: end: asked for an error\n"
