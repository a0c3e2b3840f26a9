"""The loss and its gradient to the hidden states, against full logits and TRL's chunked loss.

    python benchmarks/loss.py [tokens=512] [hidden=1024] [vocabulary=201088] [trained=50]
                              [repeats=5]

CPU seconds of forward and backward on one thread, interleaved, ratios being medians; `trained` is
the percentage of positions that have weight. All sides see the same values:

- ours: the head in bfloat16, as checkpoints store it;
- `full`: `F.cross_entropy` on float32 logits of every position, with a head in float32, as in
  stock transformers;
- `trl`: the function behind TRL's `fused_lm_head`, which off the GPU scores every position. With
  `speedup_trl_scored` it is given the trained ones only, as TRL itself does on a GPU; that part of
  the gain is there on CPUs alone.

`memory_ratio` is the peak of resident memory over that of `full`, each side in a process of its
own, the head included; `gemm_fraction` the two bare products with a float32 head over ours;
`max_rel_grad_error` against `full`. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure import in_own_process, interleaved, medians, peak_gib, ratio, settings_from
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from gptoss_ft.model.cpu.matmul import add_product, put_product
from gptoss_ft.model.loss import weighted_loss
from gptoss_ft.model.token_scores import CPU_SLICE

DEFAULTS = {"tokens": 512, "hidden": 1024, "vocabulary": 201_088, "trained": 50, "repeats": 5}
IGNORE = -100
TRL_VOCABULARY_CHUNK = 8_192  # what its trainers pass


@dataclass(frozen=True)
class Case:
    """The inputs of a loss.

    Attributes:
        hidden: float32 `[1, tokens, hidden]`.
        head: bfloat16 `[vocabulary, hidden]`.
        labels: int64 `[1, tokens]`, -100 where nothing is trained.
        weights: `[1, tokens]`.
    """

    hidden: torch.Tensor
    head: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def make_case(settings: dict[str, int]) -> Case:
    """Seeded random inputs whose logits have deviation 3; the trained positions come last."""
    generator = torch.Generator().manual_seed(0)
    tokens, width, vocabulary = (settings[key] for key in ("tokens", "hidden", "vocabulary"))
    head = torch.empty(vocabulary, width, dtype=torch.bfloat16)
    for part in head.split(16_384):
        part.copy_(torch.randn(part.shape, generator=generator) * 3 / width**0.5)
    hidden = torch.randn(1, tokens, width, generator=generator)
    labels = torch.randint(0, vocabulary, (1, tokens), generator=generator)
    weights = (torch.arange(tokens) >= tokens * (100 - settings["trained"]) // 100).float()[None]
    return Case(hidden, head, labels.masked_fill(weights == 0, IGNORE), weights)


def ours(case: Case) -> Callable[[], torch.Tensor]:
    """Gradient to the hidden states of the summed loss."""

    def run() -> torch.Tensor:
        hidden = case.hidden.detach().requires_grad_()
        loss = weighted_loss(hidden, case.head, case.labels, case.weights).loss
        return torch.autograd.grad(loss, hidden)[0]

    return run


def full(case: Case) -> Callable[[], torch.Tensor]:
    """The same from all logits at once."""
    head = case.head.float()

    def run() -> torch.Tensor:
        hidden = case.hidden.detach().requires_grad_()
        logits = F.linear(hidden, head)[0, :-1]
        loss = F.cross_entropy(logits, case.labels[0, 1:], ignore_index=IGNORE, reduction="sum")
        return torch.autograd.grad(loss, hidden)[0]

    return run


def trl(case: Case, every_position: bool = True) -> Callable[[], torch.Tensor]:
    """The same through TRL's function, with the metrics that its SFT trainer asks for."""
    head = case.head.float()
    labels = case.labels[0, 1:]
    mask = labels != IGNORE
    scored = torch.ones_like(mask) if every_position else mask

    def run() -> torch.Tensor:
        hidden = case.hidden.detach().requires_grad_()
        log_probs, *_ = ChunkedLogProbFunction.apply(
            hidden[0, :-1][scored],
            head,
            None,
            labels[scored].clamp(min=0),
            1.0,
            TRL_VOCABULARY_CHUNK,
            None,
            1.0,
            ("log_probs", "entropy", "is_top1"),
        )
        loss = -log_probs.masked_fill(~mask[scored], 0).sum()
        return torch.autograd.grad(loss, hidden)[0]

    return run


def bare_products(case: Case) -> Callable[[], None]:
    """The two products of every scored position with the head, in slices of our size, no more."""
    rows, width = int((case.weights[:, 1:] != 0).sum()), case.head.shape[1]
    hidden, total = case.hidden[0, :rows].clone(), torch.zeros(rows, width)
    head = case.head.float()
    logits = torch.empty(rows * CPU_SLICE)

    def run() -> None:
        for part in head.split(CPU_SLICE):
            out = logits[: rows * len(part)].view(rows, len(part))
            put_product(out, hidden, part.T)
            add_product(total, out, part)

    return run


SIDES: dict[str, Callable[[Case], Callable[[], torch.Tensor]]] = {
    "ours": ours,
    "full": full,
    "trl": trl,
}


def memory_of(side: str, settings: dict[str, int]) -> None:
    """Runs one side alone and prints the peak of its memory."""
    run = SIDES[side](make_case(settings))
    run()
    print(json.dumps({"gib": peak_gib()}))


def main() -> None:
    """Runs the benchmark and prints its result."""
    torch.set_num_threads(1)
    side, arguments = None, sys.argv[1:]
    if arguments and arguments[0].startswith("side="):
        side, arguments = arguments[0].removeprefix("side="), arguments[1:]
    settings = settings_from(arguments, DEFAULTS)
    if side is not None:
        memory_of(side, settings)
        return
    case = make_case(settings)
    runs = {name: make(case) for name, make in SIDES.items()}
    expected = runs["full"]()
    error = float((runs["ours"]() - expected).norm() / expected.norm())
    work = {**runs, "trl_scored": trl(case, every_position=False), "gemm": bare_products(case)}
    times = interleaved(work, settings["repeats"])
    passed = [f"{key}={value}" for key, value in settings.items()]
    gib = {name: in_own_process(__file__, f"side={name}", *passed)["gib"] for name in SIDES}
    result = {
        "benchmark": "loss",
        "speedup_full": ratio(times, "full", "ours"),
        "speedup_trl": ratio(times, "trl", "ours"),
        "speedup_trl_scored": ratio(times, "trl_scored", "ours"),
        "memory_ratio": round(gib["ours"] / gib["full"], 3),
        "memory_ratio_trl": round(gib["ours"] / gib["trl"], 3),
        "gemm_fraction": ratio(times, "gemm", "ours"),
        "max_rel_grad_error": error,
        "cpu_s": medians(times),
        "peak_gib": {name: round(value, 3) for name, value in gib.items()},
        **settings,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
