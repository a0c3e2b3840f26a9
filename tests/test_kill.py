"""Runs that are killed with signal 9 end, resumed, with the bits of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_run import Kill, Run, run_server
from safetensors.torch import load_file

from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.data.options import DataOptions
from gptoss_ft.files import leftovers
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.checkpoints import STAGING, checkpoints, is_whole
from gptoss_ft.train.options import ModelOptions, TrainOptions

SEED = 7
STEPS = 15


def _options(home: Path) -> TrainOptions:
    """15 steps in 5 epochs, a checkpoint after every second one, of which the newest is kept."""
    sizes = TinyOptions(layers=2, hidden_size=32, intermediate_size=32, heads=1, kv_heads=1)
    write_tiny(home / "base", sizes)
    question = {"role": "user", "content": "Question?"}
    answers = [{"role": "assistant", "content": "Answer. " * n} for n in range(1, 7)]
    rows = [{"messages": [question, answer]} for answer in answers]
    (home / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainOptions(
        output=str(home),
        model=ModelOptions(path=str(home / "base")),
        adapter=AdapterOptions(["experts", "lossless"], r=4),
        data=DataOptions(path=str(home / "chats.jsonl"), packing=False),
        trainer={
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "lr_scheduler_type": "linear",
            "num_train_epochs": 5,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 1,
        },
    )


@dataclass(frozen=True)
class Runs:
    """What the tests share.

    Attributes:
        options: of a run without a name.
        run: runs or resumes one in a process.
        whole: the folder of a run that nobody killed.
        events: what it did to its files.
    """

    options: TrainOptions
    run: Run
    whole: Path
    events: list[str]

    def folder(self, name: str) -> Path:
        return Path(self.options.output) / name

    def kill(self, name: str, kill: Kill) -> None:
        """Runs or resumes until the kill; what is called a checkpoint afterwards is whole."""
        code, events = self.run(replace(self.options, name=name, resume=True), kill)
        assert code == -signal.SIGKILL, (kill, self.folder(f"{name}.txt").read_text())
        found = checkpoints(self.folder(name) / "checkpoints")
        assert all(map(is_whole, found))
        at = f"after `{events[-1]}`" if kill.event is not None and events else ""
        print(f"{kill} {at}: left {[path.name for path in found]}")

    def finish(self, name: str) -> None:
        """Resumes to the end and compares with the undisturbed run, bit by bit."""
        code, _ = self.run(replace(self.options, name=name, resume=True), None)
        assert code == 0, self.folder(f"{name}.txt").read_text()
        run = self.folder(name)
        ours, theirs = _tensors(run), _tensors(self.whole)
        assert ours.keys() == theirs.keys()
        for tensor in theirs:
            assert torch.equal(ours[tensor], theirs[tensor]), tensor
        assert _losses(run) == _losses(self.whole)
        assert [step for step, *_ in _losses(run)] == list(range(1, STEPS + 1))
        assert _outcome(run) == _outcome(self.whole)
        assert _names(run) == _names(self.whole)
        assert not leftovers(run) and not leftovers(run / "checkpoints")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    home = tmp_path_factory.mktemp("kill")
    options = _options(home)
    with run_server(home / "base") as run:
        code, events = run(replace(options, name="whole"), None)
        assert code == 0, (home / "whole.txt").read_text()
        yield Runs(options, run, home / "whole", events)


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    files = (run / "adapter").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _losses(run: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def _outcome(run: Path) -> dict[str, Any]:
    manifest = json.loads((run / "manifest.json").read_text())
    names = ("status", "steps", "tokens_seen", "first_loss", "last_loss")
    return {name: manifest[name] for name in names}


def _names(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*")}


def _write(events: list[str], number: int) -> range:
    """The events of writing a checkpoint, the renaming among them."""
    starts = [at for at, event in enumerate(events) if event == f"os.mkdir checkpoints/{STAGING}"]
    ends = [at for at, event in enumerate(events) if event.startswith("shutil.rmtree")]
    first = starts[number]
    return range(first + 1, min(end for end in ends if end > first))


def test_a_run_killed_at_five_random_moments_ends_with_the_same_bits(runs: Runs) -> None:
    """One run, killed five times: while it loads, in a checkpoint's write, and between steps."""
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    runs.kill("broken", Kill(seconds=chance.uniform(0.0, 0.5)))
    runs.kill("broken", Kill(event=chance.choice(_write(runs.events, 1))))
    for step in (5, 7, 10):
        later = chance.uniform(0.0, 0.1)
        runs.kill("broken", Kill(step=step + chance.randint(0, 1), seconds=later))
    runs.finish("broken")


@pytest.mark.slow
def test_a_run_killed_at_any_event_among_its_files_ends_with_the_same_bits(runs: Runs) -> None:
    """Twelve events of the whole run by chance, and every third one after its last checkpoint."""
    last = _write(runs.events, -1).stop
    by_chance = random.Random(SEED).sample(range(last), 12)
    for event in [*by_chance, *range(last, len(runs.events), 3)]:
        runs.kill(f"event{event}", Kill(event=event))
        runs.finish(f"event{event}")
