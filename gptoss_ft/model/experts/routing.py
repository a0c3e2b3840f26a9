"""Routing of rows to experts: (token, expert) pairs sorted by expert, and runs of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True)
class ExpertChunk:
    """Some of the experts that are hit, and their rows among the sorted pairs.

    Attributes:
        rows: the pairs of these experts.
        token: int64 `[rows]`, the token of each pair.
        experts: their indices, ascending.
        counts: how many rows each of them has, none of them 0.
        ids: `experts` as int64 on the device.
        ends: int32 on the device, where each one's rows end, counted from `rows.start`.
    """

    rows: slice
    token: torch.Tensor
    experts: tuple[int, ...]
    counts: tuple[int, ...]
    ids: torch.Tensor
    ends: torch.Tensor

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.rows.stop - self.rows.start

    def select(self, per_expert: torch.Tensor) -> torch.Tensor:
        """Returns the entries `[c, …]` of these experts in `[E, …]`, as a view if it is one."""
        if len(self.experts) == 1:
            return per_expert[self.experts[0] : self.experts[0] + 1]
        return per_expert.index_select(0, self.ids)

    def scatter(self, values: torch.Tensor, per_expert: torch.Tensor) -> None:
        """Writes `[c, …]` to the entries of these experts in `[E, …]`, in its dtype."""
        if len(self.experts) == 1:
            per_expert[self.experts[0]].copy_(values[0])
        else:
            per_expert[self.ids] = values.to(per_expert.dtype)

    def repeat(self, selected: torch.Tensor) -> torch.Tensor:
        """Repeats `[c, n]` for the rows of each expert, `[rows, n]`; `[1, n]` for one expert."""
        if len(self.experts) == 1:
            return selected
        counts = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        # The size is known here; left out, it would be asked from the device.
        return selected.repeat_interleave(counts, dim=0, output_size=len(self))


@dataclass(frozen=True)
class Routing:
    """The pairs of a batch of tokens, sorted by expert.

    Attributes:
        permutation: int64 `[pairs]`, the index of each sorted pair in the flattened `[tokens, k]`.
        inverse: int64 `[tokens, k]`, the index of each pair among the sorted ones.
        token: int64 `[pairs]`, the token of each sorted pair.
        counts: pairs of every expert, on the host.
    """

    permutation: torch.Tensor
    inverse: torch.Tensor
    token: torch.Tensor
    counts: tuple[int, ...]

    def chunks(self, at_once: int) -> Iterator[ExpertChunk]:
        """Yields the experts that are hit, in order, at most `at_once` of them in a chunk."""
        device = self.permutation.device
        hit = [expert for expert, count in enumerate(self.counts) if count]
        ends = [0, *accumulate(self.counts[expert] for expert in hit)]
        # A copy that blocks would wait for all that the device has yet to do.
        ids = torch.tensor(hit, dtype=torch.int64).to(device, non_blocking=True)
        all_ends = torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
        for first in range(0, len(hit), at_once):
            last = min(first + at_once, len(hit))
            rows = slice(ends[first], ends[last])
            yield ExpertChunk(
                rows,
                self.token[rows],
                tuple(hit[first:last]),
                tuple(self.counts[expert] for expert in hit[first:last]),
                ids[first:last],
                all_ends[first + 1 : last + 1] - ends[first],
            )

    def permute(self, weights: torch.Tensor) -> torch.Tensor:
        """Returns `[tokens, k]` in the order of the sorted pairs, `[pairs]`."""
        return weights.reshape(-1).index_select(0, self.permutation)


def sort_pairs(router_indices: torch.Tensor, counts: tuple[int, ...]) -> Routing:
    """Sorts `[tokens, k]` expert indices; `counts` is what `count_pairs` found."""
    permutation = router_indices.reshape(-1).argsort(stable=True)
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    k = router_indices.shape[1]
    token = permutation.div(k, rounding_mode="floor")
    return Routing(permutation, inverse.view(router_indices.shape), token, counts)


def count_pairs(router_indices: torch.Tensor, experts: int) -> tuple[int, ...]:
    """Counts the pairs of every expert, on the host: the one copy from the device in a layer."""
    flat = router_indices.reshape(-1)
    counts = torch.zeros(experts, dtype=torch.int64, device=flat.device)
    return tuple(counts.scatter_add_(0, flat, torch.ones_like(flat)).tolist())
