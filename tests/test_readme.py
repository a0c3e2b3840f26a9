"""Every command of the README and of CONTRIBUTING does what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GptOssConfig

from gptoss_ft.adapters.model import AdapterInfo, adapter_parameters, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.cli import run
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.load import replace_layers
from gptoss_ft.model.tiny import TinyOptions, write_tiny

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _commands(text: str) -> list[list[str]]:
    """The arguments of every `gptoss-ft` line in the shell blocks."""
    lines = "\n".join(_blocks(text, "sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("gptoss-ft")]


def test_the_path_from_data_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an empty folder, on the README's own row and pair, a tiny model in gpt-oss's place."""
    monkeypatch.chdir(tmp_path)
    row, pair = _blocks(README, "json")
    (tmp_path / "my.jsonl").write_text(row * 4)
    (tmp_path / "pairs.jsonl").write_text(pair * 4)
    write_tiny(tmp_path / "gpt-oss-20b", TinyOptions(layers=1))
    commands = _commands(README)
    used = {command[1] for command in commands}
    assert used >= {"train", "generate", "merge", "export", "--help"}
    ran = 0
    for _, command, *arguments in commands:
        if command == "--help":
            continue
        if command == "generate":
            arguments.append("max_new_tokens=4")
        if command == "train" and "--cfg" not in arguments:
            arguments.append("trainer.max_steps=1")
        code = run(command, arguments)
        assert code == 0, f"{command} {arguments}: {capsys.readouterr().err}"
        ran += 1
    assert ran == len(commands) - 1
    for name in re.findall(r"name=([\w-]+)", README):
        assert list((tmp_path / "outputs").glob(f"{name}*/adapter")), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "my-model")
    assert model.config.model_type == "gpt_oss"


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in set(re.findall(r"^make ([\w-]+)", README + "\n" + CONTRIBUTING, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_links_and_named_files_exist() -> None:
    for text in (README, CONTRIBUTING):
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (REPOSITORY / link).exists(), link
        for name in re.findall(r"`(tests/[\w/]+\.py|scripts/\w+\.py)`", text):
            assert (REPOSITORY / name).exists(), name
    for recipe in (REPOSITORY / "recipes").glob("*/*.yaml"):
        assert f"`{recipe.parent.name}={recipe.stem}`" in README
    for choice in (REPOSITORY / "configs/adapter").glob("*.yaml"):
        assert f"| `{choice.stem}` |" in README


def _parameters(options: AdapterOptions, layers: int = 24, experts: int = 32) -> float:
    """Millions of trained parameters on the shapes of the 20b, without weights."""
    config = GptOssConfig()  # its defaults are the 120b
    config.num_hidden_layers, config.num_local_experts = layers, experts
    config.layer_types = config.layer_types[:layers]
    with torch.device("meta"):
        model = WeightedGptOss(config)
        replace_layers(model, config)
        model.requires_grad_(False)
        adapted = add_adapter(model, options, AdapterInfo((), "", ""))
    return sum(adapter_parameters(adapted).values()) / 1e6


ADAPTERS = ["attention", "lossless", "experts", "attention_experts", "router"]


@pytest.mark.parametrize("choice", ADAPTERS)
def test_parameter_counts_of_the_adapter_table(choice: str) -> None:
    kinds = yaml.safe_load((REPOSITORY / f"configs/adapter/{choice}.yaml").read_text())["kinds"]
    (count,) = re.findall(rf"^\| `{choice}` \|.*?\| (\d+) M \|", README, re.MULTILINE)
    assert round(_parameters(AdapterOptions(kinds))) == int(count)


def test_parameter_counts_in_the_recipes() -> None:
    """The figures that their comments give."""
    recipes = {path.stem: path.read_text() for path in (REPOSITORY / "recipes/sft").glob("*.yaml")}
    lora = _parameters(AdapterOptions(["attention", "experts"], r=32))
    assert f"About {lora:.0f} million" in recipes["lora_20b"]
    lossless = _parameters(AdapterOptions(["lossless"], r=64))
    rank_one = _parameters(AdapterOptions(["lossless"], r=1))
    low_rank = (lossless - rank_one) * 64 / 63
    assert f"{low_rank:.0f} million parameters of LoRA" in recipes["lossless_20b"]
    assert f"{lossless - low_rank:.0f} million of full tensors" in recipes["lossless_20b"]
    domain = _parameters(AdapterOptions(["attention", "experts"], r=64))
    assert f"{domain:.0f} million parameters" in recipes["domain_20b"]
    experts = _parameters(AdapterOptions(["experts"], r=16), layers=36, experts=128)
    assert f"cost {experts / 4:.0f} million" in recipes["lora_120b"]
    assert f"rank 4 is {experts:.0f} million" in recipes["lora_120b"]
