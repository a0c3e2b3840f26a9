"""An epoch of rows of real lengths: packed by us, padded by TRL; CPU seconds per trained token.

Without flash attention, padding is the only correct way to batch rows that TRL has: its packing
needs an attention that knows where documents end, which on a CPU it does not have for gpt-oss, and
on a GPU only where a flash kernel with sinks is installed.

Both sides run a whole epoch through their trainer's `train()`: forward, backward, clipping and
AdamW, at a learning rate of 0, so that all batches meet the same weights and the two losses per
trained token must be equal, however the rows were batched. TRL's side is as in `trainers.py`, with
its default gradient checkpointing; ours runs without, its default.

- `speedup_per_trained_token`: TRL's CPU seconds over ours, one thread each;
- `loss_abs_diff`: difference of the two losses per trained token;
- `token_share`: how much of the batches' area is tokens, on either side;
- `speedup_per_position`: the same ratio per position computed, padding included: what is not due to
  packing.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from measure import cpu_seconds, settings_from
from models import write_base
from trainers import our_trainer, say, trl_trainer
from transformers import PrinterCallback, TrainerCallback
from trl import SFTTrainer

from gptoss_ft.data.pack import best_fit, pack_rows
from gptoss_ft.harmony.render import IGNORE

SIGMA = 0.8
TEXT_TOKENS = 199_000  # ids below are text
DEFAULTS = {
    "rows": 32,
    "median": 300,
    "max_length": 2048,
    "batch": 4,
    "hidden": 512,
    "layers": 4,
    "experts": 32,
    "rank": 8,
    "seed": 0,
}


def draw_rows(settings: dict[str, int]) -> pa.Table:
    """Rows of log-normal lengths, the last third of each trained: a prompt and its answer."""
    generator = np.random.default_rng(settings["seed"])
    drawn = generator.lognormal(math.log(settings["median"]), SIGMA, settings["rows"])
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "loss_weights": []}
    lengths = np.clip(drawn.astype(np.int32), 3, settings["max_length"])
    for length in lengths:
        ids = generator.integers(0, TEXT_TOKENS, length, dtype=np.int32)
        trained = np.arange(length) >= length - length // 3
        columns["input_ids"].append(ids)
        columns["labels"].append(np.where(trained, ids, np.int32(IGNORE)))
        columns["loss_weights"].append(trained.astype(np.float32))
    return pa.table({**columns, "length": lengths})


def packed(rows: pa.Table, max_length: int, file: Path) -> datasets.Dataset:
    """The rows as our data pipeline packs them."""
    pack_rows(rows, best_fit(rows.column("length").to_numpy(), max_length, seed=0), file)
    return datasets.Dataset.from_file(str(file))


class BatchLosses(TrainerCallback):
    """Collects the mean loss of every step."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.means.append(logs["loss"])


def epoch(trainer: SFTTrainer, rows: datasets.Dataset, batch: int) -> dict[str, float]:
    """One epoch in the order of the rows: CPU seconds, loss per trained token, token share."""
    trainer.args.learning_rate = 0.0
    losses = BatchLosses()
    trainer.add_callback(losses)
    trainer.remove_callback(PrinterCallback)  # the result is to be the only line
    seconds = cpu_seconds(trainer.train)
    groups = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    trained = np.array([sum(sum(row) for row in group["loss_weights"]) for group in groups])
    area = sum(max(group["length"]) * len(group["length"]) for group in groups)
    return {
        "cpu_s": seconds,
        "loss": float((trained * losses.means).sum() / trained.sum()),
        "tokens": sum(rows["length"]),
        "area": area,
        "trained": float(trained.sum()),
    }


def main() -> None:
    """Runs the benchmark and prints its result."""
    settings = settings_from(sys.argv[1:], DEFAULTS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (settings["hidden"], settings["layers"], settings["experts"])
        base = write_base(Path(folder) / "base", *sizes)
        table = draw_rows(settings)
        padded_rows = datasets.Dataset(table)
        packed_rows = packed(table, settings["max_length"], Path(folder) / "packed.arrow")
        run = {
            "num_train_epochs": 1,
            "logging_steps": 1,
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
            "lr_scheduler_type": "constant",
        }
        sides = {
            "ours": (our_trainer, packed_rows, 1),
            "trl": (trl_trainer, padded_rows, settings["batch"]),
        }
        found = {}
        for name, (build, rows, batch) in sides.items():
            trainer = build(base, rows, settings["rank"], per_device_train_batch_size=batch, **run)
            found[name] = epoch(trainer, rows, batch)
            say(f"{name}: {found[name]}")
    ours, theirs = found["ours"], found["trl"]
    speedup = (theirs["cpu_s"] / theirs["trained"]) / (ours["cpu_s"] / ours["trained"])
    by_area = (theirs["cpu_s"] / theirs["area"]) / (ours["cpu_s"] / ours["area"])
    result = {
        "benchmark": "epoch",
        "speedup_per_trained_token": round(speedup, 2),
        "loss_abs_diff": abs(ours["loss"] - theirs["loss"]),
        "speedup_per_position": round(by_area, 2),
        "token_share": {
            name: round(side["tokens"] / side["area"], 3) for name, side in found.items()
        },
        "cpu_s": {name: round(side["cpu_s"], 1) for name, side in found.items()},
        "loss": {name: side["loss"] for name, side in found.items()},
        "tokens": ours["tokens"],
        "trained_tokens": ours["trained"],
        **settings,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
