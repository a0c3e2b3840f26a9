"""ORPO and SimPO against TRL's experimental trainers, on all logits of the stock model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_preferences import (
    Row,
    losses,
    pair_rows,
    pair_trainer,
    preference_base,
    stock_adapted,
    trained,
)
from small_trainer import adapted
from torch.nn.utils.rnn import pad_sequence
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer as StockORPO

from gptoss_ft.train.trainers.reference_free import ORPOTrainer, SimPOTrainer, log1mexp

LEARNING_RATE = 1e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_base(tmp_path_factory)


def _stock_batch(rows: list[Row]) -> dict[str, torch.Tensor]:
    """What TRL's collator for these trainers makes of prompts and completions."""
    batch = {}
    for side in ("chosen", "rejected"):
        pairs = [(row["prompt_ids"], row[f"{side}_ids"]) for row in rows]
        columns: dict[str, tuple[list[list[int]], int]] = {
            "input_ids": ([p + c for p, c in pairs], 199_999),
            "attention_mask": ([[1] * len(p + c) for p, c in pairs], 0),
            "labels": ([[-100] * len(p) + c for p, c in pairs], -100),
        }
        for name, (values, fill) in columns.items():
            tensors = [torch.tensor(x) for x in values]
            batch[f"{side}_{name}"] = pad_sequence(tensors, True, fill)
    return batch


def _stock_loss(
    kind: type[Any], model: torch.nn.Module, rows: list[Row], **settings: Any
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and metrics of a trainer of TRL's, made without its data handling."""
    trainer = kind.__new__(kind)
    common = {"is_encoder_decoder": False, "aux_loss_enabled": False, "pad_token_id": 199_999}
    vars(trainer).update(common, padding_value=199_999, accelerator=Accelerator(cpu=True))
    vars(trainer).update(settings)
    loss, metrics = trainer.get_batch_loss_metrics(model, _stock_batch(rows))
    return loss, metrics


def _compare(
    base: Path, out: Path, rows: list[Row], ours: tuple[type[Any], dict[str, Any]],
    theirs: tuple[type[Any], dict[str, Any]], **settings: Any,
) -> None:  # fmt: skip
    """Loss, metrics and gradients of one step."""
    kind, more = ours
    model = adapted(base)
    model.save_pretrained(str(out / "start"))
    start = trained(model)
    trainer = pair_trainer(
        kind,
        model,
        rows,
        out / "run",
        more=more,
        per_device_train_batch_size=len(rows),
        max_steps=1,
        learning_rate=LEARNING_RATE,
        **settings,
    )
    trainer.train()
    stock = stock_adapted(base, out / "start")
    loss, metrics = _stock_loss(theirs[0], stock, rows, **theirs[1])
    loss.backward()
    assert losses(trainer)[0] == pytest.approx(loss.item(), rel=1e-4)
    names = ("rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected")
    for name in names:
        assert losses(trainer, name)[0] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
    gradients = {n: p.grad for n, p in stock.named_parameters() if p.grad is not None}
    assert gradients.keys() == start.keys()
    after = trained(model)
    steps = [(start[n] - after[n]).flatten() / LEARNING_RATE for n in sorted(start)]
    expected = torch.cat([gradients[n].flatten() for n in sorted(start)])
    assert (torch.cat(steps) - expected).norm() <= 3e-4 * expected.norm()


def test_simpo_equals_trls(base: Path, tmp_path: Path) -> None:
    stock = {
        "loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.7,
        "label_smoothing": 0.2,
    }  # fmt: skip
    _compare(
        base, tmp_path, pair_rows(3), (SimPOTrainer, {"gamma": 0.7}), (CPOTrainer, stock),
        beta=2.0, label_smoothing=0.2,
    )  # fmt: skip


def test_orpo_equals_trls_where_prompts_have_nothing_to_predict(base: Path, tmp_path: Path) -> None:
    """TRL's likelihood counts the prompt's tokens from the second on; ours never does."""
    rows = pair_rows(3)
    for row in rows:
        row["prompt_ids"] = row["prompt_ids"][:1]
    _compare(base, tmp_path, rows, (ORPOTrainer, {}), (StockORPO, {"beta": 0.3}), beta=0.3)


def test_orpos_odds_ratio_equals_trls_behind_any_prompt(base: Path, tmp_path: Path) -> None:
    rows = pair_rows(3)
    trainer = pair_trainer(
        ORPOTrainer, adapted(base), rows, tmp_path, per_device_train_batch_size=3, max_steps=1
    )
    trainer.train()
    adapted(base).save_pretrained(str(tmp_path / "start"))
    stock = stock_adapted(base, tmp_path / "start")
    with torch.no_grad():
        _, metrics = _stock_loss(StockORPO, stock, rows, beta=0.1)
    for name in ("log_odds_ratio", "log_odds_chosen", "rewards/chosen", "rewards/rejected"):
        assert losses(trainer, name)[0] == pytest.approx(metrics[name], rel=1e-4), name


def test_log1mexp_is_accurate_and_has_finite_gradients() -> None:
    x = torch.tensor([-80.0, -5.0, -0.7, -0.69, -1e-3, -1e-6, 0.0], requires_grad=True)
    found = log1mexp(x)
    expected = torch.log(-torch.expm1(x.detach().double()[:-1])).float()
    torch.testing.assert_close(found.detach()[:-1], expected, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(found).all() and torch.isfinite(gradient).all()
