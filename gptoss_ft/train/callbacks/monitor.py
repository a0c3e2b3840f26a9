"""Monitoring of a run: a progress line, and every log as a line of metrics.jsonl."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Shown of an evaluation, where it is there.
ACCURACIES = {
    "eval_token_accuracy": "token accuracy",
    "eval_rewards/accuracies": "reward accuracy",
}


def memory_gib() -> dict[str, float]:
    """Measures memory in use, GiB: anonymous and file-backed pages, and the peak of the GPU."""
    resident = psutil.Process().memory_info()
    shared = getattr(resident, "shared", 0)
    memory = {"memory_gib": (resident.rss - shared) / 2**30, "file_pages_gib": shared / 2**30}
    if torch.cuda.is_available():
        memory["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return memory


class Monitor(TrainerCallback):
    """Progress bar with loss, rate, tokens/s, memory and ETA; the same in metrics.jsonl."""

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.bar: tqdm | None = None
        self.since = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.since = time.monotonic()
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                mininterval=1.0 if sys.stderr.isatty() else 30.0,  # logs are read later
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        now = time.monotonic()
        line: dict[str, Any] = {"step": state.global_step, **logs, **memory_gib()}
        if "tokens" in logs:
            line["tokens_per_second"] = logs["tokens"] / max(now - self.since, 1e-9)
            self.since = now
        line.pop("total_flos", None)
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._show(line)

    def _show(self, line: dict[str, Any]) -> None:
        if self.bar is None:
            return
        if "loss" in line:
            self.bar.set_postfix_str(
                f"loss {line['loss']:.4f}, lr {line['learning_rate']:.2e}, "
                f"{line.get('tokens_per_second', 0):,.0f} tok/s, {line['memory_gib']:.2f} GiB"
            )
        if "eval_loss" in line:
            accuracies = {
                name: line[key] for key, name in ACCURACIES.items() if line.get(key) is not None
            }
            self.bar.write(
                f"step {line['step']}: eval loss {line['eval_loss']:.4f}"
                + "".join(f", {name} {share:.1%}" for name, share in accuracies.items()),
                file=sys.stderr,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
