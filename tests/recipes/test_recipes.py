"""Every recipe trains on the tiny model, and every YAML composes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gptoss_ft.cli import run

REPOSITORY = Path(__file__).parents[2]
DATA = {
    "sft": REPOSITORY / "data/lighthouse.jsonl",
    "dpo": REPOSITORY / "data/lighthouse_pairs.jsonl",
}
RECIPES = [
    (group, path.stem)
    for group in DATA
    for path in sorted((REPOSITORY / "recipes" / group).glob("*.yaml"))
]
CHOICES = sorted(
    (path.parent.name, path.stem)
    for group in ("model", "adapter", "data", "trainer", "tracker")
    for path in (REPOSITORY / "configs" / group).glob("*.yaml")
)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder, so that the recipes share the tiny model that the first one writes."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled data of each group, of pairs the first eight."""
    pairs = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    pairs.write_text("".join(DATA["dpo"].read_text().splitlines(keepends=True)[:8]))
    return DATA | {"dpo": pairs}


@pytest.mark.parametrize(("group", "recipe"), RECIPES)
def test_a_recipe_runs_on_the_tiny_model(
    group: str, recipe: str, output: Path, data: dict[str, Path]
) -> None:
    arguments = [f"{group}={recipe}", "model=tiny", f"data.path={data[group]}", f"output={output}"]
    short = ["trainer.max_steps=2", "trainer.gradient_accumulation_steps=1", "data.max_length=512"]
    assert run("train", [*arguments, f"name={group}-{recipe}", *short]) == 0
    folder = output / f"{group}-{recipe}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["steps"] == 2
    composed = yaml.safe_load((folder / "config.yaml").read_text())
    written = yaml.safe_load((REPOSITORY / f"recipes/{group}/{recipe}.yaml").read_text())
    assert composed["adapter"].items() >= written["adapter"].items()
    assert manifest["adapter"]["r"] == written["adapter"]["r"]
    assert manifest["method"] == written.get("preference", {"method": "sft"})["method"]
    losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in losses) >= 1
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("group", "recipe"), RECIPES)
def test_a_recipe_says_how_to_run_it_and_why(group: str, recipe: str) -> None:
    lines = (REPOSITORY / f"recipes/{group}/{recipe}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    command = f"#   gptoss-ft train {group}={recipe}"
    assert any(line.startswith(command) for line in lines)
    assert sum(line.strip().startswith("#") for line in lines) >= 6


@pytest.mark.parametrize(("group", "recipe"), RECIPES)
def test_a_recipe_composes_with_its_own_model(
    group: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", [f"{group}={recipe}", "data.path=my.jsonl", "--cfg", "job"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    size = recipe.rpartition("_")[2]
    assert composed["model"]["path"].endswith("tiny-model" if recipe == "demo" else size)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes(
    group: str, choice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", [f"{group}={choice}", "--cfg", "job"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load((REPOSITORY / "configs" / group / f"{choice}.yaml").read_text())
    assert composed[group].keys() >= written.keys()


@pytest.mark.parametrize("command", ["merge", "verify", "generate", "export", "tiny"])
def test_every_tool_composes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["--cfg", "job"]) == 0
    assert isinstance(yaml.safe_load(capsys.readouterr().out), dict)
