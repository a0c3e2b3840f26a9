"""Interrupted runs that are resumed: weights, metrics, the best checkpoint, the end of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import RunError
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train import prepare, steps
from gptoss_ft.train.options import ModelOptions, TrainOptions
from gptoss_ft.train.run import train

TRAINER = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}
VALIDATED = {
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "save_total_limit": 1,
    "num_train_epochs": 5,
}
# Every epoch is twice as bad as the one before or worse, so the first is the best on any machine.
WORSENING = {"learning_rate": 10, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("base") / "model"
    sizes = TinyOptions(layers=2, hidden_size=32, intermediate_size=32, heads=1, kv_heads=1)
    write_tiny(out, sizes)
    tokenizer = AutoTokenizer.from_pretrained(out)
    with pytest.MonkeyPatch.context() as patch:  # reading it takes longer than a whole run here
        once = SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
        patch.setattr(steps, "AutoTokenizer", once)
        yield out


@dataclass
class Runs:
    """Runs of one model on 6 rows, 3 steps an epoch; those that nobody disturbs are made once.

    Attributes:
        home: the folder of the runs.
        whole: undisturbed runs by their settings.
    """

    base: Path
    home: Path
    whole: dict[str, Path] = field(default_factory=dict)

    def options(self, name: str, stopping: int = 0, **trainer: Any) -> TrainOptions:
        held_out = 2 if "eval_strategy" in trainer else 0
        chats = str(self.home / "chats.jsonl")
        return TrainOptions(
            name=name,
            output=str(self.home),
            early_stopping=stopping,
            model=ModelOptions(path=str(self.base)),
            adapter=AdapterOptions(["experts", "lossless"], r=4),
            data=DataOptions(path=chats, packing=False, validation_count=held_out),
            trainer=TRAINER | trainer,
        )

    def undisturbed(self, **settings: Any) -> Path:
        key = json.dumps(settings, sort_keys=True)
        if key not in self.whole:
            self.whole[key] = _run(self.options(f"whole{len(self.whole)}", **settings))
        return self.whole[key]

    def interrupted(self, name: str, step: int | None, **settings: Any) -> Path:
        """Interrupted after `step`, or at the very end, and resumed."""
        options = self.options(name, **settings)
        _interrupt(options, step)
        options.resume = True
        return _run(options)


@pytest.fixture(scope="module")
def runs(base: Path) -> Runs:
    rows = [
        {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": text}]}
        for text in ("A. " * n for n in range(1, 7))
    ]
    chats = base.parent / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Runs(base, base.parent)


class _Interrupt(TrainerCallback):
    """Ctrl-C after a step, or when training has ended and nothing is written yet."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def _run(options: TrainOptions, *callbacks: TrainerCallback) -> Path:
    assert options.problems() == []
    result = train(options, "name: run\n", lambda line: None, callbacks=callbacks)
    return result.adapter.parent


def _interrupt(options: TrainOptions, step: int | None) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(options, _Interrupt(step))


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    files = (run / "adapter").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _reproducible(run: Path) -> list[dict[str, Any]]:
    """Log lines without times and memory."""
    timed = ("second", "runtime", "memory", "gib")
    return [
        {key: value for key, value in line.items() if not any(word in key for word in timed)}
        for line in _metrics(run)
        if "train_runtime" not in line
    ]


def _assert_same(run: Path, whole: Path) -> None:
    ours, theirs = _tensors(run), _tensors(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert _reproducible(run) == _reproducible(whole)
    assert sum("train_runtime" in line for line in _metrics(run)) == 1


def test_a_log_over_several_steps_is_the_same_across_a_resume(runs: Runs) -> None:
    """Checkpoints at 2 and 4 fall between the logs at 1, 3 and 6: sums go over."""
    whole = runs.undisturbed(logging_steps=3)
    assert [line["step"] for line in _reproducible(whole)] == [1, 3, 6]
    _assert_same(runs.interrupted("logs", 5, logging_steps=3), whole)


def test_a_run_that_died_after_its_last_step_takes_no_other(runs: Runs) -> None:
    """The last step is in the middle of an epoch."""
    whole = runs.undisturbed(max_steps=4)
    run = runs.interrupted("last", None, max_steps=4)
    _assert_same(run, whole)
    assert [line["step"] for line in _metrics(run) if "loss" in line] == [1, 2, 3, 4]


def test_the_best_checkpoint_outlives_the_limit_and_a_resume(runs: Runs) -> None:
    """One checkpoint is kept besides the best, which is the first here."""
    settings = {**VALIDATED, **WORSENING}
    whole = runs.undisturbed(**settings)
    best = json.loads((whole / "manifest.json").read_text())["best_checkpoint"]
    assert best == str(whole / "checkpoints" / "checkpoint-2")
    run = runs.interrupted("best", 9, **settings)
    _assert_same(run, whole)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["best_checkpoint"] == str(run / "checkpoints" / "checkpoint-2")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("step", [5, None])
def test_patience_goes_over_and_stays_over(runs: Runs, step: int | None) -> None:
    settings = {**VALIDATED, "learning_rate": 1e-30, "num_train_epochs": 9, "stopping": 3}
    whole = runs.undisturbed(**settings)
    assert json.loads((whole / "manifest.json").read_text())["steps"] == 8, "four epochs of two"
    _assert_same(runs.interrupted(f"patience{step}", step, **settings), whole)


def test_a_checkpoint_holds_nothing_that_runs_code_when_loaded(runs: Runs) -> None:
    run = runs.undisturbed()
    checkpoint = run / "checkpoints" / "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "contents.json",
        "gptoss_ft.json",
        "metrics_0.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trained_tensors.safetensors",
        "trainer_state.json",
    }
    with safe_globals():
        states = {
            path.name: torch.load(path, weights_only=True)
            for path in checkpoint.iterdir()
            if path.suffix in (".pt", ".pth")
        }
    moments = states["optimizer.pt"]["state"].values()
    assert len(moments) == len(_tensors(run))
    for moment in moments:
        assert moment["exp_avg"].dtype == moment["exp_avg_sq"].dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in _tensors(run).values())


def test_a_line_that_was_cut_off_is_dropped(runs: Runs) -> None:
    options = runs.options("cut")
    _interrupt(options, 5)
    with (runs.home / "cut" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "loss": 2.')
    options.resume = True
    _assert_same(_run(options), runs.undisturbed())


def test_a_run_killed_before_its_manifest_said_complete_is_finished(runs: Runs) -> None:
    """The adapter was renamed into place, and then the process died."""
    run = runs.home / "unsaid"
    shutil.copytree(runs.undisturbed(), run)
    _set_status(run, "running")
    options = runs.options("unsaid")
    options.resume = True
    _run(options)
    _assert_same(run, runs.undisturbed())
    assert json.loads((run / "manifest.json").read_text())["status"] == "complete"


def _set_status(run: Path, status: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": status}))


def test_leftovers_of_a_killed_process_are_no_obstacle_and_vanish(runs: Runs) -> None:
    """Killed before it wrote a manifest, there is nothing but an unfinished file."""
    options = runs.options("left", max_steps=2)
    run = runs.home / "left"
    run.mkdir()
    (run / ".manifest.json.tmp17").write_text("{")
    with pytest.raises(RunError, match="resume=true"):
        _run(options)
    options.resume = True
    _run(options)
    names = {path.name for path in run.iterdir()}
    assert names == {"adapter", "checkpoints", "config.yaml", "manifest.json", "metrics.jsonl"}


def test_a_run_whose_checkpoints_are_all_broken_is_refused_before_anything_is_loaded(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.home / "broken"
    shutil.copytree(runs.undisturbed(), run)
    _set_status(run, "running")
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "optimizer.pt").unlink()
    monkeypatch.setattr(prepare, "load_vocabulary", lambda path: pytest.fail("went too far"))
    options = runs.options("broken")
    options.resume = True
    with pytest.raises(RunError, match="no checkpoint of this run is whole"):
        _run(options)
