"""One training run, from checked settings to an adapter on disk."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerCallback, set_seed

from gptoss_ft.context import Say
from gptoss_ft.train.manifest import RunResult
from gptoss_ft.train.methods import METHODS, Method
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.prepare import open_run, prepare
from gptoss_ft.train.steps import (
    build_model,
    build_trainer,
    run_trainer,
    say_parameters,
    write_result,
)


def train(
    options: TrainOptions,
    config_yaml: str,
    say: Say = print,
    methods: Sequence[Method] = METHODS,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunResult:
    """Trains an adapter, or goes on training it, and writes it to the run's folder.

    Everything that can be refused is refused before weights are loaded.

    Args:
        options: without problems (`options.problems()` is empty).
        config_yaml: the composed configuration, kept beside the results.
        say: prints a line for people.
        methods: the table that the method is looked up in.
        callbacks: to run after our own.

    Raises:
        GptOssFtError: a run folder, checkpoint, adapter or data file that cannot be used.
    """
    prepared = prepare(options, say, methods)
    run, manifest = open_run(prepared, config_yaml)
    set_seed(options.seed)
    model = build_model(run.options, run.base, run.start)
    say_parameters(model, say)
    trainer = build_trainer(run, model, say, callbacks)
    seconds = run_trainer(trainer, run, say)
    return write_result(trainer, run.folder, manifest, seconds, say)
