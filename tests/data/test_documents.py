"""Documents of a batch: as attention would read them from masks, and untouched on their way."""

from __future__ import annotations

import multiprocessing
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import find_batch_size

from gptoss_ft.data.collate import Collator
from gptoss_ft.documents import Documents, documents_from_lengths
from gptoss_ft.model.attention.masks import documents_of

LENGTHS = st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=5)


def row_of(*lengths: int) -> dict[str, Any]:
    ids = list(range(1, sum(lengths) + 1))
    weights = [1.0] * len(ids)
    return {"input_ids": ids, "labels": ids, "loss_weights": weights, "documents": list(lengths)}


@given(LENGTHS, st.integers(0, 2))
def test_they_are_what_a_mask_of_numbers_says(rows: list[list[int]], padding: int) -> None:
    length = max(1, *map(sum, rows)) + padding
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, lengths in zip(ids, rows, strict=True):
        numbers = torch.arange(1, len(lengths) + 1)
        row[: sum(lengths)] = numbers.repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    assert documents_from_lengths(rows, length) == documents_of(ids)


def test_rows_that_are_alike_share_their_spans() -> None:
    documents = documents_from_lengths([[2, 3], [2, 3], [5]], 6)
    assert [(span.rows, span.start, span.stop) for span in documents.spans] == [
        (slice(0, 2), 0, 2),
        (slice(0, 2), 2, 5),
        (slice(2, 3), 0, 5),
    ]
    assert documents.has_padding and not documents_from_lengths([[2, 4]], 6).has_padding


def test_padded_rows_are_the_documents_of_their_attention_mask() -> None:
    rows = [row_of(n) for n in (3, 3, 7, 1)]
    for row in rows:
        del row["documents"]
    batch = Collator()(rows)
    assert batch["documents"] == documents_of(batch["attention_mask"])
    assert "position_ids" not in batch


@pytest.mark.parametrize("workers", [0, 1])
def test_they_reach_the_model_as_the_collator_made_them(workers: int) -> None:
    """Through accelerate's loader, from another process too, and in what transformers counts."""
    rows = [row_of(2, 3), row_of(4), row_of(1, 1)]
    loader = DataLoader(
        datasets.Dataset.from_list(rows),
        batch_size=2,
        collate_fn=Collator(),
        num_workers=workers,
        multiprocessing_context=multiprocessing.get_context("fork") if workers else None,
    )
    batches = list(Accelerator(cpu=True).prepare(loader))
    expected = [documents_from_lengths([[2, 3], [4]], 5), documents_from_lengths([[1, 1]], 2)]
    assert [batch["documents"] for batch in batches] == expected
    assert [find_batch_size(batch) for batch in batches] == [2, 1]
    moved = send_to_device(batches[0], torch.device("meta"))
    assert moved["input_ids"].is_meta and isinstance(moved["documents"], Documents)
