"""Hydra's side of the configuration: schemas, composed configs as dataclasses, and errors.

This module, cli.py and arguments.py are the only ones that know Hydra and OmegaConf; everything
else gets dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptoss_ft.arguments import check_arguments
from gptoss_ft.commands import Command
from gptoss_ft.context import Context
from gptoss_ft.errors import ConfigError, Problem
from gptoss_ft.resources import asset
from gptoss_ft.schema import key_problem

Options = TypeVar("Options")


def config_folder(command: Command) -> str:
    """Returns the folder of a command's primary configuration.

    Only commands with groups see the folders of groups: a key named like a folder on the search
    path is read as a choice of that group, so `merge adapter=DIR` must not see them. What other
    commands are composed of is in the store. Their folder is Hydra's own, which is on the path
    anyway; without one Hydra takes the package, whose rooms are folders with such names too.
    """
    return str(asset("configs")) if command.groups else "pkg://hydra.conf"


def register(command: Command, schema: type) -> None:
    """Makes a command's schema and the asset resolver known to Hydra; may be called again."""
    store = ConfigStore.instance()
    store.store(name=f"{command.name}_schema", node=schema)
    quiet = {"run": {"dir": "."}, "output_subdir": None, "sweep": {"dir": "outputs", "subdir": "."}}
    store.store(name="quiet", node={"hydra": quiet}, package="_global_")
    if not command.groups:
        silent = [{f"override hydra/{name}": "none"} for name in ("job_logging", "hydra_logging")]
        defaults = [f"{command.name}_schema", "quiet", "_self_", *silent]
        store.store(name=command.name, node={"defaults": defaults})
    OmegaConf.register_new_resolver("gptoss_ft", lambda name: str(asset(name)), replace=True)


def context_of(composed: DictConfig, command: Command, given: frozenset[str]) -> Context:
    """Returns what only Hydra knows about the run that it is starting.

    Raises:
        ConfigError: an interpolation that does not resolve.
    """
    running = HydraConfig.get()
    chosen = (running.runtime.choices.get(folder) for folder in command.recipes)
    return Context(
        recipe=next((name for name in chosen if name), ""),
        job=running.job.num if running.mode == RunMode.MULTIRUN else None,
        config_yaml=OmegaConf.to_yaml(composed, resolve=True),
        given=given,
    )


def compose_options(
    command: Command, arguments: Sequence[str], extra: str | Path | None = None
) -> Any:
    """Composes a command's options without running it, for scripts.

    Args:
        command: decides the schema.
        arguments: as typed, without the command.
        extra: a folder of the user's own configs, as with `--config-dir`.

    Raises:
        ConfigError: whatever the command line would refuse.
    """
    schema = command.load_options()
    register(command, schema)
    own = [f"--config-dir={extra}"] if extra else []
    overrides = check_arguments(command, [*own, *arguments], schema).overrides[len(own) :]
    if extra:
        folders = [asset("recipes"), Path(extra).resolve()]
        overrides.append(f"hydra.searchpath={[f'file://{folder}' for folder in folders]}")
    try:
        with hydra.initialize_config_dir(config_folder(command), version_base="1.3"):
            composed = hydra.compose(command.name, overrides)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema)) from error
    except HydraException as error:
        raise ConfigError(explain_hydra(error, schema)) from error
    return to_options(composed, schema)


def options_to_yaml(options: Any) -> str:
    """Writes options as YAML, for a run that was not composed from files.

    Texts stand as they are: `${x}` in one of them is no interpolation any more.
    """
    return yaml.safe_dump(asdict(options), sort_keys=False, allow_unicode=True)


def to_options(config: DictConfig, schema: type[Options]) -> Options:
    """Returns a composed config as an instance of its schema.

    Raises:
        ConfigError: an interpolation that does not resolve or a value of the wrong type.
    """
    try:
        options = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, schema)) from error
    if not isinstance(options, schema):
        raise TypeError(f"composed {type(options).__name__}, expected {schema.__name__}")
    return options


def explain(error: OmegaConfBaseException, schema: type) -> Problem:
    """Returns an OmegaConf error as a problem, with the nearest key where the key is unknown."""
    key = error.full_key or ""
    message = (error.msg or str(error)).splitlines()[0]
    if key and (problem := key_problem(key, schema)):
        return problem
    mend = "see `gptoss-ft COMMAND --help` for the settings and their values"
    return Problem(message, key, mend=mend)


def explain_hydra(error: Exception, schema: type) -> Problem:
    """Returns a Hydra error as a problem, by the OmegaConf error inside it where there is one."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OmegaConfBaseException) and inner.full_key:
            problem = explain(inner, schema)
            first = str(error).splitlines()[0]
            where = f"{problem.where} ({first})" if first.startswith("In '") else problem.where
            return Problem(problem.what, where, problem.found, problem.mend)
        inner = inner.__cause__
    what, *rest = str(error).strip().splitlines()
    return Problem(what, "arguments", " ".join(line.strip() for line in rest if line.strip()))
