"""A whole DPO step, ours against TRL's DPOTrainer with PEFT, on the same pairs, model and adapter.

    python benchmarks/dpo_step.py [pairs=2] [prompt=384] [completion=128] [hidden=1024] [layers=4]
                                  [experts=32] [rank=8] [repeats=3]

The model, the adapter (LoRA on attention and all experts, random) and the measures are those of
`train_step.py`. Either side takes real optimizer steps on one batch of pairs, with the reference's
log-probabilities in the rows, so neither computes them. TRL is at its defaults: float32,
checkpointing on, chosen and rejected each with its prompt. CPU seconds on one thread, interleaved;
ratios are medians:

- `speedup`: TRL over ours; `speedup_like_for_like`: TRL without checkpointing over ours;
  `speedup_unshared`: TRL over ours with the prompt computed twice as well;
- `memory_ratio`: peak resident memory while stepping, ours over TRL's, each side in a process of
  its own;
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
)
from models import randomise, write_base
from trainers import (
    DPOOnIds,
    common_settings,
    gradients,
    our_model,
    pair_trainer_on,
    set_checkpointing,
    stepper,
    stock_lora,
    stock_model,
)
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate_pairs import PairCollator
from gptoss_ft.model.load import load_model
from gptoss_ft.train.scores import score_rows
from gptoss_ft.train.trainers.dpo import PairDPOTrainer

DEFAULTS = {
    "pairs": 2,
    "prompt": 384,
    "completion": 128,
    "hidden": 1024,
    "layers": 4,
    "experts": 32,
    "rank": 8,
    "repeats": 3,
}
FINAL = 3  # code of the channel
ROWS = "rows.json"
Rows = list[dict[str, Any]]


def make_rows(settings: dict[str, int]) -> Rows:
    """Pairs of random tokens, without a reference."""
    generator = torch.Generator().manual_seed(0)
    length = settings["completion"]

    def draw(count: int) -> list[int]:
        return torch.randint(0, 199_000, (count,), generator=generator).tolist()

    rows = []
    for _ in range(settings["pairs"]):
        row: dict[str, Any] = {"prompt_ids": draw(settings["prompt"])}
        for side in ("chosen", "rejected"):
            row[f"{side}_ids"] = draw(length)
            row |= {f"{side}_weights": [1.0] * length, f"{side}_channels": [FINAL] * length}
        rows.append(row)
    return rows


def write_rows(base: Path, settings: dict[str, int]) -> None:
    """Pairs with the base's log-probabilities, beside the base."""
    rows = make_rows(settings)
    scores = score_rows(load_model(open_checkpoint(base)), rows)
    for row, (chosen, rejected) in zip(rows, scores, strict=True):
        row |= {"ref_chosen_logps": chosen.tolist(), "ref_rejected_logps": rejected.tolist()}
    (base / ROWS).write_text(json.dumps(rows))


def read_rows(base: Path) -> Rows:
    """What `write_rows` wrote."""
    found: Rows = json.loads((base / ROWS).read_text())
    return found


def our_trainer(base: Path, rows: Rows, rank: int) -> PairDPOTrainer:
    """Builds our trainer on the packed checkpoint; every adapter tensor is random."""
    arguments = DPOConfig(**common_settings(base / "unused"), gradient_checkpointing=False)
    trainer: PairDPOTrainer = pair_trainer_on(
        PairDPOTrainer, our_model(base, rank), rows, arguments
    )
    return trainer


def trl_trainer(base: Path, rows: Rows, rank: int) -> DPOTrainer:
    """TRL's trainer on stock PEFT on stock transformers; every adapter tensor is random."""
    names = ("ref_chosen_logps", "ref_rejected_logps")
    summed = [row | {name: sum(row[name]) for name in names} for row in rows]
    trainer = DPOOnIds(
        model=stock_model(base),
        args=DPOConfig(**common_settings(base / "unused")),
        train_dataset=datasets.Dataset.from_list(summed),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=stock_lora(rank),
    )
    trainer.precompute_ref_logps = True  # the rows have them
    randomise(trainer.model)
    return trainer


def batch_of(trainer: DPOTrainer) -> dict[str, Any]:
    """All rows as one batch of the trainer's collator."""
    return trainer.data_collator([dict(row) for row in trainer.train_dataset])


def alone(side: str, base: Path, settings: dict[str, int]) -> None:
    """Loads one side, takes two steps, prints its memory's peak and the second step's time."""
    make = our_trainer if side == "ours" else trl_trainer
    trainer = make(base, read_rows(base), settings["rank"])
    set_checkpointing(trainer, side == "trl")
    forget_peak()
    step, batch = stepper(trainer), batch_of(trainer)
    step(batch)
    seconds = cpu_seconds(lambda: step(batch))
    print(json.dumps({"gib": round(peak_gib(), 3), "cpu_s": round(seconds, 3)}))


def first_step(
    trainer: DPOTrainer, batch: dict[str, Any]
) -> tuple[Callable[..., float], float, dict[str, torch.Tensor]]:
    """A stepper, and the loss and gradients of its first step."""
    found: dict[str, torch.Tensor] = {}
    step = stepper(trainer, lambda: None if found else found.update(gradients(trainer)))
    loss = step(batch)
    return step, loss, found


def compare(base: Path, settings: dict[str, int]) -> dict[str, Any]:
    """Everything that is measured in one process."""
    rows = read_rows(base)
    ours, trl = (make(base, rows, settings["rank"]) for make in (our_trainer, trl_trainer))
    set_checkpointing(trl, True)
    our_batch, trl_batch = batch_of(ours), batch_of(trl)
    unshared = PairCollator(shared_prompt=False)(rows)
    our_step, our_loss, mine = first_step(ours, our_batch)
    trl_step, trl_loss, theirs = first_step(trl, trl_batch)
    if mine.keys() != theirs.keys():
        raise SystemExit(f"other tensors are trained: {sorted(mine.keys() ^ theirs.keys())}")
    errors = [float((mine[n] - theirs[n]).norm() / theirs[n].norm()) for n in theirs]

    def trl_side(checkpointing: bool) -> float:
        set_checkpointing(trl, checkpointing)
        with usual_allocator():
            return trl_step(trl_batch)

    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: our_step(our_batch),
        "trl": lambda: trl_side(True),
        "ours_unshared": lambda: our_step(unshared),
        "trl_without_checkpointing": lambda: trl_side(False),
    }
    times = interleaved(sides, settings["repeats"])
    return {
        "speedup": ratio(times, "trl", "ours"),
        "speedup_like_for_like": ratio(times, "trl_without_checkpointing", "ours"),
        "speedup_unshared": ratio(times, "trl", "ours_unshared"),
        "max_rel_grad_error": max(errors),
        "loss_rel_error": abs(our_loss - trl_loss) / trl_loss,
        "loss": round(our_loss, 6),
        "cpu_s": medians(times),
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    torch.set_num_threads(1)
    given = sys.argv[1:]
    if given and given[0].startswith("side="):
        side, base = given[0].removeprefix("side="), Path(given[1])
        alone(side, base, settings_from(given[2:], DEFAULTS))
        return
    settings = settings_from(given, DEFAULTS)
    passed = [f"{key}={value}" for key, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        write_base(base, settings["hidden"], settings["layers"], settings["experts"])
        write_rows(base, settings)
        own = {
            s: in_own_process(__file__, f"side={s}", str(base), *passed) for s in ("ours", "trl")
        }
        result = compare(base, settings)
    result |= {
        "memory_ratio": round(own["ours"]["gib"] / own["trl"]["gib"], 3),
        "own_process": own,
    }
    print(json.dumps({"benchmark": "dpo_step", **result, **settings}))


if __name__ == "__main__":
    main()
