"""The table of commands: what each is called, what it takes, and what runs it.

What a line names is imported only when its command is chosen, so that the table costs nothing to
read. A module of settings must be light: it is imported before it is decided whether the network
may be used, which the Hub's library reads when it is imported itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gptoss_ft.context import Context, Outcome
from gptoss_ft.train.methods import recipe_groups


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as it is typed.
        help: one line about it.
        options: the dataclass of its settings, as `module:attribute`.
        run: what runs it, `run(options, context) -> Outcome`, as `module:attribute`.
        groups: config groups that its settings are composed of; `configs/NAME.yaml` lists them.
        recipes: folders of recipes, of which a run takes one file.
        interrupted: said after "interrupted".
    """

    name: str
    help: str
    options: str
    run: str
    groups: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    interrupted: str = ""

    def load_options(self) -> type:
        """Imports the dataclass of the settings."""
        return _attribute(self.options)

    def load_run(self) -> Callable[[Any, Context], Outcome]:
        """Imports what runs the command."""
        return _attribute(self.run)


COMMANDS = (
    Command(
        "train",
        "tune a base on conversations, pairs or ratings; writes outputs/NAME/",
        options="gptoss_ft.train.options:TrainOptions",
        run="gptoss_ft.train.command:run",
        groups=("model", "adapter", "data", "trainer", "tracker"),
        recipes=recipe_groups(),
        interrupted="; say resume=true to go on from the newest checkpoint",
    ),
    Command(
        "preview",
        "show data as it will be trained, in the terminal and as a page",
        options="gptoss_ft.preview.options:PreviewCommand",
        run="gptoss_ft.preview.command:run",
        groups=("data",),
    ),
    Command(
        "merge",
        "base + adapter = a checkpoint of its own",
        options="gptoss_ft.merge.options:MergeOptions",
        run="gptoss_ft.merge.command:run",
        interrupted="; the same command goes on from the files that are finished",
    ),
    Command(
        "verify",
        "how much of the fine-tune a merged checkpoint keeps",
        options="gptoss_ft.verify.options:VerifyOptions",
        run="gptoss_ft.verify.command:run",
    ),
    Command(
        "export",
        "a checkpoint in the files of another runtime, with the commands to serve it",
        options="gptoss_ft.export.options:ExportOptions",
        run="gptoss_ft.export.command:run",
    ),
    Command(
        "generate",
        "ask a model, with or without an adapter",
        options="gptoss_ft.generate.options:GenerateOptions",
        run="gptoss_ft.generate.command:run",
    ),
    Command(
        "tiny",
        "write a tiny random gpt-oss in the released file layout",
        options="gptoss_ft.model.tiny_options:TinyCommand",
        run="gptoss_ft.model.tiny:run",
    ),
    Command(
        "gpu-check",
        "whether your GPU computes what the CPU does",
        options="gptoss_ft.gpu_check.options:GpuCheckOptions",
        run="gptoss_ft.gpu_check.command:run",
    ),
)


def _attribute(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
