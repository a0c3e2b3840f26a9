"""The command `export`: plan and check, show, write, say how to serve it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from gptoss_ft.checkpoint.destination import free_bytes, place_problems, space_problems
from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import ExportError, Problem
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import Source, open_source
from gptoss_ft.files import atomic_file, atomic_folder

SERVE_NAME = "serve.md"


class Target(Protocol):
    """A module of this room that knows one runtime's files."""

    def problems(self, source: Source, options: ExportOptions) -> list[Problem]:
        """Returns everything about this source and these options that the target cannot carry."""

    def size(self, source: Source, options: ExportOptions) -> int:
        """Returns the bytes that `write` will write, for the disk check and the progress bar."""

    def write(self, source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
        """Writes into the temporary folder `out`, or the temporary file; may not look at its name.

        `progress.update(bytes)` is called along the way.
        """

    def serve(self, source: Source, options: ExportOptions) -> str:
        """Returns Markdown: the exact commands that serve `options.place`, and what was proven."""


@dataclass(frozen=True)
class ExportPlan:
    """An export that has been checked and can be written.

    Attributes:
        options: what was asked for.
        source: what is exported.
        target: the module that writes it.
        nbytes: bytes that will be written.
    """

    options: ExportOptions
    source: Source = field(repr=False)
    target: Target = field(repr=False)
    nbytes: int


def run(options: ExportOptions, context: Context) -> Outcome:
    """Exports, or with `dry_run` shows what would be done.

    Raises:
        ExportError: refused, or stopped by the disk; nothing is under the output's name.
    """
    plan = plan_export(options)
    context.say("\n".join(plan_lines(plan)))
    if options.dry_run:
        context.say(f"\n{plan.target.serve(plan.source, options)}")
        return Outcome()
    serve_file = write_export(plan)
    context.say(f"written to {options.place}; how to serve it: {serve_file}")
    return Outcome()


def plan_export(options: ExportOptions) -> ExportPlan:
    """Plans an export and checks everything that can be checked before writing.

    Raises:
        ExportError: with every problem of the options, the checkpoint, the adapter, what the target
            can carry, and the disk.
    """
    problems = options.problems()
    bad_options = bool(problems)
    source, found = open_source(options)
    problems += found
    if options.out and not bad_options:
        problems += _place_problems(options)
    if source is None or bad_options:
        raise ExportError(problems)
    target = target_module(options.to)
    problems += target.problems(source, options)
    if problems:
        raise ExportError(problems)
    nbytes = target.size(source, options)
    problems += space_problems(options.place, nbytes, free_bytes(options.place))
    if problems:
        raise ExportError(problems)
    return ExportPlan(options, source, target, nbytes)


def target_module(to: str) -> Target:
    """Imports the module of a target."""
    match to:
        case "openai":
            from gptoss_ft.export import openai

            return openai
        case "gguf":
            from gptoss_ft.export import gguf

            return gguf
        case "gguf-lora":
            from gptoss_ft.export import gguf_lora

            return gguf_lora
        case "ollama":
            from gptoss_ft.export import ollama

            return ollama
        case "lmstudio":
            from gptoss_ft.export import lmstudio

            return lmstudio
        case "vllm":
            from gptoss_ft.export import vllm

            return vllm
        case "onnx":
            from gptoss_ft.export import onnx

            return onnx
    raise ValueError(to)


def _place_problems(options: ExportOptions) -> list[Problem]:
    inputs = {"model": [Path(options.model)]}
    inputs |= {"adapter": [Path(options.adapter)]} if options.adapter else {}
    problems = [*place_problems(options.place, inputs, is_file=options.is_file)]
    if options.is_file and options.serve_file.exists():
        mend = "choose another place or remove it"
        problems.append(Problem("a file is in the way", str(options.serve_file), mend=mend))
    return problems


def plan_lines(plan: ExportPlan) -> list[str]:
    """Describes what will be done, in a few lines."""
    options, source = plan.options, plan.source
    experts = "MXFP4" if source.checkpoint.is_packed else "dense"
    adapter = f" + {options.adapter}" if source.adapter else ""
    return [
        f"from:  {options.model}{adapter}, {source.config['num_hidden_layers']} layers, "
        f"{source.config['num_local_experts']} experts each, {experts}",
        f"to:    {options.to}, {options.written_dtype}, {plan.nbytes / 1e9:.3f} GB",
        f"out:   {options.place}",
    ]


def write_export(plan: ExportPlan) -> Path:
    """Writes a planned export; it is under its name when it is whole and on the disk.

    Returns:
        the file with the serving instructions.

    Raises:
        ExportError: the disk is full or fails; nothing is left behind.
    """
    options = plan.options
    try:
        with _progress(plan.nbytes) as progress:
            return _write(plan, progress)
    except OSError as error:
        mend = "free some space on the disk, or fix what else the system says, and run it again"
        problem = Problem("the export could not go on", f"out={options.out}", str(error), mend)
        raise ExportError(problem) from error


def _write(plan: ExportPlan, progress: tqdm) -> Path:
    options, source = plan.options, plan.source
    text = plan.target.serve(source, options)
    if not options.is_file:
        with atomic_folder(options.place) as folder:
            plan.target.write(source, options, folder, progress)
            (folder / SERVE_NAME).write_text(text, encoding="utf-8")
        return options.place / SERVE_NAME
    options.place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(options.place) as file:
        plan.target.write(source, options, file, progress)
    with atomic_file(options.serve_file) as file:
        file.write_text(text, encoding="utf-8")
    return options.serve_file


def _progress(total: int) -> tqdm:
    """Shows bytes written, rate and remaining time on stderr if that is a terminal."""
    return tqdm(total=total, desc="export", unit="B", unit_scale=True, disable=None)
