"""Packed, padded, one by one, accumulated: the same loss and gradients, those of stock PEFT.

The reference is stock transformers with stock PEFT, which sees one document at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from small_trainer import adapted, trainer_on
from stock import load_stock

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.data.pack import best_fit, pack_rows
from gptoss_ft.harmony.render import IGNORE
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.load import load_model
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.trainers.sft import WeightedSFTTrainer

LENGTHS = [5, 150, 40, 17, 230, 90, 3, 61]  # two longer than the sliding window of 128
CAPACITY = 256
Batch = dict[str, Any]
Rows = Sequence[dict[str, Any]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sliding and one full layer."""
    out = tmp_path_factory.mktemp("packing") / "model"
    write_tiny(
        out, TinyOptions(layers=2, hidden_size=64, intermediate_size=64, heads=2, kv_heads=1)
    )
    return out


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Random rows with weights between 0 and 2, most of them 0."""
    generator = torch.Generator().manual_seed(0)
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "loss_weights": []}
    for length in LENGTHS:
        ids = torch.randint(0, 199_000, (length,), generator=generator, dtype=torch.int32)
        trained = torch.rand(length, generator=generator) < 0.4
        trained[0], trained[-1] = False, True
        weights = trained * (torch.rand(length, generator=generator) * 2)
        columns["input_ids"].append(ids.numpy())
        columns["labels"].append(torch.where(trained, ids, IGNORE).to(torch.int32).numpy())
        columns["loss_weights"].append(weights.numpy())
    return pa.table({**columns, "length": pa.array(LENGTHS, pa.int32())})


@pytest.fixture(scope="module")
def trainer(
    base: Path, table: pa.Table, tmp_path_factory: pytest.TempPathFactory
) -> WeightedSFTTrainer:
    """With a random adapter, not zero anywhere, on attention and experts."""
    return trainer_on(adapted(base), datasets.Dataset(table), tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def reference(
    base: Path, table: pa.Table, trainer: WeightedSFTTrainer, tmp_path_factory: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of stock PEFT on stock transformers, one document at a time."""
    folder = tmp_path_factory.mktemp("adapter")
    trainer.model.save_pretrained(str(folder))
    model = PeftModel.from_pretrained(load_stock(base), folder, is_trainable=True)
    weight = sum(sum(row["loss_weights"]) for row in table.to_pylist())
    total = 0.0
    for row in table.to_pylist():
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(
            logits, torch.tensor(row["labels"][1:]), reduction="none"
        )
        loss = (each * torch.tensor(row["loss_weights"][1:])).sum() / weight
        loss.backward()
        total += loss.item()
    return total, _gradients(model)


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _packed(table: pa.Table, folder: Path) -> Rows:
    pack_rows(table, best_fit(table.column("length").to_numpy(), CAPACITY, 0), folder / "packed")
    rows = list(datasets.Dataset.from_file(str(folder / "packed")))
    assert 3 <= len(rows) <= 4, "several documents a row, several rows"
    return rows


def _step(trainer: WeightedSFTTrainer, batches: Sequence[Batch]) -> float:
    """The loss of one optimizer step over some batches; gradients stay in the model."""
    items = trainer._get_num_items_in_batch(list(batches), torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(batches)
    losses = [trainer.training_step(trainer.model, dict(batch), items) for batch in batches]
    return float(sum(losses))


@pytest.mark.parametrize(
    ("packed", "size"), [(True, 1), (True, 4), (False, 8), (False, 1), (False, 3)]
)
def test_a_step_is_that_of_stock_peft_however_rows_are_batched(
    trainer: WeightedSFTTrainer,
    table: pa.Table,
    reference: tuple[float, dict[str, torch.Tensor]],
    tmp_path: Path,
    packed: bool,
    size: int,
) -> None:
    """Packed rows one by one and padded to each other; rows padded, alone, and three at a time."""
    rows = _packed(table, tmp_path) if packed else table.to_pylist()
    collate = Collator()
    loss = _step(
        trainer, [collate(rows[first : first + size]) for first in range(0, len(rows), size)]
    )
    found = _gradients(trainer.model)
    expected_loss, expected = reference
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys()
    assert sum("experts" in name for name in found) == 8 and len(found) == 24
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def _logits(model: WeightedGptOss, documents: Sequence[torch.Tensor], place: int) -> torch.Tensor:
    """Logits of one document of a packed row."""
    ids = torch.cat(list(documents)).tolist()
    lengths = [len(document) for document in documents]
    row = {"input_ids": ids, "labels": ids, "loss_weights": [1.0] * len(ids), "documents": lengths}
    batch = Collator()([row])
    inputs = {name: batch.get(name) for name in ("input_ids", "position_ids", "documents")}
    kept = torch.arange(lengths[place]) + sum(lengths[:place])
    return model(**inputs, logits_to_keep=kept).logits[0]


@torch.no_grad()
def test_logits_of_a_document_are_stocks_whatever_its_neighbours(base: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def document(length: int) -> torch.Tensor:
        return torch.randint(0, 199_000, (length,), generator=generator)

    model, middle = load_model(open_checkpoint(base)), document(150)
    expected = load_stock(base)(middle[None]).logits[0]
    for before, after in (((), ()), ((60,), (140, 1)), ((60,), (140, 1)), ((3, 200), (9,))):
        others = [[document(length) for length in side] for side in (before, after)]
        found = _logits(model, [*others[0], middle, *others[1]], len(before))
        assert (found - expected).abs().max() <= 1e-4
    # Without documents they do depend on what stands before.
    joined = model(torch.cat([document(60), middle])[None], logits_to_keep=150).logits[0]
    assert (joined - expected).abs().max() > 1e-2
