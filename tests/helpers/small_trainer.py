"""Our trainer on a small model, with an adapter that is not zero anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from models import random_adapter
from trainers import sft_settings, sft_trainer
from trl import SFTConfig

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer


def adapted(base: Path, kinds: list[str] | None = None, seed: int = 1) -> AdaptedModel:
    """Loads a base with a random adapter, on attention and experts unless told otherwise."""
    options = AdapterOptions(kinds or ["attention", "experts"], r=8, expert_r=4, alpha=16)
    return random_adapter(base, options, std=0.05, seed=seed)


def settings_for(out: Path, **settings: Any) -> dict[str, Any]:
    """Returns settings of a short run that logs every step; `settings` come on top."""
    return {
        **sft_settings(out),
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        **settings,
    }


def trainer_on(
    model: AdaptedModel, rows: datasets.Dataset, out: Path, **settings: Any
) -> WeightedSFTTrainer:
    """Builds our trainer on rows, on which it evaluates too."""
    return sft_trainer(model, rows, SFTConfig(**settings_for(out, **settings)))
