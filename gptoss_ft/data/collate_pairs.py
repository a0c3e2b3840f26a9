"""Preference rows to batches: all prompts and completions end to end in one row, without padding.

A pair lies as `[prompt][chosen][rejected]` where the prompt is shared: its tokens are there once,
the rejected completion goes on from it as the chosen one does, and positions restart after it.
Otherwise as `[prompt][chosen][prompt][rejected]`. What is said of completions has the shape
`[completions, longest]`: the chosen ones of all pairs, then the rejected ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from gptoss_ft.documents import Documents, DocumentSpan

Batch = dict[str, Any]
Tokens = Sequence[int]

# Columns of the rows that reach a collator; packed rows have their pairs in one.
PAIR_COLUMNS = ["prompt_ids", "length", "pairs"] + [
    name.format(side)
    for side in ("chosen", "rejected")
    for name in ("{}_ids", "{}_weights", "{}_channels", "ref_{}_logps")
]
RATED_COLUMNS = [
    *("prompt_ids", "completion_ids", "completion_weights", "completion_channels", "ref_logps"),
    *("label", "length", "kl_ids", "kl_weights", "kl_channels", "ref_kl_logps"),
]


@dataclass(frozen=True)
class Side:
    """One completion of each prompt.

    Attributes:
        ids: tokens.
        weights: of each token in the log-probability of its completion.
        channels: code of each token's channel.
        ref_logps: of each token under the reference; None without one.
    """

    ids: Sequence[Tokens]
    weights: Sequence[Sequence[float]]
    channels: Sequence[Tokens]
    ref_logps: Sequence[Sequence[float]] | None

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], name: str, reference: str) -> Side:
        """Takes the columns `{name}_ids`, `{name}_weights`, `{name}_channels` and `reference`."""
        ids, weights, channels = (
            [row[f"{name}_{part}"] for row in rows] for part in ("ids", "weights", "channels")
        )
        has_reference = rows[0].get(reference) is not None
        return cls(
            ids, weights, channels, [row[reference] for row in rows] if has_reference else None
        )


@dataclass(frozen=True)
class PairCollator:
    """Batches of chosen and rejected completions.

    Attributes:
        shared_prompt: compute the prompt of a pair once.
        length_normalized: divide the weights of a completion by their sum, so that its weighted
            log-probability is a mean.
    """

    shared_prompt: bool = True
    length_normalized: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collates rows as `data/pairs.py` writes them, or packed ones that hold several in
        `pairs`.

        Returns:
            what `collate` does; its completions are twice the pairs.
        """
        pairs = list(chain.from_iterable(row.get("pairs") or (row,) for row in rows))
        sides = [Side.of(pairs, side, f"ref_{side}_logps") for side in ("chosen", "rejected")]
        prompts = [pair["prompt_ids"] for pair in pairs]
        return collate(prompts, sides, self.shared_prompt, self.length_normalized)


@dataclass(frozen=True)
class RatedCollator:
    """Batches of single completions, each with a label.

    Attributes:
        length_normalized: as in `PairCollator`.
    """

    length_normalized: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collates rows as `data/pairs.py` writes them.

        Returns:
            what `collate` does, and `label`, bool `[rows]`; where rows have mismatched completions,
            those behind the same prompts under `kl`.
        """
        prompts = [row["prompt_ids"] for row in rows]
        completions = Side.of(rows, "completion", "ref_logps")
        batch = collate(prompts, [completions], True, self.length_normalized)
        batch["label"] = torch.tensor([bool(row["label"]) for row in rows])
        if rows[0].get("kl_ids") is not None:
            mismatched = Side.of(rows, "kl", "ref_kl_logps")
            batch["kl"] = collate(prompts, [mismatched], True, self.length_normalized)
        return batch


def collate(
    prompts: Sequence[Tokens],
    sides: Sequence[Side],
    shared_prompt: bool,
    length_normalized: bool = False,
) -> Batch:
    """Lays prompts and their completions into one row.

    Args:
        prompts: at least one token each.
        sides: completions of every prompt, at least one token each.
        shared_prompt: whether a prompt stands once before all its completions.
        length_normalized: whether weights are divided by their sum.

    Returns:
        input_ids, position_ids: int64 `[1, length]`.
        documents: what sees what in the row, a `Documents`.
        target_positions, target_ids: int64 `[n]`, the tokens of the completions and the places in
            the row whose hidden states predict them; first those with weight.
        trained_targets: how many have weight.
        target_slots: int64 `[n]`, where each belongs in a flattened `[completions, longest]`.
        weights: float32 `[completions, longest]`, 0 behind a completion's end.
        channels: int64 likewise.
        ref_logps: float32 likewise, where the sides have them.

    Raises:
        ValueError: a prompt or a completion has no tokens.
    """
    completions = [tokens for side in sides for tokens in side.ids]
    if not all(map(len, chain(prompts, completions))):
        raise ValueError("a prompt or a completion has no tokens")
    batch, places = _row(prompts, [side.ids for side in sides], shared_prompt)
    weights = _dense((x for side in sides for x in side.weights), torch.float32)
    longest = weights.shape[1]
    slots = torch.cat([torch.arange(len(x)) + longest * i for i, x in enumerate(completions)])
    has_weight = weights.flatten()[slots] != 0
    order = torch.cat([has_weight.nonzero()[:, 0], (~has_weight).nonzero()[:, 0]])
    batch |= {
        "target_positions": torch.cat(places)[order],
        "target_ids": torch.tensor(list(chain.from_iterable(completions)))[order],
        "target_slots": slots[order],
        "trained_targets": int(has_weight.sum()),
    }
    if length_normalized:
        weights /= weights.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    batch["weights"] = weights
    batch["channels"] = _dense((x for side in sides for x in side.channels), torch.int64)
    references = [side.ref_logps for side in sides if side.ref_logps is not None]
    if references:
        batch["ref_logps"] = _dense(chain.from_iterable(references), torch.float32)
    return batch


def _row(
    prompts: Sequence[Tokens], sides: Sequence[Sequence[Tokens]], shared_prompt: bool
) -> tuple[Batch, list[torch.Tensor]]:
    """Lays out the row and returns, for every completion, the positions that predict its tokens."""
    ids: list[int] = []
    positions: list[int] = []
    spans: list[DocumentSpan] = []
    places: list[list[torch.Tensor]] = [[] for _ in sides]
    for prompt, *completions in zip(prompts, *sides, strict=True):
        begin = len(ids)
        for index, completion in enumerate(completions):
            start, goes_on = len(ids), shared_prompt and index > 0
            if not goes_on:
                ids += prompt
            place = torch.arange(len(ids) - 1, len(ids) + len(completion) - 1)
            if goes_on:
                place[0] = begin + len(prompt) - 1
            places[index].append(place)
            ids += completion
            shared = slice(begin, begin + len(prompt)) if goes_on else None
            spans.append(DocumentSpan(slice(0, 1), start, len(ids), shared))
            last = len(prompt) + len(completion)
            positions += range(last - (len(ids) - start), last)
    row = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "documents": Documents(1, len(ids), tuple(spans)),
    }
    return row, list(chain.from_iterable(places))


def _dense(values: Iterable[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Pads to `[completions, longest]` with 0 after the ends."""
    return pad_sequence([torch.tensor(x, dtype=dtype) for x in values], batch_first=True)
