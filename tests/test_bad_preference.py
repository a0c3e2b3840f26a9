"""What a user can get wrong in preference tuning: exit code 2, all at once, nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preference_runs import write_base, write_pairs

from gptoss_ft.cli import run
from gptoss_ft.data.options import DataOptions
from gptoss_ft.train.options import ModelOptions, TrainOptions
from gptoss_ft.train.preference_options import PreferenceOptions, preference_problems


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def _refused(
    capsys: pytest.CaptureFixture[str], base: Path, data: Path, recipe: str, *more: str
) -> str:
    output = data.parent / "out"
    arguments = [f"dpo={recipe}", f"model.path={base}", f"data.path={data}", f"output={output}"]
    assert run("train", [*arguments, "name=r", *more]) == 2
    assert not output.exists(), "nothing was written"
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def _write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


SAME = {"prompt": "a", "chosen": "b", "rejected": "b"}
OTHER_PROMPTS = {
    side: [{"role": "user", "content": asked}, {"role": "assistant", "content": "b"}]
    for side, asked in (("chosen", "a"), ("rejected", "another"))
}
UNLABELLED = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("recipe", "rows", "words"),
    [
        ("lora_20b", [SAME, SAME], ["chosen equals rejected in every pair", "2 pairs"]),
        ("orpo_20b", [OTHER_PROMPTS], [":1", "do not begin with the same prompt"]),
        ("kto_20b", [UNLABELLED], [":1", "has no `label`"]),
        ("simpo_20b", [UNLABELLED | {"label": True}], [":1", "dpo=kto_20b"]),
        ("ipo_20b", [{"messages": [{"role": "user", "content": "a"}]}], [":1", "no assistant"]),
    ],
)
def test_bad_rows(
    recipe: str,
    rows: list[dict[str, Any]],
    words: list[str],
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = _refused(capsys, base, _write(tmp_path / "rows.jsonl", *rows), recipe)
    assert "rows.jsonl" in text and "fix:" in text
    assert all(word in text for word in words), text


def test_bad_settings_are_reported_together(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    more = ["trainer.beta=0", "trainer.label_smoothin=0.1", "trainer.loss_type=[sigmod]"]
    more += ["preference.simpo_gamma=-1", "trainer.precompute_ref_log_probs=true"]
    text = _refused(capsys, base, pairs, "lora_20b", *more)
    assert text.startswith("5 problems")
    for words in (
        "trainer.beta: must be above 0",
        "did you mean trainer.label_smoothing?",
        "did you mean sigmoid?",
        "preference.simpo_gamma: must not be negative",
        "the reference is always computed once and cached",
    ):
        assert words in text, text


def test_one_recipe_and_one_adapter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    assert "two recipes at once" in _refused(capsys, base, pairs, "demo", "sft=demo")
    more = [f"adapter.init={tmp_path / 'none'}", "adapter=experts", "adapter.r=4"]
    text = _refused(capsys, base, pairs, "demo", *more)
    assert text.startswith("2 problems") and "those of the adapter in adapter.init" in text
    assert "no adapter folder" in _refused(capsys, base, pairs, "demo", more[0])
    assert "did you mean dpo=demo?" in _refused(capsys, base, pairs, "dmo")


BAD = [
    ("dpp", {}, {}, ["did you mean dpo?"]),
    ("dpo", {"beta": -0.1}, {}, ["must be above 0"]),
    ("dpo", {"beta": "a"}, {}, ["must be a number"]),
    ("dpo", {"loss_type": []}, {}, ["no loss"]),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, {}, ["each of"]),
    ("dpo", {"loss_weights": [-1.0]}, {}, ["at least 0"]),
    ("dpo", {"label_smoothing": 0.5}, {}, ["below 0.5"]),
    ("dpo", {"loss_type": "exo_pair"}, {}, ["needs smoothing"]),
    ("dpo", {"ld_alpha": 2}, {}, ["between 0 and 1"]),
    ("dpo", {"f_divergence_type": "kl"}, {}, ["unknown divergence"]),
    ("dpo", {"loss_type": "aot", "f_divergence_type": "forward_kl"}, {}, ["leave out aot"]),
    ("dpo", {"loss_type": "aot", "use_weighting": True}, {}, ["leave out one"]),
    ("dpo", {"loss_type": "ipo"}, {"length_normalized": True}, ["divided by twice", "ipo"]),
    ("dpo", {"sync_ref_model": True}, {}, ["stays what it is"]),
    ("dpo", {"max_length": 5}, {}, ["data.max_length"]),
    ("kto", {"loss_type": "sigmoid"}, {}, ["unknown loss type", "apo_zero_unpaired"]),
    ("kto", {"per_device_train_batch_size": 1}, {}, ["2 or more"]),
    ("kto", {"desirable_weight": 0}, {}, ["must be above 0"]),
    ("kto", {"train_sampling_strategy": "random"}, {}, ["shuffled once"]),
    ("kto", {"label_smoothing": 0.1}, {}, ["unknown setting"]),
    ("orpo", {"loss_type": "sigmoid"}, {}, ["the method is the loss"]),
    ("orpo", {"label_smoothing": 0.1}, {}, ["ORPO has none"]),
    ("simpo", {}, {"length_normalized": True}, ["means over tokens already"]),
]


@pytest.mark.parametrize(("method", "trainer", "settings", "words"), BAD)
def test_contradictions_of_a_method(
    method: str, trainer: dict[str, Any], settings: dict[str, Any], words: list[str]
) -> None:
    data, preference = DataOptions("x", packing=False), PreferenceOptions(method, **settings)
    options = TrainOptions(
        "run", model=ModelOptions("base"), data=data, preference=preference, trainer=trainer
    )
    (problem,) = options.problems()
    assert all(word in str(problem) for word in words), problem
    assert problem.where.startswith(("trainer.", "preference."))


def test_settings_of_the_data_that_make_no_sense_here() -> None:
    data = DataOptions("x", packing=True, without_analysis="low")
    found = preference_problems(PreferenceOptions("kto"), data, {})
    assert [problem.where for problem in found] == ["data.without_analysis", "data.packing"]
    assert not preference_problems(PreferenceOptions("dpo"), DataOptions("x"), {"beta": 0.1})
