"""Whole runs on a very small model: files, resume, validation, early stopping, trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import write_chats
from safetensors.torch import load_file
from transformers import TrainerCallback

from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.dataset import DataOptions
from gptoss_ft.errors import GptOssFtError, RunError
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.options import ModelOptions, TrackerOptions, TrainOptions
from gptoss_ft.train.run import train

TRAINER = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "model"
    write_tiny(
        out, TinyOptions(layers=2, hidden_size=32, intermediate_size=32, heads=1, kv_heads=1)
    )
    return out


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", 6)


def _options(base: Path, chats: Path, output: Path, **settings: Any) -> TrainOptions:
    trainer = TRAINER | settings.pop("trainer", {})
    data = DataOptions(path=str(chats), **{"packing": False, **settings.pop("data", {})})
    return TrainOptions(
        **{
            "name": "run",
            "output": str(output),
            "model": ModelOptions(path=str(base)),
            "adapter": AdapterOptions(["attention", "router"], r=4),
            "data": data,
            "trainer": trainer,
            **settings,
        }
    )


def _run(options: TrainOptions, *callbacks: TrainerCallback) -> tuple[Path, list[str]]:
    said: list[str] = []
    assert options.problems() == []
    result = train(options, "name: run\n", said.append, callbacks=callbacks)
    return result.adapter.parent, said


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    files = (run / "adapter").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_a_run_writes_its_four_files_and_what_it_was_made_of(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    run, said = _run(_options(base, chats, tmp_path, trainer={"num_train_epochs": 2}))
    names = {path.name for path in run.iterdir()}
    assert names == {"adapter", "config.yaml", "manifest.json", "metrics.jsonl"}
    assert (run / "config.yaml").read_text() == "name: run\n"

    manifest = json.loads((run / "manifest.json").read_text())
    checkpoint = open_checkpoint(base)
    assert manifest["status"] == "complete"
    assert manifest["base_fingerprint"] == fingerprint(checkpoint)
    assert len(manifest["data_fingerprint"]) == 64
    assert manifest["seed"] == 0
    assert manifest["steps"] == 6
    assert {"gptoss-ft", "torch", "transformers", "peft", "trl"} <= manifest["versions"].keys()
    summary = manifest["data_summary"]
    assert summary["conversations"] == summary["rows"] == 6
    assert manifest["tokens_seen"] == 2 * summary["tokens"]

    lines = _metrics(run)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for key in ("learning_rate", "grad_norm", "tokens_per_second", "memory_gib", "token_accuracy"):
        assert all(line[key] >= 0 for line in steps), key
    assert sum(line["trained_tokens"] for line in steps) == 2 * summary["trained_tokens"]
    assert manifest["first_loss"] == steps[0]["loss"]

    adapter = open_adapter(run / "adapter")
    assert adapter.base_fingerprint == manifest["base_fingerprint"]
    assert set(adapter.kinds) == {"attention", "router"}
    assert any("6 conversations" in line for line in said)
    assert any("parameters of attention" in line for line in said)


def test_equal_seeds_give_equal_adapters(base: Path, chats: Path, tmp_path: Path) -> None:
    runs = {
        name: _run(_options(base, chats, tmp_path, name=name, seed=seed))[0]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    a, b, c = (_tensors(runs[name]) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


class _Interrupt(TrainerCallback):
    """A user's Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_as_an_undisturbed_one(base: Path, chats: Path, tmp_path: Path) -> None:
    trainer = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    kinds = AdapterOptions(["experts", "lossless"], r=4)
    whole, _ = _run(_options(base, chats, tmp_path, name="whole", trainer=trainer, adapter=kinds))

    broken = _options(base, chats, tmp_path, name="broken", trainer=trainer, adapter=kinds)
    with pytest.raises(KeyboardInterrupt):
        _run(broken, _Interrupt(5))
    assert not (tmp_path / "broken" / "adapter").exists()
    assert json.loads((tmp_path / "broken/manifest.json").read_text())["status"] == "running"
    with pytest.raises(RunError, match="resume=true"):
        _run(broken)

    broken.resume = True
    resumed, said = _run(broken)
    assert any(line.endswith("checkpoint-4") for line in said)
    before, after = _tensors(whole), _tensors(resumed)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    losses = [
        [(m["step"], m["loss"]) for m in _metrics(r) if "loss" in m] for r in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    seen = [json.loads((r / "manifest.json").read_text())["tokens_seen"] for r in (whole, resumed)]
    assert seen[0] == seen[1]

    with pytest.raises(RunError, match="complete"):
        _run(broken)


def test_run_folder_base_and_data_are_refused_together(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(GptOssFtError) as refused:
        _run(_options(tmp_path / "nowhere", tmp_path / "none.jsonl", tmp_path))
    text = str(refused.value)
    assert "not empty" in text and "nowhere" in text and "none.jsonl" in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def _evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in _metrics(run) if "eval_loss" in line]


def test_the_best_checkpoint_by_validation_loss_is_kept(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    """At an absurd learning rate the losses jump about, so the last is hardly the best."""
    trainer = {"learning_rate": 0.5, "num_train_epochs": 5, "lr_scheduler_type": "constant"}
    data = {"validation_split": 0.3}
    run, _ = _run(
        _options(base, chats, tmp_path, data=data, trainer=trainer | {"save_strategy": "epoch"})
    )
    evaluations = _evaluations(run)
    assert len(evaluations) == 5
    assert all(0 <= line["eval_token_accuracy"] <= 1 for line in evaluations)
    best = min(evaluations, key=lambda line: line["eval_loss"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["best_eval_loss"] == pytest.approx(best["eval_loss"])
    kept = Path(manifest["best_checkpoint"])
    assert kept.name == f"checkpoint-{best['step']}"
    saved = {n: t for f in kept.glob("*.safetensors") for n, t in load_file(f).items()}
    tensors = _tensors(run)
    assert tensors.keys() == saved.keys()
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)


def test_a_run_without_progress_stops_early(base: Path, chats: Path, tmp_path: Path) -> None:
    trainer = {"learning_rate": 1e-30, "num_train_epochs": 9, "save_strategy": "epoch"}
    data = {"validation_count": 2}
    run, _ = _run(_options(base, chats, tmp_path, data=data, trainer=trainer, early_stopping=2))
    assert len(_evaluations(run)) == 3, "the first one, and two without improvement"
    assert json.loads((run / "manifest.json").read_text())["steps"] == 6


def test_tensorboard_gets_the_metrics(base: Path, chats: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = _run(_options(base, chats, tmp_path, tracker=TrackerOptions("tensorboard")))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    expected = [line["loss"] for line in _metrics(run) if "loss" in line]
    assert logged == pytest.approx(expected)


def test_wandb_works_offline_and_stays_in_the_run_folder(
    base: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    run, _ = _run(_options(base, chats, tmp_path, tracker=TrackerOptions("wandb")))
    files = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0
