"""A resumed run shares its settings with its start, but for a short list."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from chats import write_chats
from preference_runs import preference_options, write_base, write_pairs
from transformers import TrainerCallback

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.errors import RunError
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.train.manifest import Manifest, RunResult, read_manifest, write_manifest
from gptoss_ft.train.methods import method_named
from gptoss_ft.train.options import TrackerOptions, TrainOptions
from gptoss_ft.train.preference_options import PreferenceOptions
from gptoss_ft.train.prepare import open_run, prepare
from gptoss_ft.train.resume import permitted_changes, setting_problems, settings_of
from gptoss_ft.train.run import train
from gptoss_ft.train.settings import configure

SAVED = {"save_strategy": "steps", "save_steps": 2}
CONFIG = "# a comment\nname: run\ntrainer:\n  logging_steps: 1\n"


class _Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """SFT that was interrupted after its third step, with a checkpoint of the second."""
    home = tmp_path_factory.mktemp("runs")
    chats = write_chats(home / "chats.jsonl", 8)
    options = preference_options(write_base(home / "model"), chats, home, trainer=SAVED)
    options = replace(options, preference=None)
    with pytest.raises(KeyboardInterrupt):
        train(options, CONFIG, lambda line: None, callbacks=[_Interrupt()])
    return replace(options, resume=True)


def _folder(options: TrainOptions) -> Path:
    return Path(options.output) / options.name


Change = Callable[[TrainOptions], TrainOptions]
REFUSED: list[tuple[list[str], Change]] = [
    (["trainer.learning_rate"], lambda o: _trainer(o, learning_rate=1e-5)),
    (
        ["trainer.learning_rate", "trainer.num_train_epochs"],
        lambda o: _trainer(o, learning_rate=1e-5, num_train_epochs=9),
    ),
    (["seed"], lambda o: replace(o, seed=3)),
    (["adapter.kinds"], lambda o: replace(o, adapter=AdapterOptions(["experts"], r=4))),
    (["adapter.r"], lambda o: replace(o, adapter=replace(o.adapter, r=5))),
    (["data.max_length"], lambda o: replace(o, data=replace(o.data, max_length=300))),
    (
        ["data.packing"],
        lambda o: _trainer(
            replace(o, data=replace(o.data, packing=True)),
            train_sampling_strategy="group_by_length",
        ),
    ),
    (
        ["data.render.weights.analysis"],
        lambda o: replace(
            o,
            data=replace(
                o.data,
                render=RenderOptions(weights={**o.data.render.weights, "analysis": 0.0}),
            ),
        ),
    ),
    (["preference.method"], lambda o: replace(o, preference=PreferenceOptions("orpo"))),
]


def _trainer(options: TrainOptions, **settings: Any) -> TrainOptions:
    return replace(options, trainer=options.trainer | settings)


@pytest.mark.parametrize(("keys", "change"), REFUSED, ids=[keys[-1] for keys, _ in REFUSED])
def test_another_value_is_refused_and_named(
    broken: TrainOptions, keys: list[str], change: Change
) -> None:
    files = {path: path.read_bytes() for path in _folder(broken).rglob("*") if path.is_file()}
    with pytest.raises(RunError) as refused:
        prepare(change(broken), lambda line: None, with_data=False)
    assert sorted(problem.where for problem in refused.value.problems) == keys
    assert all("started with another value" in problem.what for problem in refused.value.problems)
    assert all("before: " in problem.found for problem in refused.value.problems)
    found = {path: path.read_bytes() for path in _folder(broken).rglob("*") if path.is_file()}
    assert found == files, "nothing was touched"


def test_a_problem_shows_both_values(broken: TrainOptions) -> None:
    with pytest.raises(RunError) as refused:
        prepare(_trainer(broken, learning_rate=1e-5), lambda line: None, with_data=False)
    (problem,) = refused.value.problems
    assert problem.found == "1e-05, before: 0.01"


def test_other_rows_and_another_base_are_refused(broken: TrainOptions, tmp_path: Path) -> None:
    rows = write_chats(tmp_path / "chats.jsonl", 9)
    other_rows = replace(broken, data=replace(broken.data, path=str(rows)))
    base = write_base(tmp_path / "model", seed=1)
    other_base = replace(broken, model=replace(broken.model, path=str(base)))
    for options, where in (
        (other_rows, "data_fingerprint (data)"),
        (other_base, "base_fingerprint (model.path)"),
    ):
        with pytest.raises(RunError) as refused:
            prepare(options, lambda line: None)
        assert [problem.where for problem in refused.value.problems] == [where]


def _manifest(options: TrainOptions, **settings: Any) -> Manifest:
    """A manifest in which nothing counts but method and settings."""
    return Manifest(
        name="run",
        method=options.method,
        status="running",
        base="",
        base_fingerprint="",
        data=[],
        data_fingerprint="",
        adapter={},
        init_fingerprint=None,
        seed=0,
        data_summary={},
        versions={},
        settings=_settings(options) | settings,
    )


def _settings(options: TrainOptions) -> dict[str, Any]:
    return settings_of(options, configure(options, method_named(options.method), Path("run")))


def _pairs(method: str = "dpo", **settings: Any) -> TrainOptions:
    preference = {"method": method, **settings.pop("preference", {})}
    return preference_options(
        Path("model"), Path("pairs"), Path("out"), preference=preference, **settings
    )


@pytest.mark.parametrize(
    ("start", "now", "keys"),
    [
        (_pairs(), _pairs("simpo"), ["preference.method"]),
        (
            _pairs(),
            _pairs(preference={"shared_prompt": False, "length_normalized": True}),
            ["preference.length_normalized", "preference.shared_prompt"],
        ),
        (
            _pairs("simpo"),
            _pairs("simpo", preference={"simpo_gamma": 2.0}),
            ["preference.simpo_gamma"],
        ),
        (_pairs(), _pairs(trainer={"beta": 0.7}), ["trainer.beta"]),
        (_pairs(), _pairs(trainer={"beta": 0.1}), []),  # TRL's own value, spelled out
        (
            _pairs(data={"validation_split": 0.5}, trainer=SAVED),
            _pairs(data={"validation_split": 0.5}, trainer=SAVED | {"save_steps": 4}),
            ["trainer.eval_steps"],  # decides what the best checkpoint is
        ),
        (_pairs(trainer=SAVED), _pairs(trainer=SAVED | {"save_steps": 4}), []),
        (_pairs(), replace(_pairs(), early_stopping=3), ["early_stopping"]),
    ],
)
def test_settings_of_the_method_and_of_evaluation_count(
    start: TrainOptions, now: TrainOptions, keys: list[str]
) -> None:
    found = setting_problems(_manifest(start), now.method, _settings(now))
    assert sorted(problem.where for problem in found) == keys


def test_a_setting_that_a_later_version_adds_counts_when_it_is_set() -> None:
    """None and absent are one: a library's new setting that is off is no difference."""
    start = _manifest(_pairs(), **{"trainer.gone": None})
    assert not setting_problems(start, "dpo", _settings(_pairs()) | {"trainer.fresh": None})
    found = setting_problems(start, "dpo", _settings(_pairs()) | {"trainer.fresh": 2})
    assert [problem.where for problem in found] == ["trainer.fresh"]


def test_what_may_change_is_taken_and_recorded(broken: TrainOptions) -> None:
    """The run moves, is logged elsewhere, and finishes; config.yaml stays that of its start."""
    options = _trainer(broken, logging_steps=4, save_total_limit=1)
    options = replace(options, name="moved", tracker=TrackerOptions(mode="online"))
    shutil.copytree(_folder(broken), _folder(options))
    prepared = prepare(options, lambda line: None)
    assert prepared.before is not None
    changed = permitted_changes(prepared.before, prepared.settings())
    assert changed == {
        "name": "moved",
        "tracker.mode": "online",
        "trainer.logging_steps": 4,
        "trainer.save_total_limit": 1,
    }
    open_run(prepared, "name: another\n")
    result = train(options, "name: another\n", lambda line: None)
    text = (_folder(options) / "config.yaml").read_text()
    assert yaml.safe_load(text) == yaml.safe_load(CONFIG)
    assert text.startswith(CONFIG)
    lines = text.removeprefix(CONFIG).splitlines()
    assert len(lines) == 2, "one for each resume"
    for line in lines:
        assert line.startswith("# resumed 20") and " from checkpoint-2: " in line
        for change in ('name="moved"', 'tracker.mode="online"', "trainer.logging_steps=4"):
            assert change in line.split()
    manifest = read_manifest(_folder(options) / "manifest.json")
    assert manifest.settings["trainer.logging_steps"] == 1, "as it was started"
    assert manifest.status == "complete" and manifest.result == result
    assert result.objective == result.last_loss


RESULT = RunResult(Path("run/adapter"), 3, 1.5, None, 0.25, 99, 2.0, 1.0, 0.75)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    running = _manifest(_pairs())
    result = replace(RESULT, adapter=tmp_path / "adapter")
    for manifest in (running, replace(running, status="complete", result=result)):
        write_manifest(tmp_path / "manifest.json", manifest)
        assert read_manifest(tmp_path / "manifest.json") == manifest
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format"] == 1 and content["reward_accuracy"] == 0.75
    assert "result" not in content and content["adapter"] == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": None}, ["an older version", "start the run over"]),
        ({"format": 2}, ["a newer version", "format 2", "update gptoss-ft"]),
        ({"settings": None}, ["not whole", "no settings"]),
    ],
)
def test_a_manifest_of_another_version_is_refused(
    change: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "manifest.json"
    write_manifest(file, _manifest(_pairs()))
    content = json.loads(file.read_text()) | change
    for name in [name for name, value in change.items() if value is None]:
        del content[name]
    file.write_text(json.dumps(content))
    with pytest.raises(RunError) as refused:
        read_manifest(file)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name"')
    with pytest.raises(RunError, match="not valid JSON"):
        read_manifest(tmp_path / "manifest.json")


def test_the_objective_is_the_best_validation_loss() -> None:
    assert RESULT.objective == 0.25
    assert replace(RESULT, best_eval_loss=None).objective == 1.0


def test_resuming_pairs_with_another_loss_is_refused_before_rows_are_read(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 4)
    options = preference_options(write_base(tmp_path / "model"), pairs, tmp_path, trainer=SAVED)
    open_run(prepare(options, lambda line: None), "name: run\n")
    resumed = _trainer(replace(options, resume=True), loss_type=["hinge"])
    with pytest.raises(RunError, match=r"trainer\.loss_type"):
        prepare(resumed, lambda line: pytest.fail("went too far"))
