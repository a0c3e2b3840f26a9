"""The command line: `gptoss-ft COMMAND key=value …` in Hydra's syntax.

Arguments are checked, and text and path values quoted, before Hydra parses them; then Hydra
composes, sweeps and prints as it always does. Expected errors are printed without a traceback.

Exit codes: 0 done; 1 ran and the answer is no; 2 the user can fix it; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from gptoss_ft.commands import COMMANDS, Command
from gptoss_ft.errors import ConfigError, GptOssFtError, Problem
from gptoss_ft.model.cpu.allocator import HUGE_PAGES
from gptoss_ft.validation import unknown_choice

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> NoReturn:
    """Runs the console script `gptoss-ft` and exits.

    Args:
        argv: a command and its arguments; those of the process when None.
        commands: the table to choose from.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from gptoss_ft.help import overview

        print(overview(commands))
        sys.exit(0 if arguments else 2)
    sys.exit(run(arguments[0], arguments[1:], commands))


def train(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs scripts/train.py and exits."""
    sys.exit(run("train", list(sys.argv[1:] if argv is None else argv)))


def merge(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs scripts/merge.py and exits."""
    sys.exit(run("merge", list(sys.argv[1:] if argv is None else argv)))


def run(name: str, arguments: Sequence[str], commands: Sequence[Command] = COMMANDS) -> int:
    """Runs one command and returns its exit code, the largest one of a sweep."""
    table = {command.name: command for command in commands}
    if name not in table:
        return _print_error(
            ConfigError(unknown_choice("unknown command", "gptoss-ft", name, table))
        )
    command = table[name]
    if {"-h", "--help"} & set(arguments):
        from gptoss_ft.help import command_help

        print(command_help(command))
        return 0
    _prepare_environment()
    try:
        return _run_hydra(command, arguments)
    except GptOssFtError as error:
        return _print_error(error)
    except KeyboardInterrupt:
        print(f"interrupted{command.interrupted}", file=sys.stderr)
        return 130


def _prepare_environment() -> None:
    """Turns telemetry and noise off, before the libraries that read this are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault(HUGE_PAGES, "1")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|peft")
    # PEFT imports it, and it warns about an optional CPU kernel that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _set_network(options: Any, decided: set[bool]) -> None:
    """Leaves the network off unless the composed settings ask for it.

    The Hub's library reads this once, when it is imported: after the settings are composed, and
    never again in the process.

    Args:
        options: the command's settings, with or without `hub`.
        decided: what earlier jobs of the sweep decided; this job's is added.
    """
    hub = bool(getattr(options, "hub", False))
    decided.add(hub)
    if len(decided) > 1:
        what = "the jobs of a sweep share one process, which is online or offline"
        raise ConfigError(Problem(what, "hub", mend="sweep once with hub=true, once without"))
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if hub else "1")


def _run_hydra(command: Command, arguments: Sequence[str]) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gptoss_ft import config
    from gptoss_ft.arguments import check_arguments

    schema = command.load_options()
    config.register(command, schema)
    checked = check_arguments(command, arguments, schema)
    codes: list[int] = []
    decided: set[bool] = set()

    def task(composed: DictConfig) -> float | None:
        try:
            options: Any = config.to_options(composed, schema)
            context = config.context_of(composed, command, checked.given)
            _set_network(options, decided)
            outcome = command.load_run()(options, context)
        except GptOssFtError as error:
            codes.append(_print_error(error))
            return None
        codes.append(outcome.exit_code)
        return outcome.objective

    argv, sys.argv = sys.argv, ["gptoss-ft", *checked.overrides]
    try:
        folder = config.config_folder(command)
        entry = hydra.main(config_path=folder, config_name=command.name, version_base="1.3")
        entry(task)()
    except OmegaConfBaseException as error:
        raise ConfigError(config.explain(error, schema)) from error
    except HydraException as error:
        raise ConfigError(config.explain_hydra(error, schema)) from error
    finally:
        sys.argv = argv
    return max(codes, default=0)


def _print_error(error: GptOssFtError) -> int:
    count = len(error.problems)
    head = "error" if count == 1 else f"{count} problems"
    print(f"{head}: {error}" if count == 1 else f"{head}:\n{error}", file=sys.stderr)
    return 2
