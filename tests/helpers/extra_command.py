"""A command that the package does not have, for tests that pass a table of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hydra.experimental.callback import Callback

from gptoss_ft.commands import Command
from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.validation import number_field, path_field, text_field


@dataclass
class Part:
    """A part.

    Attributes:
        path: where it
            is.
    """

    path: str = path_field()


@dataclass
class EchoOptions:
    """The text to say.

    Attributes:
        prompt: taken as it is typed.
        model, out: taken as they are typed, too.
        times: how often.
        end: `interrupt`, `bug` or `error`, or empty.
        hub: whether the network may be used.
        part: one.
    """

    prompt: str = text_field()
    model: str = path_field()
    out: str = path_field()
    times: int = number_field(1, least=1)
    end: str = ""
    hub: bool = False
    part: Part = field(default_factory=Part)


def run(options: EchoOptions, context: Context) -> Outcome:
    """Says what it was told; the objective is how often, the exit code one less."""
    import huggingface_hub.constants

    if options.end == "interrupt":
        raise KeyboardInterrupt
    if options.end == "bug":
        raise ZeroDivisionError
    if options.end == "error":
        raise ConfigError(Problem("asked for an error", "end"))
    context.say(f"prompt {options.prompt}")
    context.say(f"recipe {context.recipe!r}, job {context.job}, given {sorted(context.given)}")
    context.say(f"HF_HUB_DISABLE_TELEMETRY={os.environ['HF_HUB_DISABLE_TELEMETRY']}")
    context.say(f"HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']}")
    context.say(f"constant {huggingface_hub.constants.HF_HUB_OFFLINE}")
    return Outcome(options.times - 1, float(options.times))


class Objectives(Callback):
    """Hydra's callback that prints what a sweeper is given."""

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        print(f"objective {job_return.return_value}")


ECHO = Command(
    "echo",
    "say it again",
    options="extra_command:EchoOptions",
    run="extra_command:run",
    interrupted="; nothing was lost",
)
RECIPE_ECHO = Command(
    "echo",
    "say it by recipe",
    options="extra_command:EchoOptions",
    run="extra_command:run",
    groups=("part",),
    recipes=("sft",),
)
