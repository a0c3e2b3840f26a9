"""Preference runs on a very small model, from files written for the purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.options import DataOptions
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.options import ModelOptions, TrainOptions
from gptoss_ft.train.preference_options import PreferenceOptions
from gptoss_ft.train.run import train

SMALL = {"layers": 2, "hidden_size": 32, "intermediate_size": 32, "heads": 1, "kv_heads": 1}
TRAINER = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "linear",
    "save_strategy": "no",
}


def write_base(out: Path, seed: int = 0) -> Path:
    write_tiny(out, TinyOptions(**SMALL, seed=seed))
    return out


def write_pairs(file: Path, count: int, first: int = 0) -> Path:
    rows = []
    for i in range(first, first + count):
        chosen = {"role": "assistant", "thinking": f"thought {i}", "content": "yes " * (1 + i % 4)}
        rejected = {"role": "assistant", "content": f"no {i}"}
        asked = {"role": "user", "content": f"question {i}?"}
        rows.append({"prompt": [asked], "chosen": [chosen], "rejected": [rejected]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def preference_options(base: Path, pairs: Path, output: Path, **settings: Any) -> TrainOptions:
    """A DPO run without packing; `data`, `trainer` and `preference` are added to what is set."""
    data = {"path": str(pairs), "packing": False, "cache": str(output / "cache")}
    return TrainOptions(
        **{
            "name": "run",
            "output": str(output),
            "model": ModelOptions(path=str(base)),
            "adapter": AdapterOptions(["attention", "router"], r=4),
            **settings,
            "data": DataOptions(**{**data, **settings.get("data", {})}),
            "preference": PreferenceOptions(**settings.get("preference", {})),
            "trainer": TRAINER | settings.get("trainer", {}),
        }
    )


def run_preference(options: TrainOptions, *callbacks: TrainerCallback) -> tuple[Path, list[str]]:
    """The run's folder, and what it said."""
    said: list[str] = []
    assert options.problems() == []
    result = train(options, "name: run\n", said.append, callbacks=callbacks)
    return result.adapter.parent, said


def logs_of(run: Path) -> list[dict[str, Any]]:
    """The log lines that have a loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
