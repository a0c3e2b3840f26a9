"""Speed of each part of a merge on this machine, from a sample of the very tensors."""

from __future__ import annotations

import hashlib
import time
from itertools import islice

import torch

from gptoss_ft.adapters.combine import LoraFactors
from gptoss_ft.merge.planned import MergeAction, MergePlan, PlannedTensor
from gptoss_ft.merge.statistics import Tally
from gptoss_ft.merge.values import CalibratedExpert, Rounder, Workbench, parts
from gptoss_ft.mxfp4.codec import BLOCK_SIZE


def speeds(plan: MergePlan) -> dict[MergeAction, float]:
    """Measures the bytes of output per CPU second for every action of a plan, hashing included.

    Reads and computes two parts of the largest tensor of each action and writes nothing; the
    second part counts, where there is one, because the first pays for what is done once. The pass
    over the calibration rows that `gptq` begins with is not in it.
    """
    samples: dict[MergeAction, PlannedTensor] = {}
    for tensor in plan.tensors:
        largest = samples.setdefault(tensor.action, tensor)
        if tensor.nbytes > largest.nbytes:
            samples[tensor.action] = tensor
    corrected = samples.get(MergeAction.CORRECT)
    bench = Workbench(plan.options.statistics)
    if corrected is not None:
        bench.rounder = _sample_rounder(plan)
        bench.corrections[corrected.unit] = torch.zeros(corrected.shape)
    return {action: _speed(tensor, bench) for action, tensor in samples.items()}


def _sample_rounder(plan: MergePlan) -> Rounder:
    """Rounds experts against noise, as many rows as an expert sees on average."""
    from gptoss_ft.merge.calibrate import TOKENS, round_expert  # the model and the renderer

    config = plan.checkpoint.config
    count = TOKENS * plan.checkpoint.active_experts // config["num_local_experts"]

    class Noise:
        def round(
            self,
            stem: str,
            expert: int,
            blocks: torch.Tensor,
            scales: torch.Tensor,
            update: LoraFactors,
        ) -> CalibratedExpert:
            rows = torch.randn(count, scales.shape[1] * BLOCK_SIZE)
            held_out, bias = rows[: count // 8], torch.zeros(scales.shape[0])
            return round_expert((rows, held_out), blocks, scales, update, bias)

    return Noise()


def _speed(tensor: PlannedTensor, bench: Workbench) -> float:
    speed = float("inf")
    start = time.process_time()
    for part in islice(parts(tensor, bench, Tally()), 2):
        data = part.contiguous().flatten().view(torch.uint8).numpy().data
        hashlib.sha256(data).digest()
        now = time.process_time()
        speed = data.nbytes / max(now - start, 1e-9)
        start = now
    return speed
