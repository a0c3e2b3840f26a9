"""Exports for tests, the drivers that run them in their runtimes, and the reference's answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stock import load_stock

from gptoss_ft.errors import ExportError
from gptoss_ft.export.command import plan_export, write_export
from gptoss_ft.export.options import ExportOptions

DRIVERS = Path(__file__).parents[1] / "runtimes"
LENGTHS = (1, 3, 9, 20, 40, 70, 150, 300)  # the last ones are longer than the sliding window
TOKENS = 24
MIN_DISTINCT = 10


def export(model: Path, out: Path, to: str, **settings: Any) -> Path:
    """Exports and returns the file or folder."""
    options = ExportOptions(model=str(model), out=str(out), to=to, **settings)
    write_export(plan_export(options))
    return options.place


def refusal(model: Path, out: Path, to: str, **settings: Any) -> str:
    """The message of an export that is refused and leaves nothing behind."""
    there = sorted(out.parent.rglob("*"))
    try:
        export(model, out, to, **settings)
    except ExportError as error:
        assert sorted(out.parent.rglob("*")) == there, "something was left behind"
        return str(error)
    raise AssertionError("it was not refused")


def linked_copy(model: Path, out: Path, **changes: Any) -> Path:
    """The same checkpoint with changes in its config.json; those of rotary settings go there."""
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "config.json":
            (out / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    rotary = {name: changes.pop(name) for name in ("truncate",) if name in changes}
    for name in ("rope_scaling", "rope_parameters"):
        if name in config:
            config[name] |= rotary
    (out / "config.json").write_text(json.dumps(config | changes))
    return out


def prompts() -> list[list[int]]:
    """Random ordinary tokens, one prompt of each of `LENGTHS`."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 199_000, (length,), generator=generator).tolist() for length in LENGTHS
    ]


@dataclass(frozen=True)
class Answers:
    """What a runtime says to some prompts.

    Attributes:
        logits: of the next token, float32 `[prompts, vocabulary]`.
        greedy: the next `TOKENS` tokens.
    """

    logits: torch.Tensor
    greedy: list[list[int]]

    @property
    def log_probs(self) -> torch.Tensor:
        return self.logits.double().log_softmax(-1)

    @property
    def are_varied(self) -> bool:
        """Whether agreement means something: no answer is one token over and over."""
        return all(len(set(ids)) >= MIN_DISTINCT for ids in self.greedy)

    def assert_agree(self, other: Answers, *, logits: float = np.inf, log_probs: float) -> None:
        """Both runtimes compute the same, and the answers are not all alike."""
        assert (self.logits - other.logits).abs().max() <= logits
        assert (self.log_probs - other.log_probs).abs().max() <= log_probs
        assert self.greedy == other.greedy
        assert self.are_varied


def run_driver(
    driver: str,
    model: Path,
    folder: Path,
    adapter: Path | None = None,
    *,
    python: Path | str = sys.executable,
    **asked: Any,
) -> dict[str, Any]:
    """Runs a script of `runtimes` in a process of its own; its arrays stay in `folder`.

    Args:
        driver: name of the script.
        model, adapter: what it loads.
        folder: for its input and output files, `out.json` and arrays beside it.
        python: of the environment that has the runtime.
        asked: the rest of its input.
    """
    given, found = folder / "in.json", folder / "out.json"
    given.write_text(json.dumps({"model": str(model), "adapter": str(adapter or ""), **asked}))
    command = [str(python), str(DRIVERS / driver), str(given), str(found)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found.read_text())


def ask_stock(
    model: Path | torch.nn.Module, asked: Sequence[Sequence[int]] | None = None
) -> Answers:
    """Stock transformers in float32, of a folder or of a model loaded from one.

    Args:
        model: the folder or model.
        asked: the prompts; None for `prompts()`.
    """
    model = load_stock(model) if isinstance(model, Path) else model
    logits, greedy = [], []
    for ids in prompts() if asked is None else asked:
        output = model.generate(
            input_ids=torch.tensor([ids]),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=199999,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits.append(output.logits[0][0].float())
        greedy.append(output.sequences[0, len(ids) :].tolist())
    return Answers(torch.stack(logits), greedy)
