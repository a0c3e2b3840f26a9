"""Hydra's side of the configuration: schemas, assets, and composed configs as dataclasses.

This module and cli.py are the only ones that know Hydra and OmegaConf; everything else gets
dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptoss_ft.errors import ConfigError, Problem

GROUPS = ("model", "adapter", "data", "trainer", "tracker", "sft", "dpo")
RECIPE_GROUPS = ("sft", "dpo")
Options = TypeVar("Options")


def schema_of(command: str) -> type:
    """The dataclass behind a command's configuration; imported only when it is asked for."""
    match command:
        case "train":
            from gptoss_ft.train.options import TrainOptions

            return TrainOptions
        case "preview":
            from gptoss_ft.preview.command import PreviewCommand

            return PreviewCommand
        case "merge":
            from gptoss_ft.merge.options import MergeOptions

            return MergeOptions
        case "verify":
            from gptoss_ft.verify.command import VerifyOptions

            return VerifyOptions
        case "export":
            from gptoss_ft.export.options import ExportOptions

            return ExportOptions
        case "generate":
            from gptoss_ft.generate import GenerateOptions

            return GenerateOptions
        case "gpu-check":
            from gptoss_ft.gpu_check import GpuCheckOptions

            return GpuCheckOptions
        case "tiny":
            from gptoss_ft.model.tiny import TinyCommand

            return TinyCommand
    raise ValueError(command)


def asset(name: str) -> Path:
    """`configs`, `recipes` or `data`: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "assets" / name
    return inside if inside.is_dir() else package.parent / name


def config_folder(command: str) -> Path:
    """Where a command's primary configuration lies.

    Only commands with groups see their folders. A key named like a group on the search path is read
    as a choice of that group, so `merge adapter=DIR` must not see them.
    """
    return asset("configs") if groups_of(command) else asset("configs") / "tools"


def groups_of(command: str) -> tuple[str, ...]:
    """The groups that a command's configuration is composed of."""
    return {"train": GROUPS, "preview": ("data",)}.get(command, ())


def register(command: str, schema: type) -> None:
    """Makes a command's schema and the asset resolver known to Hydra; may be called again."""
    store = ConfigStore.instance()
    store.store(name=f"{command}_schema", node=schema)
    quiet = {"run": {"dir": "."}, "output_subdir": None, "sweep": {"dir": "outputs", "subdir": "."}}
    store.store(name="quiet", node={"hydra": quiet}, package="_global_")
    OmegaConf.register_new_resolver("gptoss_ft", lambda name: str(asset(name)), replace=True)


def to_options(config: DictConfig, schema: type[Options]) -> Options:
    """A composed config as an instance of its schema.

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


def to_yaml(config: DictConfig) -> str:
    """The composed config with interpolations resolved."""
    return OmegaConf.to_yaml(config, resolve=True)


def options_to_yaml(options: Any) -> str:
    """Writes options as YAML, for a run that was not composed from files.

    Texts stand as they are: `${x}` in one of them is no interpolation any more.
    """
    return yaml.safe_dump(dataclasses.asdict(options), sort_keys=False, allow_unicode=True)


def known_keys(schema: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted keys of a schema, each with whether it is a free dictionary."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        key = prefix + item.name
        hint = _without_none(hints[item.name])
        yield key, typing.get_origin(hint) is dict
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from known_keys(hint, f"{key}.")


def free_keys(schema: type) -> list[str]:
    """Dotted keys of dictionaries that take any key."""
    return [key for key, free in known_keys(schema) if free]


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def key_problem(key: str, schema: type) -> Problem | None:
    """What is wrong with a dotted key, or None: unknown keys come with the nearest known one."""
    keys = dict(known_keys(schema))
    parents = {key.rsplit(".", count)[0] for count in range(1, key.count(".") + 1)}
    if key in keys or any(keys.get(parent) for parent in parents):
        return None
    near = difflib.get_close_matches(key, keys, 1, cutoff=0.5)
    tails = {known.rpartition(".")[2]: known for known in keys}
    if not near:
        near = [tails[tail] for tail in difflib.get_close_matches(key.rpartition(".")[2], tails, 1)]
    mend = (
        f"did you mean {near[0]}?" if near else "see `gptoss-ft COMMAND --cfg job` for all settings"
    )
    return Problem("unknown setting", key, mend=mend)


def explain(error: OmegaConfBaseException, schema: type) -> Problem:
    """An OmegaConf error as a problem, with the nearest key where the key is unknown."""
    key = error.full_key or ""
    message = (error.msg or str(error)).splitlines()[0]
    if key and (problem := key_problem(key, schema)):
        return problem
    return Problem(
        message, key, mend="see `gptoss-ft COMMAND --cfg job` for the settings and their values"
    )


def group_options(group: str, extra: Path | None = None) -> dict[str, str]:
    """Choices of a group, each with the comment in its first line.

    Args:
        group: one of `GROUPS`.
        extra: a folder of the user's own configs, as with `--config-dir`.
    """
    home = asset("recipes") if group in RECIPE_GROUPS else asset("configs")
    files = [*(home / group).glob("*.yaml"), *((extra / group).glob("*.yaml") if extra else ())]
    return {file.stem: _first_comment(file) for file in sorted(files)}


def _first_comment(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line.removeprefix("# ")
    return ""
