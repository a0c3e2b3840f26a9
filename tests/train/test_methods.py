"""The table of methods: every reference resolves, and a table with one row more runs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from chats import write_chats
from preference_runs import write_base
from trl import DPOConfig, KTOConfig, SFTConfig

from gptoss_ft import cli
from gptoss_ft.commands import COMMANDS
from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.train.command import run
from gptoss_ft.train.manifest import read_manifest
from gptoss_ft.train.methods import METHODS, Method, imported, method_named, recipe_groups
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer

TRAIN = next(command for command in COMMANDS if command.name == "train")
RECIPE = """# @package _global_
# a method of one's own
defaults:
  - override /trainer: sft

preference:
  method: halved

trainer:
  max_steps: 2
  per_device_train_batch_size: 1
"""


class HalvedTrainer(WeightedSFTTrainer):
    """SFT that logs its share of the loss."""

    def __init__(self, *args: Any, share: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.share = share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs | {"share": self.share}, *args, **kwargs)


def halved_problems(options: TrainOptions, method: Method) -> list[Problem]:
    if "packing" in options.trainer:
        return [Problem("not here", "trainer.packing")]
    return []


def halved_arguments(options: TrainOptions) -> dict[str, float]:
    return {"share": 0.5}


HALVED = replace(
    method_named("sft"),
    name="halved",
    recipes="dpo",
    trainer=f"{__name__}:HalvedTrainer",
    problems=f"{__name__}:halved_problems",
    arguments=f"{__name__}:halved_arguments",
)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_everything_that_a_method_names_is_there(method: Method) -> None:
    for item in fields(Method):
        value = getattr(method, item.name)
        if isinstance(value, str) and ":" in value:
            assert callable(imported(value)), value


def test_each_method_has_its_class_of_settings() -> None:
    kinds = {method.name: imported(method.trl_config) for method in METHODS}
    pairs = dict.fromkeys(("dpo", "orpo", "simpo"), DPOConfig)
    assert kinds == {"sft": SFTConfig, "kto": KTOConfig, **pairs}
    assert [m.name for m in METHODS if m.needs_reference] == ["dpo", "kto"]


def test_recipe_groups_are_those_of_the_methods() -> None:
    assert recipe_groups() == ("sft", "dpo")
    assert TRAIN.recipes == recipe_groups()
    mine = replace(HALVED, recipes="mine")
    assert recipe_groups((*METHODS, mine)) == ("sft", "dpo", "mine")


def test_an_unknown_method_comes_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean halved\?"):
        method_named("halves", (*METHODS, HALVED))
    options = TrainOptions(name="a")
    options.preference = replace(_preference(), method="simp")
    (problem,) = (p for p in options.problems() if p.where == "preference.method")
    assert "did you mean simpo?" in problem.mend
    options.preference.method = "sft"
    (problem,) = (p for p in options.problems() if p.where == "preference.method")
    assert "leave preference out" in problem.mend


def _preference() -> Any:
    from gptoss_ft.train.preference_options import PreferenceOptions

    return PreferenceOptions()


def run_with_halved(options: TrainOptions, context: Context) -> Outcome:
    """The command `train` on a table with one row more."""
    return run(options, context, (*METHODS, HALVED))


def test_a_table_with_one_method_more_trains_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chosen by a recipe in a folder of one's own, through the command line."""
    base, chats = write_base(tmp_path / "base"), write_chats(tmp_path / "chats.jsonl", 4)
    (tmp_path / "recipes" / "dpo").mkdir(parents=True)
    (tmp_path / "recipes" / "dpo" / "halved.yaml").write_text(RECIPE)
    own = [f"--config-dir={tmp_path / 'recipes'}", "dpo=halved"]
    arguments = [*own, f"model.path={base}", f"data.path={chats}", f"output={tmp_path}"]
    assert cli.run("train", arguments) == 2, "the package's own table has no such method"
    assert "unknown method" in capsys.readouterr().err
    more = replace(TRAIN, run=f"{__name__}:run_with_halved")
    assert cli.run("train", arguments, [more]) == 0
    manifest = read_manifest(tmp_path / "halved" / "manifest.json")
    assert manifest.method == "halved" and manifest.result is not None
    lines = (tmp_path / "halved" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["share"] for line in lines] == [0.5] * 3, "two steps and the totals"
