"""A preference run that goes on from a checkpoint: the same steps, the same logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_preferences import (
    dpo_trainer,
    kto_trainer,
    pair_rows,
    preference_base,
    rated_rows,
    trained,
    with_rated_reference,
    with_reference,
)
from small_trainer import adapted

UNTIMED = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_base(tmp_path_factory)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_resumed_run_logs_and_trains_the_same(base: Path, tmp_path: Path, method: str) -> None:
    """Resumed between two logs, whose means take in the steps before the checkpoint."""
    model = adapted(base)
    if method == "dpo":
        make: Any = dpo_trainer
        rows = with_reference(model, pair_rows(5))
    else:
        make = kto_trainer
        rows = with_rated_reference(model, rated_rows(6, group=2))
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 5,
        "logging_first_step": False,
    }
    whole = make(model, rows, tmp_path / "run", **settings)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert (checkpoint / "contents.json").is_file() and (checkpoint / "metrics_0.json").is_file()
    resumed = make(adapted(base), rows, tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    (expected,) = [log for log in whole.state.log_history if "loss" in log]
    (found,) = [log for log in resumed.state.log_history if "loss" in log]
    assert found == expected
    assert expected["tokens"] == expected["num_tokens"] > 0
    other = trained(resumed.model)
    for name, tensor in trained(model).items():
        assert torch.equal(tensor, other[name]), name
