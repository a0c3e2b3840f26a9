"""Batches of rows of like length, for rows that are padded and not packed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class ResumableLengthSampler(LengthGroupedSampler):
    """transformers' sampler, in an order that follows from the seed and the epoch alone.

    transformers lets it draw from the global generator. A run that resumes within an epoch has the
    generator's state at the checkpoint, not the one at the start of the epoch, and would see other
    rows than the run that it continues.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Seeds the order; the data loader calls this before every epoch, also the one in which a
        run resumes.
        """
        self.generator.manual_seed(self.seed + epoch)
