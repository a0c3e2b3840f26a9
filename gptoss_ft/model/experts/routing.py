"""Which rows go to which expert: (token, expert) pairs sorted by expert, and runs of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Chunk:
    """Some of the experts that are hit, and their rows among the sorted pairs.

    Attributes:
        rows: the pairs of these experts.
        experts: their indices, ascending.
        counts: how many rows each of them has, none of them 0.
        ids: `experts` as int64 on the device.
        ends: int32 on the device, where each one's rows end, counted from `rows.start`.
    """

    rows: slice
    experts: tuple[int, ...]
    counts: tuple[int, ...]
    ids: torch.Tensor
    ends: torch.Tensor

    def pick(self, per_expert: torch.Tensor) -> torch.Tensor:
        """The entries `[c, …]` of these experts out of `[E, …]`; a view where there is one."""
        if len(self.experts) == 1:
            return per_expert[self.experts[0] : self.experts[0] + 1]
        return per_expert.index_select(0, self.ids)

    def spread(self, picked: torch.Tensor) -> torch.Tensor:
        """`[c, n]` as one row for each pair, `[rows, n]` or, for a single expert, `[1, n]`."""
        if len(self.experts) == 1:
            return picked
        counts = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        # The size is known here; left out, it would be asked from the device.
        rows = self.rows.stop - self.rows.start
        return picked.repeat_interleave(counts, dim=0, output_size=rows)

    def put(self, per_expert: torch.Tensor, values: torch.Tensor) -> None:
        """Writes `[c, …]` into the places of these experts in `[E, …]`."""
        if len(self.experts) == 1:
            per_expert[self.experts[0]].copy_(values[0])
        else:
            per_expert[self.ids] = values.to(per_expert.dtype)


@dataclass(frozen=True)
class Routing:
    """The pairs of a batch of tokens, sorted by expert.

    Attributes:
        order: int64 `[pairs]`, place of each sorted pair in the flattened `[tokens, k]`.
        token: int64 `[pairs]`, its token.
        places: int64 `[tokens, k]`, the inverse of `order`.
        counts: pairs of every expert, on the host.
    """

    order: torch.Tensor
    token: torch.Tensor
    places: torch.Tensor
    counts: tuple[int, ...]

    def chunks(self, at_once: int) -> Iterator[Chunk]:
        """The experts that are hit, in order, at most `at_once` of them in a chunk."""
        device = self.order.device
        hit = [expert for expert, count in enumerate(self.counts) if count]
        ends = [0, *accumulate(self.counts[expert] for expert in hit)]
        # A copy that blocks would wait for all that the device has yet to do.
        ids = torch.tensor(hit, dtype=torch.int64).to(device, non_blocking=True)
        all_ends = torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)
        for first in range(0, len(hit), at_once):
            last = min(first + at_once, len(hit))
            yield Chunk(
                slice(ends[first], ends[last]),
                tuple(hit[first:last]),
                tuple(self.counts[expert] for expert in hit[first:last]),
                ids[first:last],
                all_ends[first + 1 : last + 1] - ends[first],
            )

    def sorted_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """`[tokens, k]` as `[pairs]`."""
        return weights.reshape(-1).index_select(0, self.order)


class TokenSums:
    """Sums the rows of each token, with or without weights, and gives the same bits every time.

    The pairs of one expert have different tokens, so where experts come one by one, their rows are
    added as they come. Those of several experts are kept until each token can gather its own.
    """

    def __init__(
        self,
        routing: Routing,
        at_once: int,
        like: torch.Tensor,
        width: int,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Nothing added yet.

        Args:
            routing: the pairs.
            at_once: experts in a chunk, at most.
            like: a tensor of the dtype and device of rows and sums.
            width: of a row.
            weights: `[tokens, k]`, factors of the pairs; None for 1.
        """
        self._routing, self._weights, self._kept = routing, weights, None
        if at_once > 1:
            self._kept = like.new_empty(len(routing.token), width)
            return
        self._sums = like.new_zeros(len(routing.places), width)
        self._sorted = None if weights is None else routing.sorted_weights(weights)[:, None]

    def rows(self, chunk: Chunk) -> torch.Tensor:
        """Where to write the rows of a chunk, `[n, width]`, before they go to `add`."""
        if self._kept is not None:
            return self._kept[chunk.rows]
        return self._sums.new_empty(chunk.rows.stop - chunk.rows.start, self._sums.shape[1])

    def add(self, chunk: Chunk, rows: torch.Tensor) -> None:
        """Adds what `rows` gave, which may be overwritten."""
        if self._kept is not None:
            return
        if self._sorted is not None:
            rows.mul_(self._sorted[chunk.rows])
        self._sums.index_add_(0, self._routing.token[chunk.rows], rows)

    def total(self) -> torch.Tensor:
        """The sums, `[tokens, width]`."""
        if self._kept is None:
            return self._sums
        if not len(self._kept):
            return self._kept.new_zeros(len(self._routing.places), self._kept.shape[1])
        return F.embedding_bag(
            self._routing.places, self._kept, mode="sum", per_sample_weights=self._weights
        )


def sort_pairs(router_indices: torch.Tensor, counts: tuple[int, ...]) -> Routing:
    """Sorts `[tokens, k]` expert indices; `counts` is what `count_pairs` found."""
    order = router_indices.reshape(-1).argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    k = router_indices.shape[1]
    token = order.div(k, rounding_mode="floor")
    return Routing(order, token, places.view(router_indices.shape), counts)


def count_pairs(router_indices: torch.Tensor, experts: int) -> tuple[int, ...]:
    """Pairs of every expert, on the host: the one copy from the device in a layer."""
    flat = router_indices.reshape(-1)
    counts = torch.zeros(experts, dtype=torch.int64, device=flat.device)
    return tuple(counts.scatter_add_(0, flat, torch.ones_like(flat)).tolist())
