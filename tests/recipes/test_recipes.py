"""Every recipe trains on the tiny model, to known losses, and every YAML composes.

The losses and norms of gradients of the first two steps are in `golden/`, a file for each recipe. A
change that means to alter them (other data, another default) writes them anew, and says why:

    GOLDEN=write python -m pytest tests/recipes -k golden
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
GOLDEN = Path(__file__).with_name("golden")
# Machines sum in another order (MKL or oneDNN, AVX2 or AVX-512), and a token close to a tie may so
# go to another expert. A loss is a mean over hundreds of tokens and hardly moves, a gradient norm
# moves more; both hold in code without AVX (ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41).
# Losses check data, masks and weights; as the first steps warm up, norms check what is trained.
TOLERANCES = {"loss": 2e-3, "grad_norm": 2e-2}
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
def test_a_recipe_runs_on_the_tiny_model_to_its_golden_losses(
    group: str, recipe: str, output: Path, data: dict[str, Path]
) -> None:
    arguments = [f"{group}={recipe}", "model=tiny", f"data.path={data[group]}", f"output={output}"]
    short = ["trainer.max_steps=2", "trainer.gradient_accumulation_steps=1", "data.max_length=512"]
    logs = ["trainer.logging_steps=1", "seed=0"]
    assert run("train", [*arguments, f"name={group}-{recipe}", *short, *logs]) == 0
    folder = output / f"{group}-{recipe}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["steps"] == 2
    composed = yaml.safe_load((folder / "config.yaml").read_text())
    written = yaml.safe_load((REPOSITORY / f"recipes/{group}/{recipe}.yaml").read_text())
    assert composed["adapter"].items() >= written["adapter"].items()
    assert manifest["adapter"]["r"] == written["adapter"]["r"]
    assert manifest["method"] == written.get("preference", {"method": "sft"})["method"]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    _compare(f"{group}-{recipe}", {name: [step[name] for step in steps] for name in TOLERANCES})


def _compare(name: str, found: dict[str, list[float]]) -> None:
    """Compares with a golden file, or with `GOLDEN=write` writes it and skips the test."""
    file = GOLDEN / f"{name}.json"
    if mode := os.environ.get("GOLDEN"):
        assert mode == "write", f"GOLDEN={mode}: the only mode is write"
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=2) + "\n")
        pytest.skip(f"{file.name} written, nothing compared")
    assert file.is_file(), f"{file} is missing; run this test with GOLDEN=write"
    golden: dict[str, Any] = json.loads(file.read_text())
    assert golden.keys() == found.keys()
    for key, tolerance in TOLERANCES.items():
        assert len(found[key]) == 2
        assert found[key] == pytest.approx(golden[key], rel=tolerance), key


def test_every_golden_file_is_of_a_recipe() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == {"-".join(recipe) for recipe in RECIPES}


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
