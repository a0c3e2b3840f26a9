"""Runs exports of the demo's tuned models in their runtimes and compares with transformers.

    python -m runtimes.table [onnx=false] [vllm=true] [demo=DIR] [work=DIR]

The target `runtimes` of the Makefile says what must be on the path.

Every export is made by the command that a user would give. Each runtime answers the same prompts,
in a process and an environment of its own; the reference is stock transformers in float32. Prints
a table; the exit code is 1 when a runtime does not load its files, or does not agree and must.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports import DRIVERS, TOKENS, Answers, ask_stock, linked_copy, run_driver
from peft import PeftModel
from runtimes.cases import Case, all_cases
from runtimes.environments import python_of
from stock import load_stock

from gptoss_ft.inference.token_rows import read_rows

DEFAULTS = {"demo": "outputs/demo", "work": "outputs/runtimes", "onnx": "true", "vllm": "false"}
DATA = DRIVERS.parents[1] / "data" / "lighthouse.jsonl"
EVERY = 5  # short questions come first in it, conversations longer than the sliding window last
MIN_PROMPTS = 8
EXPORT = "from gptoss_ft.cli import main; main()"
COLUMNS = ("runtime", "format", "loads", "max |Δ|", "limit", "greedy", "seconds")
UNITS = {"logits": "logits", "log_probs": "logprob", "top": "top-20 logprob", "": ""}
GPU_OR_DESKTOP = """\
Not run here, checked against the runtime's published loader rules: vLLM with MXFP4 and with LoRA \
(GPU), Ollama and LM Studio (desktop; both run llama.cpp, which is above)."""


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        case: the case.
        failure: the last words of the export or of the runtime; empty when the files were loaded.
        difference: the largest one; None where nothing is compared.
        agreement: by prompt, how many greedy tokens are the reference's until the first that is
            not; empty where nothing is compared.
        seconds: wall time of loading and answering.
    """

    case: Case
    failure: str = ""
    difference: float | None = None
    agreement: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether all that is required of the case holds."""
        if self.failure or self.case.limit is None:
            return not self.failure
        close = self.difference is not None and self.difference <= self.case.limit
        return close and set(self.agreement) == {TOKENS}

    @property
    def cells(self) -> tuple[str, ...]:
        """The line of the table."""
        case, compared = self.case, self.difference is not None
        return (
            case.runtime,
            case.form,
            "no" if self.failure else "yes",
            f"{self.difference:.1e} {UNITS[case.measure]}" if compared else "",
            f"{case.limit:.0e}" if case.limit else "",
            f"{min(self.agreement)}/{TOKENS}" if compared else "",
            "" if self.failure else f"{self.seconds:.1f}",
        )


def main(arguments: list[str]) -> int:
    """Runs all cases and prints the table; returns the exit code."""
    settings = DEFAULTS | dict(argument.split("=", 1) for argument in arguments)
    demo, work = Path(settings["demo"]), Path(settings["work"])
    prompts = [list(row.prompt) for row in read_rows(demo / "base", DATA, sys.maxsize)[::EVERY]]
    assert len(prompts) >= MIN_PROMPTS
    wanted = {name: settings[name] == "true" for name in ("onnx", "vllm")}
    references: dict[tuple[str, bool], Answers] = {}
    results = []
    for case in all_cases(settings["demo"], **wanted):
        print(f"{case.runtime}, {case.form} …", file=sys.stderr)
        key = (case.reference, case.truncated)
        if case.reference and key not in references:
            references[key] = reference(demo, work, prompts, *key)
        results.append(run(case, work, prompts, references.get(key)))
    print(as_table(results))
    print(f"\n{len(prompts)} prompts, {TOKENS} greedy tokens each. {GPU_OR_DESKTOP}")
    return 0 if all(result.passes for result in results) else 1


def reference(
    demo: Path, work: Path, prompts: list[list[int]], names: str, truncated: bool
) -> Answers:
    """What stock transformers, with stock PEFT where there is an adapter, says in float32."""
    name, _, adapter = names.partition("+")
    folder = demo / name
    if truncated:
        folder = work / "truncated" / name
        shutil.rmtree(folder, ignore_errors=True)
        linked_copy(demo / name, folder, truncate=True)
    model: torch.nn.Module = load_stock(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, demo / adapter).eval()
    answers = ask_stock(model, prompts)
    assert answers.are_varied, f"{names}: an answer that says one thing over and over proves little"
    return answers


def run(case: Case, work: Path, prompts: list[list[int]], expected: Answers | None) -> Result:
    """Exports, asks the runtime and compares."""
    folder = work / "exports" / f"{case.runtime} {case.form}".replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = python_of(case.environment, work / "environments")
    try:
        model = export(case, case.model, folder / "model", python)
        adapter = export(case, case.adapter, folder / "adapter", python) if case.adapter else None
        drafts = expected.greedy if expected else []
        asked: dict[str, Any] = {"prompts": prompts, "tokens": TOKENS, "drafts": drafts}
        found = run_driver(case.driver, model, folder, adapter, python=python, **asked)
    except (subprocess.CalledProcessError, AssertionError) as error:
        failure = getattr(error, "stderr", None) or str(error)
        print(failure[-2000:], file=sys.stderr)
        return Result(case, failure.strip())
    if expected is None:
        loaded = found["adapter_loads"]
        return Result(case, "" if loaded else "the adapter was refused", seconds=found["seconds"])
    agreement = tuple(map(matching, expected.greedy, found["greedy"]))
    return Result(case, "", difference(case, expected, found, folder), agreement, found["seconds"])


def export(case: Case, arguments: tuple[str, ...], out: Path, python: Path) -> Path:
    """Exports to `out` and returns what to load. vLLM's runtime is not needed to write for it."""
    out = out.with_suffix(".gguf") if arguments[0].startswith("to=gguf") else out
    python = Path(sys.executable) if case.environment == "vllm" else python
    command = [str(python), "-c", EXPORT, "export", *arguments, f"out={out}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


def difference(case: Case, expected: Answers, found: dict[str, Any], folder: Path) -> float:
    """The largest difference in what the case measures."""
    if case.measure == "top":
        rows = zip(expected.log_probs, found["top"], strict=True)
        return max(abs(row[int(i)].item() - value) for row, top in rows for i, value in top.items())
    answers = Answers(torch.from_numpy(np.load(folder / "out.logits.npy")), found["greedy"])
    ours, theirs = (getattr(side, case.measure) for side in (expected, answers))
    return (ours - theirs).abs().max().item()


def matching(expected: list[int], found: list[int]) -> int:
    """How many tokens agree before the first that does not."""
    pairs = zip(expected, found, strict=True)
    return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), len(expected))


def as_table(results: list[Result]) -> str:
    """The table as Markdown, aligned."""
    rows = [COLUMNS, *(result.cells for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    marks = ["", *("" if result.passes else "  ← falls short" for result in results)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [line + mark for line, mark in zip(lines, marks, strict=True)]
    return "\n".join([lines[0], rule, *lines[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
