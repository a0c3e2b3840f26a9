"""Checks the settings that go to TRL, and makes TRL's configuration of a run from them.

What is said of each setting stands in `settings_table.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.train.methods import Method, imported
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.settings_table import DECIDED, DEFAULT, REFUSED, SETTINGS, TrainerSetting
from gptoss_ft.validation import did_you_mean, number_problem

if TYPE_CHECKING:
    from transformers import TrainingArguments


def trainer_problems(
    options: TrainOptions,
    method: Method,
    key: str = "trainer.",
    table: Sequence[TrainerSetting] = SETTINGS,
) -> list[Problem]:
    """Lists the trainer settings that are unknown, decided by the run, ignored or out of range.

    Args:
        options: of the run; its `trainer` is checked.
        method: names TRL's dataclass that takes the settings.
        key: the prefix of the settings.
        table: what is said of them.
    """
    config = imported(method.trl_config)
    rows = {row.name: row for row in rows_of(method, options, table)}
    found = (
        _problem(key, name, value, rows.get(name), config)
        for name, value in options.trainer.items()
    )
    return [problem for problem in found if problem]


def configure(
    options: TrainOptions,
    method: Method,
    checkpoints: Path,
    table: Sequence[TrainerSetting] = SETTINGS,
) -> TrainingArguments:
    """Makes TRL's configuration: our defaults, the user's settings over them, the run's over both.

    To be made before anything expensive, as TRL and transformers check values themselves.

    Args:
        options: of the run.
        method: names TRL's dataclass.
        checkpoints: the folder that checkpoints are written to.
        table: defaults and what a run decides.

    Raises:
        ConfigError: a value that TRL or transformers refuses, in their words; several GPUs.
    """
    config = imported(method.trl_config)
    known = field_names(config)
    rows = [row for row in rows_of(method, options, table) if row.name in known]
    defaults, decided = (
        {row.name: row.value_in(options) for row in rows if row.kind == kind}
        for kind in (DEFAULT, DECIDED)
    )
    settings = {**defaults, **options.trainer, **decided, "output_dir": str(checkpoints)}
    try:
        made: TrainingArguments = config(**settings)
    except (TypeError, ValueError) as error:
        what = "a setting of the trainer is refused"
        mend = f"see the documentation of {config.__name__} for the values that it takes"
        raise ConfigError(Problem(what, "trainer", str(error), mend)) from error
    if made.n_gpu > 1:  # transformers would split batches by DataParallel, and documents with them
        what = "one process trains on one device"
        mend = "set the environment variable CUDA_VISIBLE_DEVICES to one of them, such as 0"
        found = f"{made.n_gpu} GPUs are visible"
        raise ConfigError(Problem(what, "CUDA_VISIBLE_DEVICES", found, mend))
    return made


def rows_of(
    method: Method, options: TrainOptions, table: Sequence[TrainerSetting] = SETTINGS
) -> Iterator[TrainerSetting]:
    """Yields the rows that count for a method in a run with these options."""
    for row in table:
        if (not row.methods or method.name in row.methods) and row.when(options):
            yield row


def field_names(config: type) -> set[str]:
    """Returns the settings that a dataclass of TRL takes."""
    return {item.name for item in fields(config) if item.init}


def _problem(
    key: str, name: str, value: Any, row: TrainerSetting | None, config: type
) -> Problem | None:
    """Returns what is wrong with one setting, or None."""
    if row and row.kind == DECIDED:
        return Problem("this is not a setting here", key + name, repr(value), row.hint)
    if row and row.kind == REFUSED:
        return Problem("this would have no effect here", key + name, repr(value), row.hint)
    known = field_names(config)
    if name not in known:
        near = did_you_mean(name, sorted(known), lambda nearest: key + nearest)
        mend = near.strip() or f"see the documentation of TRL's {config.__name__}"
        return Problem("unknown setting", key + name, mend=mend)
    return number_problem(key + name, value, row.range) if row and row.range else None
