"""Token rows run through a model, several at a time as one sequence, up to the head.

For verification and calibration on memory-mapped checkpoints: every layer's weights are read once
for all rows of a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gptoss_ft.documents import documents_from_lengths
from gptoss_ft.inference.token_rows import TokenRow
from gptoss_ft.model.causal_lm import WeightedGptOss


@dataclass(frozen=True)
class Pack:
    """Rows one after the other as one sequence, each seeing only itself.

    Attributes:
        first: index of the first row.
        rows: the rows.
    """

    first: int
    rows: tuple[TokenRow, ...]

    @property
    def numbers(self) -> torch.Tensor:
        """Index of every token's row, int64 `[tokens]`."""
        lengths = torch.tensor([len(row.ids) for row in self.rows])
        return torch.arange(self.first, self.first + len(self.rows)).repeat_interleave(lengths)

    @property
    def scored(self) -> torch.Tensor:
        """Scored positions in the sequence, int64."""
        found, start = [], 0
        for row in self.rows:
            found += [start + position for position in row.scored]
            start += len(row.ids)
        return torch.tensor(found)


def packs(rows: Sequence[TokenRow], tokens: int) -> Iterator[Pack]:
    """Yields rows in order, as many at a time as fit into `tokens`, at least one."""
    first, length = 0, 0
    for index, row in enumerate(rows):
        if index > first and length + len(row.ids) > tokens:
            yield Pack(first, tuple(rows[first:index]))
            first, length = index, 0
        length += len(row.ids)
    if first < len(rows):
        yield Pack(first, tuple(rows[first:]))


@torch.inference_mode()
def hidden_states(model: WeightedGptOss, pack: Pack) -> torch.Tensor:
    """Computes the input of the head, float32 `[tokens, hidden]`; each layer is read once."""
    ids = torch.tensor([[token for row in pack.rows for token in row.ids]])
    positions = torch.cat([torch.arange(len(row.ids)) for row in pack.rows])[None]
    documents = documents_from_lengths([[len(row.ids) for row in pack.rows]], ids.shape[1])
    masks = dict.fromkeys(("full_attention", "sliding_attention"), documents)
    return model.model(
        input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False
    ).last_hidden_state[0]
