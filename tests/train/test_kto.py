"""KTO on our rows against TRL's KTOTrainer on the stock model, and its means over examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from small_preferences import (
    StockKTO,
    kto_trainer,
    losses,
    preference_base,
    preference_settings,
    rated_rows,
    stock_adapted,
    trained,
    with_rated_reference,
)
from small_trainer import adapted
from trainers import tokenizer_of
from trl import KTOConfig

METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"),
    *("logits/chosen", "logits/rejected", "entropy", "kl"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_base(tmp_path_factory)


@pytest.mark.parametrize(
    "loss_type", ["kto", pytest.param("apo_zero_unpaired", marks=pytest.mark.slow)]
)
def test_steps_equal_trls_on_the_stock_model(base: Path, tmp_path: Path, loss_type: str) -> None:
    """Losses, rewards, KL estimates and updates of two SGD steps, adapters random."""
    rows = rated_rows(6, group=3)
    common: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "loss_type": loss_type,
        "beta": 0.5,
        "desirable_weight": 1.3,
    }
    model = adapted(base, seed=5)  # its mean KL estimate is above 0, where TRL cuts it off
    model.save_pretrained(str(tmp_path / "start"))
    start = trained(model)
    ours = kto_trainer(model, with_rated_reference(model, rows), tmp_path / "ours", **common)
    ours.train()

    stock = stock_adapted(base, tmp_path / "start")
    for row in rows:
        row["KL_completion_ids"] = row["kl_ids"]
    theirs = StockKTO(
        model=stock,
        args=KTOConfig(**preference_settings(tmp_path / "theirs", **common)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(model),
    )
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4, abs=1e-5)
    for name in METRICS:
        assert losses(ours, name) == pytest.approx(losses(theirs, name), rel=1e-3, abs=1e-4), name
    if loss_type == "kto":
        assert max(losses(ours, "kl")) > 1e-3, "the KL term is never above 0"
    reference = trained(stock)
    mine = torch.cat([(x - start[name]).flatten() for name, x in sorted(trained(model).items())])
    step = torch.cat([(x - start[name]).flatten() for name, x in sorted(reference.items())])
    assert (mine - step).norm() <= 1e-4 * step.norm()
    assert list(model.peft_config) == ["default"]


def test_a_log_is_a_mean_over_examples(base: Path, tmp_path: Path) -> None:
    """Of batches that split the sides 2:1, 1:2 and 1:0, without a KL term that would differ."""
    model = adapted(base)
    rows = with_rated_reference(model, rated_rows(7, group=3))
    logs = []
    for batch, accumulation in ((7, 1), (3, 3), (1, 7)):
        trainer = kto_trainer(
            adapted(base),
            rows,
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            loss_type="apo_zero_unpaired",
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    names = (*METRICS[:5], "loss", "final/logratios/chosen", "final/margins")
    for other in logs[1:]:
        for name in names:
            assert other[name] == pytest.approx(logs[0][name], rel=1e-4, abs=1e-5), name
        assert other["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-4)
    assert logs[0]["final/length/rejected"] > 0


def test_evaluation_reports_the_loss_over_examples(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    rows = with_rated_reference(model, rated_rows(6, group=3))
    trainer = kto_trainer(
        model,
        rows,
        tmp_path,
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
        max_steps=1,
    )
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_loss"] < 1
    assert metrics["eval_rewards/margins"] == pytest.approx(
        metrics["eval_rewards/chosen"] - metrics["eval_rewards/rejected"]
    )
