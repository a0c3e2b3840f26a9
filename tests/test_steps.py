"""What all runs hand to TRL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig

from gptoss_ft.data.options import DataOptions
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.settings import trainer_settings


@pytest.mark.parametrize(
    ("trainer", "when", "loads_the_best"),
    [
        ({}, ("epoch", "epoch"), True),
        ({"save_strategy": "steps", "save_steps": 7}, ("steps", "steps"), True),
        ({"save_strategy": "no"}, ("epoch", "no"), False),
        ({"eval_strategy": "steps", "eval_steps": 3}, ("steps", "epoch"), False),
        ({"eval_strategy": "no"}, ("no", "epoch"), False),
    ],
)
def test_checkpoints_are_evaluated_whenever_they_are_saved(
    trainer: dict[str, Any], when: tuple[str, str], loads_the_best: bool
) -> None:
    """Whatever the recipe says of saving, held-out rows never lead to an error of transformers."""
    options = TrainOptions(data=DataOptions("x", validation_split=0.5), trainer=trainer)
    config = SFTConfig(**trainer_settings(options, Path("x")))
    assert (config.eval_strategy.value, config.save_strategy.value) == when
    assert config.load_best_model_at_end == loads_the_best
    if when == ("steps", "steps"):
        assert config.eval_steps == config.save_steps == 7
