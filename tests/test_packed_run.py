"""Whole runs on packed rows: what they train on, what they log, and how they resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import write_chats
from safetensors.torch import load_file

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.options import DataOptions
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.options import ModelOptions, TrainOptions
from gptoss_ft.train.run import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "model"
    write_tiny(
        out, TinyOptions(layers=1, hidden_size=32, intermediate_size=32, heads=1, kv_heads=1)
    )
    return out


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", 12)


def _run(
    base: Path, chats: Path, output: Path, name: str, packing: bool, **settings: Any
) -> tuple[Path, list[str]]:
    resume = settings.pop("resume", False)
    options = TrainOptions(
        name=name,
        output=str(output),
        resume=resume,
        model=ModelOptions(path=str(base)),
        adapter=AdapterOptions(["attention", "experts"], r=4),
        data=DataOptions(path=str(chats), packing=packing, max_length=400, validation_count=4),
        trainer={
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "linear",
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            **settings,
        },
    )
    assert options.problems() == []
    said: list[str] = []
    return train(options, "name: run\n", said.append).adapter.parent, said


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_a_step_over_all_rows_is_the_same_packed_or_not(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    """Loss, gradient norm, evaluation and counts; the packed run has fewer batches."""
    one_step = {"gradient_accumulation_steps": 8, "max_steps": 1, "learning_rate": 1e-30}
    runs = {
        packing: _run(base, chats, tmp_path, f"packing-{packing}", packing, **one_step)
        for packing in (False, True)
    }
    logs = {packing: _metrics(run) for packing, (run, _) in runs.items()}
    (alone,), (packed,) = ([m for m in logs[packing] if "loss" in m] for packing in (False, True))
    for key in ("loss", "grad_norm", "token_accuracy"):
        assert packed[key] == pytest.approx(alone[key], rel=1e-4), key
    for key in ("tokens", "trained_tokens"):
        assert packed[key] == alone[key] > 0, key
    evaluations = [
        next(m["eval_loss"] for m in logs[packing] if "eval_loss" in m) for packing in logs
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
    (line,) = [line for line in runs[True][1] if "packed into" in line]
    summary = json.loads((runs[True][0] / "manifest.json").read_text())["data_summary"]
    assert line.startswith(f"packed into {summary['packed_rows']} rows")
    assert 2 <= summary["packed_rows"] < 8 == summary["train_rows"]


def test_a_packed_run_resumed_within_an_epoch_ends_as_an_undisturbed_one(
    base: Path, chats: Path, tmp_path: Path
) -> None:
    every = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4}
    every |= {"save_total_limit": None, "eval_strategy": "no"}
    whole, _ = _run(base, chats, tmp_path, "whole", True, **every)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "adapter")
    steps = json.loads((whole / "manifest.json").read_text())["steps"]
    assert steps // 2 < 4 < steps < 8, "the newest checkpoint lies within the second epoch"
    shutil.rmtree(broken / "checkpoints" / f"checkpoint-{steps}")
    resumed, said = _run(base, chats, tmp_path, "broken", True, resume=True, **every)
    assert any(line.endswith("checkpoint-4") for line in said)
    expected, found = _adapter(whole), _adapter(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
