"""Asks the kernel for the pages of the next layer's experts while this layer computes.

Weights are memory-mapped, so a layer's first products wait for the disk unless its pages are in the
file cache, and the kernel's own readahead fetches little at a time. `madvise(MADV_WILLNEED)` starts
reading without waiting: in the forward pass each layer asks for the one after it, in the backward
pass for the one before it. At most two layers are thus needed in the cache at any time.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache, partial
from itertools import pairwise
from mmap import PAGESIZE
from typing import Any

import torch
from torch import nn

from gptoss_ft.model.experts.module import PackedExperts

MADV_WILLNEED = 3
WEIGHTS = ("gate_up_proj", "gate_up_proj_scales", "down_proj", "down_proj_scales")
# With twice as many pairs as experts, spread evenly, six of seven experts are hit. A smaller batch,
# as in generation, would read experts that nobody is routed to.
PAIRS_PER_EXPERT = 2


def prefetch_layers(model: nn.Module) -> None:
    """Makes every packed expert block ask for its neighbours' pages whenever it runs.

    It is advice and changes no result. On Linux, for weights on the CPU; elsewhere it does nothing,
    and on weights in ordinary memory the kernel ignores it.
    """
    if not sys.platform.startswith("linux"):
        return
    blocks = [module for module in model.modules() if isinstance(module, PackedExperts)]
    for here, following in pairwise(blocks):
        here.register_forward_pre_hook(partial(_before_forward, following))
        following.register_forward_hook(partial(_after_forward, here))


def _before_forward(
    following: PackedExperts, block: PackedExperts, inputs: tuple[Any, ...]
) -> None:
    if _hits_most(block, inputs):
        will_need(following)


def _after_forward(
    preceding: PackedExperts, block: PackedExperts, inputs: tuple[Any, ...], output: torch.Tensor
) -> None:
    if output.requires_grad and _hits_most(block, inputs):
        # Runs when the backward pass reaches the block.
        output.register_hook(lambda _: will_need(preceding))


def _hits_most(block: PackedExperts, inputs: tuple[Any, ...]) -> bool:
    """Returns whether a batch reaches nearly all experts; `inputs` are those of
    `PackedExperts.forward`.
    """
    router_indices: torch.Tensor = inputs[1]
    return router_indices.numel() >= PAIRS_PER_EXPERT * block.num_experts


def will_need(block: PackedExperts) -> None:
    """Asks for the pages of a block's packed weights; returns at once."""
    for name in WEIGHTS:
        weight = block.get_parameter(name)
        if weight.device.type == "cpu":
            start = weight.data_ptr() // PAGESIZE * PAGESIZE
            # A refusal costs time, not correctness.
            _libc().madvise(start, weight.data_ptr() + weight.nbytes - start, MADV_WILLNEED)


@cache
def _libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library
