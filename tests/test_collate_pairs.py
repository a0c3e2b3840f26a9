"""Preference rows laid end to end: what stands where, what sees what, and what is scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptoss_ft.data.collate_pairs import PairCollator, RatedCollator
from gptoss_ft.documents import Documents, DocumentSpan


def _pair(prompt: list[int], chosen: list[int], rejected: list[int], **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    for side in ("chosen", "rejected"):
        length = len(row[f"{side}_ids"])
        row |= {f"{side}_weights": [1.0] * length, f"{side}_channels": [3] * length}
    return row | more


def _row(length: int, *spans: tuple[int, int, slice | None]) -> Documents:
    """Documents of a single row."""
    found = tuple(DocumentSpan(slice(0, 1), *span) for span in spans)
    return Documents(1, length, found)


ROWS = [_pair([1, 2, 3], [4, 5], [6]), _pair([7], [8], [9, 10, 11])]


def test_a_shared_prompt_stands_once() -> None:
    batch = PairCollator()(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 1, 2, 3]]
    spans = ((0, 5, None), (5, 6, slice(0, 3)), (6, 8, None), (8, 11, slice(6, 7)))
    assert batch["documents"] == _row(11, *spans)


def test_without_sharing_every_completion_has_its_prompt() -> None:
    batch = PairCollator(shared_prompt=False)(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 7, 9, 10, 11]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 0, 1, 2, 3]]
    spans = ((0, 5, None), (5, 9, None), (9, 11, None), (11, 15, None))
    assert batch["documents"] == _row(15, *spans)


@pytest.mark.parametrize("shared", [True, False])
def test_every_token_of_a_completion_is_predicted_from_what_stands_before_it(shared: bool) -> None:
    batch = PairCollator(shared)(ROWS)
    row = batch["input_ids"][0]
    before = row[batch["target_positions"]].tolist()
    assert before == [3, 4, 7, 3, 7, 9, 10]
    assert batch["target_ids"].tolist() == [4, 5, 8, 6, 9, 10, 11]
    placed = torch.zeros(4, 3, dtype=torch.int64)
    placed.view(-1)[batch["target_slots"]] = batch["target_ids"]
    assert placed.tolist() == [[4, 5, 0], [8, 0, 0], [6, 0, 0], [9, 10, 11]]


def test_tokens_with_weight_come_first() -> None:
    weights = {"chosen_weights": [0.0, 0.5], "rejected_weights": [0.0]}
    batch = PairCollator()([ROWS[0] | weights, ROWS[1]])
    assert batch["trained_targets"] == 5
    assert batch["target_ids"].tolist() == [5, 8, 9, 10, 11, 4, 6]
    assert batch["weights"].tolist() == [[0, 0.5, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert batch["channels"].tolist() == [[3, 3, 0], [3, 0, 0], [3, 0, 0], [3, 3, 3]]


def test_length_normalisation_makes_weights_sum_to_1() -> None:
    weights = {"chosen_weights": [0.5, 1.0], "rejected_weights": [0.0]}
    batch = PairCollator(length_normalized=True)([ROWS[0] | weights, ROWS[1]])
    torch.testing.assert_close(batch["weights"].sum(1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(batch["weights"][0], torch.tensor([1 / 3, 2 / 3, 0.0]))


def test_packed_rows_are_batches_of_their_pairs() -> None:
    packed = PairCollator()([{"pairs": ROWS, "length": 11}])
    plain = PairCollator()(ROWS)
    assert packed.keys() == plain.keys()
    for name, value in plain.items():
        same = value == packed[name]
        assert same.all() if isinstance(same, torch.Tensor) else same, name


def test_reference_columns_are_laid_like_weights() -> None:
    rows = [
        ROWS[0] | {"ref_chosen_logps": [-1.0, -2.0], "ref_rejected_logps": [-3.0]},
        ROWS[1] | {"ref_chosen_logps": [-4.0], "ref_rejected_logps": [-5.0, -6.0, -7.0]},
    ]
    found = PairCollator()(rows)["ref_logps"]
    assert found.tolist() == [[-1, -2, 0], [-4, 0, 0], [-3, 0, 0], [-5, -6, -7]]
    assert "ref_logps" not in PairCollator()(ROWS)


def test_rated_rows_come_with_their_mismatched_completions() -> None:
    rows = []
    for label, own, other in ((True, [3], [4, 5]), (False, [4, 5], [3])):
        row: dict[str, Any] = {"prompt_ids": [1, 2], "label": label}
        for name, ids in (("completion", own), ("kl", other)):
            row |= {f"{name}_ids": ids, f"{name}_weights": [1.0] * len(ids)}
            row[f"{name}_channels"] = [3] * len(ids)
        rows.append(row)
    batch = RatedCollator()(rows)
    assert batch["label"].tolist() == [True, False]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 1, 2, 4, 5]]
    assert batch["documents"] == _row(7, (0, 3, None), (3, 7, None))
    assert batch["kl"]["input_ids"].tolist() == [[1, 2, 4, 5, 1, 2, 3]]
    for row in rows:
        del row["kl_ids"]
    assert "kl" not in RatedCollator()(rows)


def test_a_prompt_or_completion_without_tokens_is_refused() -> None:
    for row in (_pair([], [1], [2]), _pair([1], [], [2])):
        with pytest.raises(ValueError, match="has no tokens"):
            PairCollator()([row])
