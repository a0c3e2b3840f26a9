"""The command `train`: names the run, refuses what contradicts itself, and trains."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.train.methods import METHODS, Method
from gptoss_ft.train.options import TrainOptions


def run(options: TrainOptions, context: Context, methods: Sequence[Method] = METHODS) -> Outcome:
    """Trains by the method that the options name; the objective is the best validation loss, or
    the last loss.

    Args:
        options: as they were composed.
        context: where the name comes from when there is none, and where lines go.
        methods: the table that the method is looked up in.

    Raises:
        GptOssFtError: settings, a run folder, checkpoint, adapter or data that cannot be used.
    """
    options = replace(options, name=run_name(options.name, context))
    if problems := [*adapter_problems(context.given), *options.problems(methods)]:
        raise ConfigError(problems)
    from gptoss_ft.train.run import train

    config_yaml = named(context.config_yaml, options.name)
    result = train(options, config_yaml, context.say, methods)
    return Outcome(objective=result.objective)


def run_name(name: str, context: Context) -> str:
    """Returns the name asked for, else the recipe's, with the job's number in a sweep."""
    name = name or context.recipe or "sft"
    return name if context.job is None else f"{name}-{context.job}"


def named(config_yaml: str, name: str) -> str:
    """Returns the composed configuration with the run's name in it."""
    line = f"name: {json.dumps(name, ensure_ascii=False)}\n"
    # A name of several lines goes on in lines that are indented or empty.
    return re.sub(r"(?m)^name:.*\n(?: .*\n|\n)*", lambda _: line, config_yaml, count=1)


def adapter_problems(given: Iterable[str]) -> list[Problem]:
    """Finds settings of a fresh adapter that were typed beside the trained one to go on from."""
    given = frozenset(given)
    if "adapter.init" not in given:
        return []
    what = "this is about a fresh adapter"
    mend = "leave it out: kinds, ranks and scaling are those of the adapter in adapter.init"
    own = [key for key in sorted(given) if key == "adapter" or key.startswith("adapter.")]
    return [Problem(what, key, mend=mend) for key in own if key != "adapter.init"]
