"""The trainer against TRL's own on the stock model, and against itself under other batch splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from small_trainer import adapted, settings_for, trainer_on
from stock import load_stock
from trainers import tokenizer_of
from trl import SFTConfig, SFTTrainer

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.model.tiny import TinyOptions, write_tiny

IGNORE = -100


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trainer") / "model"
    write_tiny(
        out, TinyOptions(layers=2, hidden_size=64, intermediate_size=64, heads=2, kv_heads=1)
    )
    return out


def _rows(count: int, seed: int = 0, weighted: bool = False) -> datasets.Dataset:
    """Rows of very different length and trained share, so that a mean of means would show."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        length = 6 + 11 * (index % 5)
        ids = torch.randint(0, 199_000, (length,), generator=generator)
        weights = (torch.rand(length, generator=generator) < (0.2, 0.9)[index % 2]).float()
        weights[-1] = 1.0
        if weighted:
            weights *= torch.rand(length, generator=generator) * 2
        labels = torch.where(weights > 0, ids, IGNORE)
        row = {"input_ids": ids, "labels": labels, "loss_weights": weights}
        rows.append({name: value.tolist() for name, value in row.items()})
    return datasets.Dataset.from_list(rows)


def _losses(trainer: SFTTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def _stock_collator(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ours = ("loss_weights", "documents")
    return {name: value for name, value in Collator()(rows).items() if name not in ours}


def test_three_steps_equal_trls_trainer_on_the_stock_model(base: Path, tmp_path: Path) -> None:
    """Losses and adapters after three AdamW steps with accumulation, same start, same rows."""
    rows = _rows(12)
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "adam_epsilon": 1e-4,  # keeps AdamW's division from blowing up float32 noise
    }
    model = adapted(base)
    model.save_pretrained(str(tmp_path / "start"))
    ours = trainer_on(model, rows, tmp_path / "ours", **settings)
    ours.train()

    stock = PeftModel.from_pretrained(load_stock(base), tmp_path / "start", is_trainable=True)
    theirs = SFTTrainer(
        model=stock,
        args=SFTConfig(
            **settings_for(tmp_path / "theirs", **settings), remove_unused_columns=False
        ),
        train_dataset=rows,
        processing_class=tokenizer_of(stock),
        data_collator=_stock_collator,
    )
    theirs.train()
    assert _losses(ours) == pytest.approx(_losses(theirs), rel=1e-5)
    reference = _trained(stock)
    for name, tensor in _trained(model).items():
        assert (tensor - reference[name]).norm() <= 1e-4 * reference[name].norm(), name


@pytest.mark.parametrize("weighted", [False, True])
def test_batch_split_and_accumulation_do_not_change_a_step(
    base: Path, tmp_path: Path, weighted: bool
) -> None:
    rows = _rows(8, weighted=weighted)
    results = []
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        model = adapted(base)
        trainer = trainer_on(
            model,
            rows,
            tmp_path / f"{batch}",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
        )
        trainer.train()
        results.append((_losses(trainer), _trained(model)))
    start = _trained(adapted(base))
    for losses, tensors in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        for name, tensor in tensors.items():
            step = results[0][1][name] - start[name]
            assert (tensor - start[name] - step).norm() <= 1e-4 * step.norm() + 1e-7, name


def test_evaluation_loss_is_a_mean_over_all_trained_weight(base: Path, tmp_path: Path) -> None:
    rows = _rows(7, weighted=True)
    model = adapted(base)
    found = [
        trainer_on(model, rows, tmp_path / f"{batch}", per_device_eval_batch_size=batch).evaluate()
        for batch in (1, 3, 7)
    ]
    with torch.no_grad():
        outputs = [model(**Collator()([row])) for row in rows]
    weight = sum(output.weight for output in outputs)
    expected = (sum(output.loss for output in outputs) / weight).item()
    accuracy = (sum(output.correct for output in outputs) / weight).item()
    assert [metrics["eval_loss"] for metrics in found] == pytest.approx([expected] * 3, rel=1e-5)
    for metrics in found:
        assert metrics["eval_token_accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_logs_count_tokens_and_trained_tokens(base: Path, tmp_path: Path) -> None:
    rows = _rows(4)
    trainer = trainer_on(adapted(base), rows, tmp_path, per_device_train_batch_size=4, max_steps=1)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["tokens"] == sum(len(ids) for ids in rows["input_ids"])
    assert entry["trained_tokens"] == sum(sum(w > 0 for w in row) for row in rows["loss_weights"])


def test_the_auxiliary_loss_is_off_unless_set(base: Path, tmp_path: Path) -> None:
    """The released config asks for 0.9, which TRL would follow."""
    assert open_checkpoint(base).config["router_aux_loss_coef"] == 0.9
    rows = _rows(4)
    losses = {}
    for coefficient in (0.0, 0.9):
        model = adapted(base, ["router"])
        trainer = trainer_on(
            model,
            rows,
            tmp_path / str(coefficient),
            per_device_train_batch_size=4,
            max_steps=1,
            router_aux_loss_coef=coefficient,
        )
        batch = Collator()(list(rows))
        model.eval()
        losses[coefficient] = trainer.compute_loss(model, batch, num_items_in_batch=None).item()
    assert losses[0.9] - losses[0.0] > 0.5
    stock = load_stock(base)
    with torch.no_grad():
        reference = stock(**_stock_collator(list(rows)), output_router_logits=True)
    assert losses[0.9] - losses[0.0] == pytest.approx(0.9 * reference.aux_loss.item(), rel=1e-4)


def test_gradient_checkpointing_through_the_trainer(base: Path, tmp_path: Path) -> None:
    rows = _rows(4)
    losses = []
    for checkpointing in (False, True):
        trainer = trainer_on(
            adapted(base, ["experts", "lossless"]),
            rows,
            tmp_path / str(checkpointing),
            per_device_train_batch_size=2,
            max_steps=3,
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        losses.append(_losses(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
