"""Batches of like length where rows are padded, and the order that a resumed run sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate import skip_first_batches
from small_trainer import adapted, trainer_on

from gptoss_ft.data.options import DataOptions
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.methods import method_named
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.sampler import ResumableLengthSampler
from gptoss_ft.train.settings import configure

BATCH = 4


def _lengths(count: int) -> list[int]:
    drawn = np.random.default_rng(0).lognormal(5, 0.8, count)
    return [int(length) for length in drawn + 1]


def _area(lengths: list[int], order: list[int]) -> int:
    """Positions of padded batches."""
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    return sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)


def test_batches_are_of_like_length_and_other_ones_in_every_epoch() -> None:
    lengths = _lengths(400)
    sampler = ResumableLengthSampler(BATCH, lengths, 0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    for order in orders:
        assert sorted(order) == list(range(400))
        assert _area(lengths, order) < 1.2 * sum(lengths)
    shuffled = np.random.default_rng(0).permutation(400).tolist()
    assert _area(lengths, shuffled) > 1.5 * sum(lengths)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sampler") / "model"
    write_tiny(
        out, TinyOptions(layers=1, hidden_size=32, intermediate_size=32, heads=1, kv_heads=1)
    )
    return out


def _batches(loader: Any) -> list[list[list[int]]]:
    return [batch["input_ids"].tolist() for batch in loader]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_resumed_in_an_epoch_sees_its_other_batches(
    base: Path, tmp_path: Path, accumulation: int
) -> None:
    """As the trainer's loop resumes: a new loader, its first batches skipped, the epoch set."""
    lengths = _lengths(199)
    columns = {name: [[1] * n for n in lengths] for name in ("labels", "loss_weights")}
    ids = [[row] * length for row, length in enumerate(lengths)]
    rows = datasets.Dataset.from_dict({"input_ids": ids, **columns, "length": lengths})
    loaders = [
        trainer_on(
            adapted(base, ["attention"]),
            rows,
            tmp_path,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="group_by_length",
            seed=5,
        ).get_train_dataloader()
        for _ in range(2)
    ]
    whole = []
    for epoch in range(2):
        loaders[0].set_epoch(epoch)
        whole.append(_batches(loaders[0]))
    resumed = skip_first_batches(loaders[1], 2)
    resumed.set_epoch(1)
    assert _batches(resumed) == whole[1][2:]
    assert whole[0] != whole[1]
    assert sum(np.size(batch) for batch in whole[0]) < 1.4 * sum(lengths)


@pytest.mark.parametrize(
    ("packing", "trainer", "strategy"),
    [
        (True, {"per_device_train_batch_size": 4}, "random"),
        (False, {"per_device_train_batch_size": 4}, "group_by_length"),
        (False, {"per_device_train_batch_size": 1}, "random"),
        (
            False,
            {"per_device_train_batch_size": 4, "train_sampling_strategy": "random"},
            "random",
        ),
    ],
)
def test_rows_are_grouped_where_batches_are_padded(
    tmp_path: Path, packing: bool, trainer: dict[str, Any], strategy: str
) -> None:
    options = TrainOptions(data=DataOptions(path="a", packing=packing), trainer=trainer)
    arguments = configure(options, method_named("sft"), tmp_path)
    assert arguments.train_sampling_strategy == strategy
