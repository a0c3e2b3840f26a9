"""The same fine-tuning through our trainer and through TRL with PEFT, one optimizer step at a time.

TRL's side is the best it has on a CPU: float32 weights, grouped_mm experts, eager attention (the
only one that knows sinks there), auxiliary loss off; checkpointing is on by default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoTokenizer, GptOssForCausalLM, Mxfp4Config
from trl import SFTConfig, SFTTrainer

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import ATTENTION_MODULES, EXPERT_PARAMETERS, AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.model.load import load_model
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer

LEARNING_RATE = 1e-4


def write_base(folder: Path, hidden: int, layers: int, experts: int) -> Path:
    """A random checkpoint in the released layout and proportions: 4 experts for each token."""
    sizes = TinyOptions(
        layers=layers,
        hidden_size=hidden,
        intermediate_size=hidden,
        heads=max(hidden // 64, 1),
        kv_heads=max(hidden // 512, 1),
        experts=experts,
        experts_per_token=min(4, experts),
    )
    write_tiny(folder, sizes)
    return folder


def our_model(base: Path, rank: int) -> AdaptedModel:
    """The packed checkpoint with an adapter on attention and experts, every tensor random."""
    options = AdapterOptions(["attention", "experts"], r=rank, expert_r=rank, alpha=rank)
    model = add_adapter(load_model(open_checkpoint(base)), options, AdapterInfo((), "", ""))
    randomise(model)
    return model


def stock_model(base: Path) -> GptOssForCausalLM:
    """The dequantised checkpoint in stock transformers, at its best setting for a CPU."""
    return GptOssForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="grouped_mm",
        quantization_config=Mxfp4Config(dequantize=True),
    )


def stock_lora(rank: int) -> LoraConfig:
    """PEFT's configuration of the adapter that `our_model` has."""
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(ATTENTION_MODULES),
        target_parameters=list(EXPERT_PARAMETERS),
        task_type="CAUSAL_LM",
    )


def common_settings(base: Path) -> dict[str, Any]:
    """What all trainers of both sides are given."""
    return {
        "output_dir": str(base / "unused"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "router_aux_loss_coef": 0.0,
        "learning_rate": LEARNING_RATE,
    }


def our_trainer(base: Path, rows: datasets.Dataset, rank: int, **settings: Any) -> SFTTrainer:
    """Our trainer on the packed checkpoint; every adapter tensor is random."""
    return WeightedSFTTrainer(
        model=our_model(base, rank),
        args=_arguments(base, gradient_checkpointing=False, **settings),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
        data_collator=Collator(),
    )


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
    common = {**common_settings(base), "dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTConfig(max_length=None, **common, **settings)


def _without_weights(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collates batches for TRL; what is not trained has the label -100 already."""
    ours = ("loss_weights", "documents")
    return {name: value for name, value in Collator()(rows).items() if name not in ours}


def randomise(model: nn.Module, seed: int = 1) -> None:
    """Seeded adapters, the same by name on either side; B too, so that every gradient counts."""
    generator = torch.Generator().manual_seed(seed)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for _, parameter in sorted(trained.items()):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02


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
