"""Preference rows of random tokens, and the trainers of both sides on a small model."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from small_trainer import settings_for
from stock import load_stock
from trainers import DPOOnIds, pair_trainer_on, tokenizer_of
from trl import DPOConfig, KTOConfig, KTOTrainer

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.data.collate_pairs import PairCollator, RatedCollator
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.scores import score_rated_rows, score_rows
from gptoss_ft.train.trainers.dpo import PairDPOTrainer
from gptoss_ft.train.trainers.kto import RatedKTOTrainer

Row = dict[str, Any]


def preference_base(factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that the tests of preferences share; it is never written to."""
    out = factory.getbasetemp() / "preference-base"
    if not out.exists():
        sizes = TinyOptions(layers=2, hidden_size=64, intermediate_size=64, heads=2, kv_heads=1)
        write_tiny(out, sizes)
    return out


def pair_rows(count: int, seed: int = 0, longest_prompt: int = 12) -> list[Row]:
    """Pairs of very different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, length: int) -> list[int]:
        return torch.randint(low, high, (length,), generator=generator).tolist()

    rows = []
    for index in range(count):
        prompt = draw(0, 199_000, (3, longest_prompt, 6)[index % 3])
        row: Row = {"prompt_ids": prompt, "prompt_length": len(prompt)}
        for side, lengths in (("chosen", (4, 8, 3)), ("rejected", (7, 5, 6))):
            length = lengths[(index + seed) % 3]
            row[f"{side}_ids"] = draw(0, 199_000, length)
            row[f"{side}_weights"] = [1.0] * length
            row[f"{side}_channels"] = [1] * (length // 2) + [3] * (length - length // 2)
        row["length"] = len(prompt) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        rows.append(row)
    return rows


def with_reference(model: AdaptedModel, rows: list[Row]) -> list[Row]:
    """Pairs with the log-probabilities of the base."""
    with model.disable_adapter():
        scores = score_rows(model, rows)
    return [
        {**row, "ref_chosen_logps": chosen.tolist(), "ref_rejected_logps": rejected.tolist()}
        for row, (chosen, rejected) in zip(rows, scores, strict=True)
    ]


def rated_rows(count: int, group: int, seed: int = 0) -> list[Row]:
    """Rated completions, each with that of the row before it in its group of neighbours."""
    rows = []
    for index, pair in enumerate(pair_rows(count, seed)):
        side = ("chosen", "rejected")[index % 3 == 1]
        parts = {f"completion_{x}": pair[f"{side}_{x}"] for x in ("ids", "weights", "channels")}
        rows.append({"prompt_ids": pair["prompt_ids"], **parts, "label": side == "chosen"})
    for index, row in enumerate(rows):
        first = index - index % group
        other = rows[index - 1 if index > first else min(first + group, count) - 1]
        row |= {f"kl_{x}": other[f"completion_{x}"] for x in ("ids", "weights", "channels")}
    return rows


def with_rated_reference(model: AdaptedModel, rows: list[Row]) -> list[Row]:
    """Rated rows with the log-probabilities of the base."""
    with model.disable_adapter():
        own, kl = (score_rated_rows(model, rows, name) for name in ("completion", "kl"))
    return [
        {**row, "ref_logps": a.tolist(), "ref_kl_logps": b.tolist()}
        for row, a, b in zip(rows, own, kl, strict=True)
    ]


def preference_settings(out: Path, **settings: Any) -> dict[str, Any]:
    given = settings_for(out, optim="sgd", max_grad_norm=0.0, **settings)
    del given["dataset_kwargs"]
    return given


def pair_trainer(
    kind: type[Any],
    model: AdaptedModel,
    rows: list[Row],
    out: Path,
    collator: PairCollator | None = None,
    more: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """One of our trainers on pairs."""
    arguments = DPOConfig(**preference_settings(out, **settings))
    return pair_trainer_on(kind, model, rows, arguments, collator, **(more or {}))


def dpo_trainer(model: AdaptedModel, rows: list[Row], out: Path, **more: Any) -> PairDPOTrainer:
    trainer: PairDPOTrainer = pair_trainer(PairDPOTrainer, model, rows, out, **more)
    return trainer


def kto_trainer(
    model: AdaptedModel, rows: list[Row], out: Path, **settings: Any
) -> RatedKTOTrainer:
    dataset = datasets.Dataset.from_list(rows)
    return RatedKTOTrainer(
        model=model,
        args=KTOConfig(**preference_settings(out, **settings)),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer_of(model),
        data_collator=RatedCollator(),
    )


class StockDPO(DPOOnIds):
    """TRL's own with the base as its reference."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.delete_adapter("ref")  # a copy of the adapter at its start


class StockKTO(KTOTrainer):
    """TRL's own on ids that are there already, with the base as its reference."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


def stock_adapted(base: Path, adapter: Path) -> PeftModel:
    """The dequantised stock model with a saved adapter in stock PEFT."""
    return PeftModel.from_pretrained(deepcopy(_stock(base)), adapter, is_trainable=True)


@cache
def _stock(base: Path) -> torch.nn.Module:
    return load_stock(base)


@torch.no_grad()
def stock_logps(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities of a completion's tokens from all logits."""
    ids = torch.tensor([prompt + completion])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def losses(trainer: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
