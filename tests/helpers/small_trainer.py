"""Our trainer on a small model, with an adapter that is not zero anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer
from trl import SFTConfig

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.harmony.vocabulary import write_tokenizer_files
from gptoss_ft.model.load import load_model
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer


def adapted(base: Path, kinds: list[str] | None = None) -> AdaptedModel:
    torch.manual_seed(0)
    options = AdapterOptions(kinds or ["attention", "experts"], r=8, expert_r=4, alpha=16)
    model = add_adapter(load_model(open_checkpoint(base)), options, AdapterInfo((), "", ""))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def settings_for(out: Path, **settings: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "router_aux_loss_coef": 0.0,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        **settings,
    }


def trainer_on(
    model: AdaptedModel, rows: datasets.Dataset, out: Path, **settings: Any
) -> WeightedSFTTrainer:
    return WeightedSFTTrainer(
        model=model,
        args=SFTConfig(**settings_for(out, **settings)),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer_in(out),
        data_collator=Collator(),
    )


def tokenizer_in(out: Path) -> Any:
    folder = out / "tokenizer"
    if not folder.exists():
        folder.mkdir(parents=True)
        write_tokenizer_files(folder)
    return AutoTokenizer.from_pretrained(folder)
