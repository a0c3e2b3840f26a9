"""Packing: which rows share a packed one, what is written, and what becomes of it in a batch."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_ft.data.collate import Collator
from gptoss_ft.data.dataset import PreparedData, prepare
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.pack import Bins, best_fit, pack_rows
from gptoss_ft.harmony.render import IGNORE
from gptoss_ft.harmony.vocabulary import ENDOFTEXT, packaged_vocabulary
from gptoss_ft.model.attention.masks import document_ids


def members(bins: Bins) -> list[list[int]]:
    return [bins.rows[a:b].tolist() for a, b in pairwise(bins.offsets.tolist())]


def naive_best_fit(lengths: np.ndarray, capacity: int, order: list[int]) -> list[list[int]]:
    """Looks at every bin; of equally full ones the one that became so last."""
    bins: list[list[int]] = []
    space: list[int] = []
    since: list[int] = []
    for now, row in enumerate(order):
        fitting = [n for n in range(len(bins)) if space[n] >= lengths[row]]
        if fitting:
            best = min(fitting, key=lambda n: (space[n], -since[n]))
        else:
            best = len(bins)
            bins.append([])
            space.append(capacity)
            since.append(now)
        bins[best].append(row)
        space[best] -= int(lengths[row])
        since[best] = now
    return bins


def fewest_bins(lengths: list[int], capacity: int) -> int:
    """By trying everything, the first free bin only once."""

    def possible(rows: list[int], space: list[int]) -> bool:
        if not rows:
            return True
        for left in set(space):
            if left >= rows[0]:
                rest = space.copy()
                rest[rest.index(left)] -= rows[0]
                if possible(rows[1:], rest):
                    return True
        return False

    rows = sorted(lengths, reverse=True)
    least = -(-sum(rows) // capacity)
    return next(n for n in range(least, len(rows) + 1) if possible(rows, [capacity] * n))


@given(st.lists(st.integers(1, 700), max_size=60), st.integers(700, 1500), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_best_fit_is_the_naive_one(lengths: list[int], capacity: int, seed: int) -> None:
    found = members(best_fit(np.array(lengths, dtype=np.int32), capacity, seed))
    order = np.random.default_rng(seed).permutation(len(lengths)).tolist()
    assert found == sorted(
        naive_best_fit(np.array(lengths), capacity, order), key=lambda rows: order.index(rows[0])
    )
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= capacity for rows in found)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_best_fit_is_within_its_bound_of_the_optimum(lengths: list[int], seed: int) -> None:
    bins = best_fit(np.array(lengths, dtype=np.int32), 40, seed)
    assert len(bins.offsets) - 1 <= math.floor(1.7 * fewest_bins(lengths, 40))


def real_lengths(count: int, capacity: int) -> np.ndarray:
    drawn = np.random.default_rng(0).lognormal(math.log(300), 0.8, count)
    return np.clip(drawn, 1, capacity).astype(np.int32)


@pytest.mark.parametrize("capacity", [2048, 131_072])
def test_rows_of_real_lengths_fill_packed_rows_and_stay_mixed(capacity: int) -> None:
    count = 5000 if capacity == 2048 else 100_000
    lengths = real_lengths(count, capacity)
    bins = best_fit(lengths, capacity, 0)
    assert sorted(bins.rows.tolist()) == list(range(count))
    sums = np.add.reduceat(lengths[bins.rows], bins.offsets[:-1])
    assert sums.max() <= capacity
    fewest = -(-int(lengths.sum()) // capacity)
    assert len(sums) <= 1.01 * fewest + 1
    rows = np.diff(bins.offsets)
    # By chance alone the number of rows would vary by about its square root.
    assert rows.std() <= 1.5 * math.sqrt(rows.mean()), "long rows with short ones"
    assert not np.array_equal(best_fit(lengths, capacity, 1).rows, bins.rows)


def test_a_million_rows_take_seconds_whatever_the_capacity() -> None:
    """The same work for 4,096 and 131,072 tokens, and no more than proportional to the rows."""
    seconds = {}
    for count, capacity in ((50_000, 4096), (200_000, 4096), (200_000, 131_072)):
        lengths = real_lengths(count, 4096) * (capacity // 4096)
        start = time.process_time()
        best_fit(lengths, capacity, 0)
        seconds[count, capacity] = time.process_time() - start
    assert seconds[200_000, 4096] <= 8 * seconds[50_000, 4096]
    assert seconds[200_000, 131_072] <= 2.5 * seconds[200_000, 4096]


def test_rows_that_do_not_fit_are_refused() -> None:
    for lengths in ([3, 11], [0, 3]):
        with pytest.raises(ValueError, match="into 10"):
            best_fit(np.array(lengths), 10, 0)


def table_of(lengths: list[int], batches: int = 1) -> pa.Table:
    """Rows in several record batches; every token and label names its row."""
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "loss_weights": []}
    for row, length in enumerate(lengths):
        columns["input_ids"].append([1000 * row + i for i in range(length)])
        columns["labels"].append([1000 * row + i for i in range(length)])
        columns["loss_weights"].append([1.0 + row] * length)
    types = {"input_ids": pa.int32(), "labels": pa.int32(), "loss_weights": pa.float32()}
    arrays = {name: pa.array(values, pa.list_(types[name])) for name, values in columns.items()}
    table = pa.table({**arrays, "length": pa.array(lengths, pa.int32())})
    edges = np.linspace(0, len(lengths), batches + 1).astype(int).tolist()
    return pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(edges)])


@pytest.mark.parametrize("batches", [1, 4])
def test_packed_rows_hold_their_documents(tmp_path: Path, batches: int) -> None:
    lengths = [7, 3, 9, 1, 4, 6, 2, 5]
    table, capacity = table_of(lengths, batches), 12
    bins = best_fit(np.array(lengths), capacity, 0)
    pack_rows(table, bins, tmp_path / "packed.arrow")
    found = datasets.Dataset.from_file(str(tmp_path / "packed.arrow"))
    assert len(found) == len(bins.offsets) - 1
    for row, documents in zip(found, members(bins), strict=True):
        assert row["documents"] == [lengths[document] for document in documents]
        assert row["length"] == len(row["input_ids"]) <= capacity
        ids = [1000 * document + i for document in documents for i in range(lengths[document])]
        first = [i for document in documents for i in range(lengths[document])]
        assert row["input_ids"] == ids
        assert row["labels"] == [
            token if place else IGNORE for token, place in zip(ids, first, strict=True)
        ]
        assert row["loss_weights"] == [
            1.0 + token // 1000 if place else 0.0 for token, place in zip(ids, first, strict=True)
        ]


def test_packed_rows_are_written_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [7, 3, 9, 1, 4, 6, 2, 5]
    bins = best_fit(np.array(lengths), 12, 0)
    pack_rows(table_of(lengths), bins, tmp_path / "at_once.arrow")
    monkeypatch.setattr("gptoss_ft.data.pack.TOKENS_AT_ONCE", 25)
    pack_rows(table_of(lengths), bins, tmp_path / "by_two.arrow")
    streams = [
        pa.ipc.open_stream((tmp_path / name).read_bytes())
        for name in ("at_once.arrow", "by_two.arrow")
    ]
    at_once, by_two = (list(stream) for stream in streams)
    assert (len(at_once), len(by_two)) == (1, -(-(len(bins.offsets) - 1) // 2))
    assert pa.Table.from_batches(at_once).equals(pa.Table.from_batches(by_two).combine_chunks())


def test_a_batch_names_documents_and_restarts_positions() -> None:
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "documents": [2, 3]},
        {"input_ids": [1, 2, 3], "documents": [3]},
    ]
    trained = [
        row | {"labels": row["input_ids"], "loss_weights": [1.0] * len(row["input_ids"])}
        for row in rows
    ]
    batch = Collator()(trained)
    numbers = document_ids(batch["documents"], torch.device("cpu"))
    assert numbers.tolist() == [[1, 1, 2, 2, 2], [3, 3, 3, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chats(count: int) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": "question"}
    return [
        {"messages": [asked, {"role": "assistant", "content": f"answer {i} " * (1 + 7 * (i % 9))}]}
        for i in range(count)
    ]


def prepared(path: str, **keys: Any) -> PreparedData:
    return prepare(DataOptions(path=path, max_length=400, **keys), packaged_vocabulary())


def documents_of(data: datasets.Dataset) -> list[tuple[list[Any], ...]]:
    """The rows in a packed dataset, sorted."""
    found = []
    for row in data:
        edges = np.concatenate([[0], np.cumsum(row["documents"])]).tolist()
        for a, b in pairwise(edges):
            found.append(tuple(row[name][a:b] for name in ("input_ids", "labels", "loss_weights")))
    return sorted(found)


def test_every_rendered_row_is_packed_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chats(50))
    alone, packed = (prepared(path, packing=packing, validation_split=0.2) for packing in (0, 1))
    assert alone.validation is not None and packed.validation is not None
    for one, other in ((alone.train, packed.train), (alone.validation, packed.validation)):
        rows = [(row["input_ids"], row["labels"], row["loss_weights"]) for row in one]
        assert documents_of(other) == sorted(rows)
        assert len(other) <= len(one) / 2
    assert alone.train["length"][:] == [len(ids) for ids in alone.train["input_ids"]]
    assert packed.fingerprint != alone.fingerprint


def test_the_summary_says_what_packing_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", chats(50))
    alone, packed = (prepared(path, packing=packing, validation_count=5) for packing in (0, 1))
    assert packed.validation is not None
    assert (alone.summary.packed_rows, alone.summary.packed_validation_rows) == (0, 0)
    summary = packed.summary
    assert (summary.train_rows, summary.validation_rows) == (45, 5)
    assert summary.packed_rows == len(packed.train)
    assert summary.packed_validation_rows == len(packed.validation)
    tokens = sum(packed.train["length"])
    assert summary.packed_share == pytest.approx(tokens / (400 * len(packed.train)))
    assert not any("packed" in line for line in alone.summary.lines())
    (line,) = [line for line in summary.lines() if "packed" in line]
    assert line == (
        f"packed into {len(packed.train)} rows to train on, {summary.packed_share:.1%} full, "
        f"and {len(packed.validation)} held out"
    )


def test_packed_rows_are_remembered_and_follow_the_seed(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "a.jsonl", chats(50)), tmp_path / "cache"
    first = prepared(path, cache=str(cache))
    (file,) = cache.glob("packed/*/train.arrow")
    written = file.stat().st_mtime_ns
    again, other = (prepared(path, cache=str(cache), seed=seed) for seed in (0, 1))
    assert file.stat().st_mtime_ns == written
    assert again.train.to_dict() == first.train.to_dict()
    assert other.train.to_dict() != first.train.to_dict()
    assert documents_of(other.train) == documents_of(first.train)


def test_plain_text_is_cut_packed_and_fully_trained(tmp_path: Path) -> None:
    texts = [f"document {i} " + "word " * (10 * i) for i in range(1, 18)]
    texts += ["long " + "word " * 1000]
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    data = prepared(path)
    rows = list(data.train)
    assert sum(row["length"] for row in rows) == data.summary.tokens
    assert data.summary.packed_share > 0.8
    for row in rows:
        starts = {0, *np.cumsum(row["documents"]).tolist()}
        for position, (token, label) in enumerate(
            zip(row["input_ids"], row["labels"], strict=True)
        ):
            assert label == (IGNORE if position in starts else token)
            assert row["loss_weights"][position] == float(position not in starts)
    ends = sum(ids.count(ENDOFTEXT) for ids in data.train["input_ids"])
    assert ends == len(texts)
    assert data.summary.changed == {"documents cut into pieces of max_length=400": 1}
