"""The command line: `gptoss-ft COMMAND key=value …` in Hydra's syntax.

Arguments are checked, and text and path values quoted, before Hydra parses them; then Hydra
composes, sweeps and prints as it always does. Expected errors are printed without a traceback.

Exit codes: 0 done; 1 ran and the answer is no; 2 the user can mend it; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from gptoss_ft.errors import ConfigError, GptOssFtError, Problem
from gptoss_ft.model.cpu.allocator import HUGE_PAGES

if TYPE_CHECKING:
    from omegaconf import DictConfig

Options = TypeVar("Options")
COMMANDS = {
    "train": "tune a base on conversations, pairs or ratings; writes outputs/NAME/",
    "preview": "show data as it will be trained, in the terminal and as a page",
    "merge": "base + adapter = a checkpoint of its own",
    "verify": "how much of the fine-tune a merged checkpoint keeps",
    "export": "a checkpoint in the files of another runtime, with the commands to serve it",
    "generate": "ask a model, with or without an adapter",
    "tiny": "write a tiny random gpt-oss in the released file layout",
    "gpu-check": "whether your GPU computes what the CPU does",
}
# Values that are text or paths: taken as they stand, whatever Hydra's grammar would make of them.
TEXTS = {"prompt", "system", "name", "publisher", "identity", "rows"}
PATHS = {
    "file",
    "base",
    "out",
    "output",
    "model",
    "adapter",
    "html",
    "cache",
    "calibration",
    "tokenizer",
    "candidate",
    "expert_adapter",
    "init",
    "prompts",
}
_RESUME = {
    "train": "; say resume=true to go on from the newest checkpoint",
    "merge": "; the same command goes on from the files that are finished",
}
_ASSIGNMENT = re.compile(r"(?P<key>[+~]{0,2}[\w./@-]+)=(?P<value>.*)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script `gptoss-ft`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        sys.exit(0 if arguments else 2)
    command, *rest = arguments
    if command not in COMMANDS:
        problem = Problem(
            "unknown command", "gptoss-ft", command, f"use one of {', '.join(COMMANDS)}"
        )
        sys.exit(_print_error(ConfigError(problem)))
    sys.exit(run(command, rest))


def train(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of scripts/train.py."""
    sys.exit(run("train", list(sys.argv[1:] if argv is None else argv)))


def merge(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of scripts/merge.py."""
    sys.exit(run("merge", list(sys.argv[1:] if argv is None else argv)))


def run(command: str, arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    _prepare_environment(hub="hub=true" in [argument.lower() for argument in arguments])
    try:
        return _run_hydra(command, arguments)
    except GptOssFtError as error:
        return _print_error(error)
    except KeyboardInterrupt:
        print(f"interrupted{_RESUME.get(command, '')}", file=sys.stderr)
        return 130


def _prepare_environment(hub: bool) -> None:
    """No telemetry, no network unless asked; set before the libraries that read it are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if hub else "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault(HUGE_PAGES, "1")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|peft")
    # PEFT imports it, and it warns about an optional CPU kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _run_hydra(command: str, arguments: list[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gptoss_ft import config

    schema = config.schema_of(command)
    config.register(command, schema)
    overrides = check_arguments(command, arguments, schema)
    codes: list[int] = []

    def task(composed: DictConfig) -> None:
        try:
            codes.append(_ACTIONS[command](composed))
        except GptOssFtError as error:
            codes.append(_print_error(error))

    argv, sys.argv = sys.argv, ["gptoss-ft", *overrides]
    try:
        entry = hydra.main(
            config_path=str(config.config_folder(command)), config_name=command, version_base="1.3"
        )
        entry(task)()
    except OmegaConfBaseException as error:
        raise ConfigError(config.explain(error, schema)) from error
    except HydraException as error:
        raise ConfigError(_explain_hydra(error, schema)) from error
    finally:
        sys.argv = argv
    return max(codes, default=0)


def compose_options(
    command: str, arguments: list[str], schema: type[Options], extra: str | Path | None = None
) -> Options:
    """Composes a command's options without running it, for scripts.

    Args:
        command: one of `COMMANDS`.
        arguments: as typed, without the command.
        schema: the command's dataclass.
        extra: a folder of the user's own configs, as with `--config-dir`.

    Raises:
        ConfigError: whatever the command line would refuse.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gptoss_ft import config

    config.register(command, schema)
    given = [f"--config-dir={extra}"] if extra else []
    overrides = check_arguments(command, [*given, *arguments], schema)[len(given) :]
    if extra:
        folders = [config.asset("recipes"), Path(extra).resolve()]
        overrides.append(f"hydra.searchpath={[f'file://{folder}' for folder in folders]}")
    try:
        with hydra.initialize_config_dir(str(config.config_folder(command)), version_base="1.3"):
            composed = hydra.compose(command, overrides)
    except OmegaConfBaseException as error:
        raise ConfigError(config.explain(error, schema)) from error
    except HydraException as error:
        raise ConfigError(_explain_hydra(error, schema)) from error
    return config.to_options(composed, schema)


def _explain_hydra(error: Exception, schema: type) -> Problem:
    """A Hydra error as a problem, by the OmegaConf error inside it where there is one."""
    from omegaconf.errors import OmegaConfBaseException

    from gptoss_ft import config

    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OmegaConfBaseException) and inner.full_key:
            problem = config.explain(inner, schema)
            first = str(error).splitlines()[0]
            where = f"{problem.where} ({first})" if first.startswith("In '") else problem.where
            return Problem(problem.what, where, problem.found, problem.mend)
        inner = inner.__cause__
    what, *rest = str(error).strip().splitlines()
    return Problem(what, "arguments", " ".join(line.strip() for line in rest if line.strip()))


def check_arguments(command: str, arguments: list[str], schema: type) -> list[str]:
    """Finds everything wrong with the arguments' keys and choices, and quotes literal values.

    Args:
        command: one of `COMMANDS`.
        arguments: as typed, without the command.
        schema: the command's dataclass.

    Returns:
        the arguments for Hydra.

    Raises:
        ConfigError: unknown settings and choices with the nearest known one, settings given twice,
            two recipes at once, arguments that are not assignments.
    """
    from gptoss_ft import config

    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    extra = _config_dir(arguments)
    for argument in arguments:
        assignment = _ASSIGNMENT.fullmatch(argument)
        if argument.startswith("-") or assignment is None:
            continue
        key, value = assignment["key"].lstrip("+~"), assignment["value"]
        seen[key] += 1
        if key in config.groups_of(command):
            problems += _choice_problems(key, value, config.group_options(key, extra))
        elif not key.startswith("hydra"):
            problem = config.key_problem(key, schema)
            problems += [problem] if problem else []
    problems += [
        Problem("given more than once", key, f"{count} times", "keep one of them")
        for key, count in seen.items()
        if count > 1
    ]
    recipes = [key for key in config.RECIPE_GROUPS if seen[key]]
    if len(recipes) > 1:
        mend = "a run has one recipe: keep one of them"
        problems.append(Problem("two recipes at once", " and ".join(recipes), mend=mend))
    if seen["adapter.init"]:
        problems += _adapter_problems(seen)
    if problems:
        raise ConfigError(problems)
    return [_opened(quoted(command, argument), config.free_keys(schema)) for argument in arguments]


def _adapter_problems(given: Iterable[str]) -> list[Problem]:
    """What is said of a fresh adapter although the run goes on from a trained one."""
    own = [key for key in given if key == "adapter" or key.startswith("adapter.")]
    mend = "leave it out: kinds, ranks and scaling are those of the adapter in adapter.init"
    what = "this is about a fresh adapter"
    return [Problem(what, key, mend=mend) for key in own if key != "adapter.init"]


def _opened(argument: str, free: list[str]) -> str:
    """Lets `trainer.KEY=VALUE` add a key that the defaults do not name: `++`, for Hydra."""
    return f"++{argument}" if argument.startswith(tuple(f"{key}." for key in free)) else argument


def _choice_problems(group: str, value: str, options: dict[str, str]) -> list[Problem]:
    import difflib

    problems = []
    for choice in value.split(","):
        if choice not in options and choice not in ("null", ""):
            near = difflib.get_close_matches(choice, options, 1)
            mend = f"did you mean {group}={near[0]}? " if near else ""
            mend += f"choose from: {', '.join(options) or 'nothing in this version'}"
            problems.append(Problem("no such choice", group, choice, mend))
    return problems


def _config_dir(arguments: list[str]) -> Path | None:
    for position, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd"):
            return Path(arguments[position + 1]) if position + 1 < len(arguments) else None
        if argument.startswith("--config-dir="):
            return Path(argument.partition("=")[2])
    return None


def quoted(command: str, argument: str) -> str:
    """An argument whose value is text or a path, quoted for Hydra; `~` expands in paths.

    Lists and values that are quoted already stay as they are.
    """
    assignment = _ASSIGNMENT.fullmatch(argument)
    if argument.startswith("-") or assignment is None:
        return argument
    key, value = assignment["key"], assignment["value"]
    name = key.lstrip("+~").rpartition(".")[2]
    is_path = name.endswith("path") or (name in PATHS and (command, key) not in _GROUP_KEYS)
    if not (is_path or name in TEXTS) or re.fullmatch(r"\[.*\]", value, re.DOTALL):
        return argument
    if is_path:
        value = str(Path(value).expanduser()) if value else value
    value = value.replace("${", r"\${")
    # In Hydra's grammar a backslash only escapes a quote, or a backslash that stands before one.
    value = re.sub(r"(\\*)(?='|$)", lambda match: match[1] * 2, value).replace("'", r"\'")
    return f"{key}='{value}'"


_GROUP_KEYS = {("train", "model"), ("train", "adapter")}


def help_text() -> str:
    """Commands, config groups and recipes, read from the files that define them."""
    from gptoss_ft import config

    lines = ["gptoss-ft COMMAND key=value …", "", "Commands:"]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    lines += ["", "Recipes (gptoss-ft train sft=NAME|dpo=NAME data.path=FILE name=RUN):"]
    for group in config.RECIPE_GROUPS:
        lines += [
            f"  {group}={name:<16} {text}" for name, text in config.group_options(group).items()
        ]
    lines += ["", "Config groups (gptoss-ft train GROUP=CHOICE):"]
    for group in config.GROUPS:
        if group not in config.RECIPE_GROUPS:
            lines += [
                f"  {f'{group}={name}':<20} {text}"
                for name, text in config.group_options(group).items()
            ]
    lines += [
        "",
        "gptoss-ft COMMAND --cfg job    every setting of a command and its value",
        "gptoss-ft train -m KEY=A,B …   one run per value",
        "gptoss-ft train --config-dir DIR sft=MINE   recipes of your own, in DIR/sft/",
    ]
    return "\n".join(lines)


def _print_error(error: GptOssFtError) -> int:
    count = len(error.problems)
    head = "error" if count == 1 else f"{count} problems"
    print(f"{head}: {error}" if count == 1 else f"{head}:\n{error}", file=sys.stderr)
    return 2


def _train(composed: DictConfig) -> int:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from gptoss_ft import config
    from gptoss_ft.train.options import TrainOptions

    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    recipes = [choices[group] for group in config.RECIPE_GROUPS if choices.get(group)]
    name = composed.name or (recipes[0] if recipes else "sft")
    if hydra_config.mode == RunMode.MULTIRUN:
        name = f"{name}-{hydra_config.job.num}"
    composed.name = name
    options = config.to_options(composed, TrainOptions)
    if problems := options.problems():
        raise ConfigError(problems)
    if options.preference is None:
        from gptoss_ft.train.sft import train_sft as run_training
    else:
        from gptoss_ft.train.preference import train_preference as run_training
    run_training(options, config.to_yaml(composed))
    return 0


def _preview(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.preview.command import PreviewCommand, run_preview

    run_preview(config.to_options(composed, PreviewCommand))
    return 0


def _merge(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.merge.command import run_merge
    from gptoss_ft.merge.options import MergeOptions

    return run_merge(config.to_options(composed, MergeOptions))


def _verify(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.verify.command import VerifyOptions, run_verify

    return run_verify(config.to_options(composed, VerifyOptions))


def _export(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.export.command import run_export
    from gptoss_ft.export.options import ExportOptions

    return run_export(config.to_options(composed, ExportOptions))


def _generate(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.generate import GenerateOptions, generate

    return generate(config.to_options(composed, GenerateOptions))


def _tiny(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.model.tiny import TinyCommand, write_tiny

    options = config.to_options(composed, TinyCommand)
    if not options.out:
        raise ConfigError(Problem("no folder for the model", "out", mend="say out=DIR"))
    write_tiny(Path(options.out), options)
    print(f"tiny gpt-oss written to {options.out}")
    return 0


def _gpu_check(composed: DictConfig) -> int:
    from gptoss_ft import config
    from gptoss_ft.gpu_check import GpuCheckOptions, check_gpu

    return check_gpu(config.to_options(composed, GpuCheckOptions))


_ACTIONS: dict[str, Callable[[Any], int]] = {
    "train": _train,
    "preview": _preview,
    "merge": _merge,
    "verify": _verify,
    "export": _export,
    "generate": _generate,
    "tiny": _tiny,
    "gpu-check": _gpu_check,
}
