"""Training runs in processes of their own, which kill themselves at a given moment.

They are forked from a server that has imported everything and read vocabulary and tokenizer, but
computed nothing: a run costs a model and some steps.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoTokenizer

from gptoss_ft.harmony.vocabulary import load_vocabulary
from gptoss_ft.train import steps
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.run import train

# What Python reports of the file system; torch.save and safetensors write between these.
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
LONGEST = 300.0


@dataclass(frozen=True)
class Kill:
    """A moment to die at: an event among the run's files, or a time after a step.

    Attributes:
        event: number of the event, counted from the start of the process.
        step: the step that must be in metrics.jsonl before the clock runs; 0 for the start.
        seconds: how long it runs then.
    """

    event: int | None = None
    step: int = 0
    seconds: float = 0.0


Run = Callable[[TrainOptions, Kill | None], tuple[int, list[str]]]


@contextmanager
def run_server(base: Path) -> Iterator[Run]:
    """Yields a function that runs or resumes a training run, killed at some moment or not.

    It returns the exit code, negative for a signal, and the events among the run's files as far as
    it got. What the run prints is in `output/name.txt`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, base))
    process.start()

    def run(options: TrainOptions, kill: Kill | None) -> tuple[int, list[str]]:
        ours.send((options, kill))
        assert ours.poll(LONGEST), f"the run hangs: {_log(options, '.txt').read_text()}"
        code: int = ours.recv()
        events = _log(options, ".events")
        return code, events.read_text().splitlines() if events.is_file() else []

    try:
        yield run
    finally:
        ours.send(None)
        process.join()


def _serve(requests: Any, base: Path) -> None:
    load_vocabulary(base)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    steps.AutoTokenizer = SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    while (request := requests.recv()) is not None:
        child = multiprocessing.get_context("fork").Process(target=_train, args=request)
        child.start()
        child.join()
        requests.send(child.exitcode)


def _log(options: TrainOptions, suffix: str) -> Path:
    return Path(options.output) / f"{options.name}{suffix}"


def _train(options: TrainOptions, kill: Kill | None) -> None:
    torch.set_num_threads(1)
    with _log(options, ".txt").open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    folder = Path(options.output) / options.name
    watch_files(folder, _log(options, ".events"), kill.event if kill else None)
    if kill and kill.event is None:
        arguments = (folder / "metrics.jsonl", kill)
        threading.Thread(target=_die_after, args=arguments, daemon=True).start()
    train(options, "name: run\n")


def watch_files(folder: Path, log: Path, kill_at: int | None) -> None:
    """Writes down events on files below `folder` from now on; dies before one of them."""
    seen = 0
    stream = log.open("w")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in FILE_EVENTS:
            return
        paths = [str(a) for a in arguments[:2] if isinstance(a, str | os.PathLike)]
        if any(path.startswith(f"{folder}/") for path in paths):
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            print(event, *(path.removeprefix(f"{folder}/") for path in paths), file=stream)
            stream.flush()

    sys.addaudithook(hook)


def _die_after(metrics: Path, kill: Kill) -> None:
    while kill.step and not _has_step(metrics, kill.step):
        time.sleep(0.001)
    time.sleep(kill.seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _has_step(metrics: Path, step: int) -> bool:
    return metrics.is_file() and json.dumps({"step": step})[1:-1] + "," in metrics.read_text()
