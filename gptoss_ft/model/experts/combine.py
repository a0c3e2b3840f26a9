"""Sums of the rows that the experts gave for each token, the same bits every time."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from gptoss_ft.model.experts.routing import ExpertChunk, Routing


class Combine(Protocol):
    """Adds up the rows of each token, chunk by chunk."""

    def rows(self, chunk: ExpertChunk) -> torch.Tensor:
        """Returns where to write the rows of a chunk, `[n, width]`, before `scatter` takes them."""

    def scatter(self, chunk: ExpertChunk, rows: torch.Tensor) -> None:
        """Adds what `rows` gave to the sums of its tokens; may overwrite it."""

    def result(self) -> torch.Tensor:
        """Returns the sums, `[tokens, width]`."""


class ScatterCombine:
    """Adds rows as they come: the tokens of one expert's pairs are all different."""

    def __init__(
        self, routing: Routing, width: int, like: torch.Tensor, weights: torch.Tensor | None
    ) -> None:
        """Starts with zeros `[tokens, width]` of the dtype and device of `like`.

        Args:
            routing: the pairs, which come with one expert in a chunk.
            width: of a row.
            like: any tensor.
            weights: `[tokens, k]`, factors of the pairs; None for 1.
        """
        self._sums = like.new_zeros(len(routing.inverse), width)
        self._weights = None if weights is None else routing.permute(weights)[:, None]

    def rows(self, chunk: ExpertChunk) -> torch.Tensor:
        return self._sums.new_empty(len(chunk), self._sums.shape[1])

    def scatter(self, chunk: ExpertChunk, rows: torch.Tensor) -> None:
        if self._weights is not None:
            rows.mul_(self._weights[chunk.rows])
        self._sums.index_add_(0, chunk.token, rows)

    def result(self) -> torch.Tensor:
        return self._sums


class GatherCombine:
    """Keeps the rows of all pairs until each token can gather its own."""

    def __init__(
        self, routing: Routing, width: int, like: torch.Tensor, weights: torch.Tensor | None
    ) -> None:
        """Makes room for all rows; the arguments are those of `ScatterCombine`."""
        self._inverse, self._weights = routing.inverse, weights
        self._kept = like.new_empty(len(routing.token), width)

    def rows(self, chunk: ExpertChunk) -> torch.Tensor:
        return self._kept[chunk.rows]

    def scatter(self, chunk: ExpertChunk, rows: torch.Tensor) -> None:
        """Needs nothing: the rows are in place already."""

    def result(self) -> torch.Tensor:
        if not len(self._kept):
            return self._kept.new_zeros(len(self._inverse), self._kept.shape[1])
        return F.embedding_bag(
            self._inverse, self._kept, mode="sum", per_sample_weights=self._weights
        )
