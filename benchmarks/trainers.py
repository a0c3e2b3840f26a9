"""The same fine-tuning through our trainer and through TRL with PEFT, one optimizer step at a time.

TRL's side is the best it has on a CPU: float32 weights, grouped_mm experts, eager attention (the
only one that knows sinks there), auxiliary loss off; checkpointing is on by default. The tests
build their trainers with the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from models import load_stock, random_adapter, randomise
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, GptOssForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.adapters.options import ATTENTION_MODULES, EXPERT_PARAMETERS, AdapterOptions
from gptoss_ft.data.collate import Collator
from gptoss_ft.data.collate_pairs import PairCollator
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer

LEARNING_RATE = 1e-4


def our_model(base: Path, rank: int) -> AdaptedModel:
    """Loads the packed checkpoint with an adapter on attention and experts, every tensor random."""
    options = AdapterOptions(["attention", "experts"], r=rank, expert_r=rank, alpha=rank)
    return random_adapter(base, options)


def stock_model(base: Path) -> GptOssForCausalLM:
    """Loads the dequantised checkpoint into stock transformers, at its best setting for a CPU."""
    return load_stock(base, experts_implementation="grouped_mm")


def stock_lora(rank: int) -> LoraConfig:
    """PEFT's configuration of the adapter that `our_model` has."""
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(ATTENTION_MODULES),
        target_parameters=list(EXPERT_PARAMETERS),
        task_type="CAUSAL_LM",
    )


def common_settings(out: Path) -> dict[str, Any]:
    """Returns the settings that all trainers of both sides are given."""
    return {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "router_aux_loss_coef": 0.0,
        "learning_rate": LEARNING_RATE,
    }


def sft_settings(out: Path) -> dict[str, Any]:
    """Returns the common settings, and what TRL's SFT needs for rows that are tokens already."""
    ready = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    return {**common_settings(out), **ready}


def our_trainer(base: Path, rows: datasets.Dataset, rank: int, **settings: Any) -> SFTTrainer:
    """Builds our trainer on the packed checkpoint; every adapter tensor is random."""
    return sft_trainer(
        our_model(base, rank), rows, _arguments(base, gradient_checkpointing=False, **settings)
    )


def sft_trainer(
    model: AdaptedModel, rows: datasets.Dataset, arguments: SFTConfig
) -> WeightedSFTTrainer:
    """Builds our trainer; it evaluates on the rows that it trains on."""
    return WeightedSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer_of(model),
        data_collator=Collator(),
    )


def pair_trainer_on(
    kind: type[Any],
    model: AdaptedModel,
    rows: list[dict[str, Any]],
    arguments: DPOConfig,
    collator: PairCollator | None = None,
    **more: Any,
) -> Any:
    """Builds one of our trainers on pairs; it evaluates on the rows that it trains on."""
    dataset = datasets.Dataset.from_list(rows)
    return kind(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer_of(model),
        data_collator=collator or PairCollator(),
        **more,
    )


class DPOOnIds(DPOTrainer):
    """TRL's trainer for rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@cache
def _tokenizer(base: str) -> Any:
    return AutoTokenizer.from_pretrained(base)


def tokenizer_of(model: Any) -> Any:
    """Returns the tokenizer beside a model with an adapter, which is read once."""
    return _tokenizer(model.get_base_model().config.name_or_path)


def trl_trainer(base: Path, rows: datasets.Dataset, rank: int, **settings: Any) -> SFTTrainer:
    """TRL's trainer on stock PEFT on stock transformers; every adapter tensor is random."""
    adapted = get_peft_model(stock_model(base), stock_lora(rank))
    randomise(adapted)
    return SFTTrainer(
        model=adapted,
        args=_arguments(base, remove_unused_columns=False, **settings),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        data_collator=_without_weights,
    )


def _arguments(base: Path, **settings: Any) -> SFTConfig:
    return SFTConfig(**sft_settings(base / "unused"), **settings)


def _without_weights(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates batches for TRL; what is not trained has the label -100 already."""
    ours = ("loss_weights", "documents")
    return {name: value for name, value in Collator()(rows).items() if name not in ours}


def gradients(trainer: SFTTrainer) -> dict[str, torch.Tensor]:
    """Copies of the adapter's gradients, by name."""
    named = trainer.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def set_checkpointing(trainer: SFTTrainer, on: bool) -> None:
    """What the trainer's `train()` does for its setting of this name."""
    if on:
        trainer.model.activation_checkpointing_enable()
    else:
        trainer.model.activation_checkpointing_disable()


def stepper(
    trainer: SFTTrainer, before_update: Callable[[], None] = lambda: None
) -> Callable[[dict[str, Any]], float]:
    """One optimizer step on a batch, as the trainer's loop takes it; returns the loss.

    The step is the trainer's own: its `training_step`, clipping and optimizer.
    """
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1

    def step(batch: dict[str, Any]) -> float:
        items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
        loss = trainer.training_step(trainer.model, dict(batch), items)
        before_update()
        trainer._clip_grad_norm(trainer.model)
        optimizer.step()
        trainer.model.zero_grad()
        return float(loss)

    return step


def batch_of(trainer: SFTTrainer, rows: datasets.Dataset) -> dict[str, Any]:
    """All rows as one batch of the trainer's collator."""
    return trainer.data_collator([dict(row) for row in rows])


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr)
