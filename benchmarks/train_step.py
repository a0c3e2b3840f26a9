"""A whole training step, ours against TRL with PEFT, on the same model, data and adapter.

    python benchmarks/train_step.py [tokens=512] [hidden=1024] [layers=4] [experts=32] [rank=8]
                                    [trained=50] [repeats=3]

A random checkpoint (top-4 routing, intermediate = hidden, vocabulary 201,088) is written to a
temporary folder. Either side loads it as its users would and takes real optimizer steps on one row:
forward, backward, clipping and AdamW of its own trainer, LoRA on attention and all experts, with
equal random adapters. CPU seconds on one thread, interleaved; ratios are medians:

- `speedup_default`: TRL's default, checkpointing on, over ours; `speedup_like_for_like`: both
  without checkpointing; `speedup_torch_path`: TRL's default over ours without the compiled kernel;
  `speedup_same_library`: without oneDNN, whose products are faster than MKL's, which TRL gets, on
  some processors;
- `speedup_all_trained`: as `speedup_default`, with every token trained instead of `trained` per
  cent. Off the GPU, TRL's loss scores untrained positions too and ours does not: the difference
  between the two figures is a gain that exists on CPUs only.
- `memory_ratio`: peak resident memory while stepping, file pages included, ours over TRL's
  default, each side in a process of its own; `memory_ratio_with_loading` counts loading too and
  `own_process` has the time of a step there;
- `gemm_fraction`: the step's bare matrix products with dense float32 weights (experts, attention,
  head; not the adapters' own) over ours, in the same process;
- `max_rel_grad_error`, `loss_rel_error`: of the first step; gradients tensor by tensor.

The last line is one JSON object. Needs the dev extra and about 9 GiB.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from measure import (
    cpu_seconds,
    forget_peak,
    in_own_process,
    interleaved,
    medians,
    peak_gib,
    ratio,
    settings_from,
    usual_allocator,
    without_kernel,
)
from models import write_base
from torch.nn.functional import scaled_dot_product_attention
from trainers import (
    batch_of,
    gradients,
    our_trainer,
    set_checkpointing,
    stepper,
    trl_trainer,
)
from trl import SFTTrainer

from gptoss_ft.model.cpu.matmul import add_product, multiply
from gptoss_ft.model.token_scores import CPU_SLICE

DEFAULTS = {
    "tokens": 512,
    "hidden": 1024,
    "layers": 4,
    "experts": 32,
    "rank": 8,
    "trained": 50,
    "repeats": 3,
}
IGNORE = -100


def make_row(tokens: int, trained: int) -> datasets.Dataset:
    """One row of random tokens, the last `trained` per cent of them trained."""
    ids = torch.randint(0, 199_000, (tokens,), generator=torch.Generator().manual_seed(0))
    weights = (torch.arange(tokens) >= tokens * (100 - trained) // 100).float()
    labels = ids.masked_fill(weights == 0, IGNORE)
    row = {"input_ids": ids, "labels": labels, "loss_weights": weights}
    return datasets.Dataset.from_list([{name: value.tolist() for name, value in row.items()}])


def bare_products(trainer: SFTTrainer, counts: list[list[int]], scored: int) -> Callable[[], None]:
    """The step's matrix products on dense float32 weights and nothing else.

    Args:
        trainer: ours; its model says the sizes.
        counts: rows of every expert that is hit, by layer.
        scored: positions with weight.
    """
    config = trainer.model.config
    width, heads = config.hidden_size, config.num_attention_heads
    kv_heads, head_dim = config.num_key_value_heads, config.head_dim
    tokens = sum(counts[0]) // config.num_experts_per_tok
    x = torch.randn(tokens, width)
    wide = torch.randn(max(map(max, counts)), 2 * width)
    gate_up, down = torch.randn(2 * width, width), torch.randn(width, width)
    qkv = torch.randn((heads + 2 * kv_heads) * head_dim, width)
    o = torch.randn(width, heads * head_dim)
    head = torch.randn(config.vocab_size, width)
    query = torch.randn(1, heads, tokens, head_dim, requires_grad=True)
    key, value = (torch.randn(1, kv_heads, tokens, head_dim, requires_grad=True) for _ in "kv")
    total = torch.zeros(scored, width)

    def run() -> None:
        for layer in counts:
            for n in layer:
                _ = multiply(x[:n], gate_up.T), multiply(x[:n], down.T)
                _ = multiply(x[:n], down), multiply(wide[:n], gate_up)
            projected = multiply(x, qkv.T)
            _ = multiply(projected, qkv), multiply(projected[:, : o.shape[1]], o.T)
            _ = multiply(x, o)
            out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            torch.autograd.grad(out, (query, key, value), out)
        for part in head.split(CPU_SLICE):
            add_product(total, multiply(x[:scored], part.T), part)

    return run


def expert_counts(trainer: SFTTrainer, batch: dict[str, Any]) -> list[list[int]]:
    """How many rows each expert that is hit gets, by layer."""
    config, counts = trainer.model.config, []

    def count(module: Any, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        found = torch.bincount(outputs[2].flatten(), minlength=config.num_local_experts)
        counts.append([n for n in found.tolist() if n])

    modules = dict(trainer.model.named_modules())
    hooks = [
        module.register_forward_hook(count)
        for name, module in modules.items()
        if name.endswith("mlp.router")
    ]
    with torch.no_grad():
        trainer.model(**batch)
    for hook in hooks:
        hook.remove()
    return counts


def alone(side: str, base: Path, settings: dict[str, int]) -> None:
    """Loads one side, takes two steps, prints its memory's peaks and the second step's time."""
    row = make_row(settings["tokens"], settings["trained"])
    make = our_trainer if side == "ours" else trl_trainer
    trainer = make(base, row, settings["rank"])
    set_checkpointing(trainer, side == "trl")
    loading = peak_gib()
    forget_peak()
    step, batch = stepper(trainer), batch_of(trainer, row)
    step(batch)
    seconds = cpu_seconds(lambda: step(batch))
    print(
        json.dumps(
            {
                "gib": round(peak_gib(), 3),
                "gib_with_loading": round(max(loading, peak_gib()), 3),
                "cpu_s": round(seconds, 3),
            }
        )
    )


def first_step(
    trainer: SFTTrainer, batch: dict[str, Any]
) -> tuple[Callable[..., float], float, dict[str, torch.Tensor]]:
    """A stepper, and the loss and gradients of its first step."""
    found: dict[str, torch.Tensor] = {}
    step = stepper(trainer, lambda: None if found else found.update(gradients(trainer)))
    loss = step(batch)
    return step, loss, found


def compare(base: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Everything that is measured in one process."""
    row, whole = (make_row(settings["tokens"], share) for share in (settings["trained"], 100))
    ours, trl = (make(base, row, settings["rank"]) for make in (our_trainer, trl_trainer))
    set_checkpointing(trl, True)
    our_batch, trl_batch = batch_of(ours, row), batch_of(trl, row)
    our_whole, trl_whole = batch_of(ours, whole), batch_of(trl, whole)
    our_step, our_loss, mine = first_step(ours, our_batch)
    trl_step, trl_loss, theirs = first_step(trl, trl_batch)
    if mine.keys() != theirs.keys():
        raise SystemExit(f"other tensors are trained: {sorted(mine.keys() ^ theirs.keys())}")
    errors = [float((mine[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs]
    scored = int((our_batch["loss_weights"][:, 1:] != 0).sum())
    counts = expert_counts(ours, our_batch)

    def trl_side(checkpointing: bool, batch: dict[str, Any]) -> float:
        set_checkpointing(trl, checkpointing)
        with usual_allocator():
            return trl_step(batch)

    def torch_path() -> float:
        with without_kernel():
            return our_step(our_batch)

    def same_library() -> float:
        with torch.backends.mkldnn.flags(enabled=False):
            return our_step(our_batch)

    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: our_step(our_batch),
        "trl_default": lambda: trl_side(True, trl_batch),
        "ours_torch_path": torch_path,
        "ours_same_library": same_library,
        "gemm": bare_products(ours, counts, scored),
        "trl_without_checkpointing": lambda: trl_side(False, trl_batch),
        "ours_all_trained": lambda: our_step(our_whole),
        "trl_default_all_trained": lambda: trl_side(True, trl_whole),
    }
    times = interleaved(sides, settings["repeats"])
    return {
        "speedup_default": ratio(times, "trl_default", "ours"),
        "speedup_like_for_like": ratio(times, "trl_without_checkpointing", "ours"),
        "speedup_all_trained": ratio(times, "trl_default_all_trained", "ours_all_trained"),
        "speedup_torch_path": ratio(times, "trl_default", "ours_torch_path"),
        "speedup_same_library": ratio(times, "trl_default", "ours_same_library"),
        "gemm_fraction": ratio(times, "gemm", "ours"),
        "max_rel_grad_error": max(errors),
        "loss_rel_error": abs(our_loss - trl_loss) / trl_loss,
        "experts_hit": sum(map(len, counts)),
        "cpu_s": medians(times),
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    torch.set_num_threads(1)
    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("side="):
        side, base = arguments[0].removeprefix("side="), Path(arguments[1])
        alone(side, base, settings_from(arguments[2:], DEFAULTS))
        return
    settings = settings_from(arguments, DEFAULTS)
    passed = [f"{key}={value}" for key, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_base(base, settings["hidden"], settings["layers"], settings["experts"])
        own = {
            s: in_own_process(__file__, f"side={s}", str(base), *passed) for s in ("ours", "trl")
        }
        result = compare(base, settings)
    result |= {
        "memory_ratio": round(own["ours"]["gib"] / own["trl"]["gib"], 3),
        "memory_ratio_with_loading": round(
            own["ours"]["gib_with_loading"] / own["trl"]["gib_with_loading"], 3
        ),
        "own_process": own,
    }
    print(json.dumps({"benchmark": "train_step", **result, **settings}))


if __name__ == "__main__":
    main()
