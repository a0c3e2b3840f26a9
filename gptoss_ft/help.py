"""Text of `--help`: the overview, and the settings of one command."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from gptoss_ft.commands import Command
from gptoss_ft.resources import group_options
from gptoss_ft.schema import Setting, settings

WIDTH = 100


def overview(commands: Iterable[Command]) -> str:
    """Returns all commands, with the recipes and config groups of those that have them."""
    commands = list(commands)
    lines = ["gptoss-ft COMMAND key=value …", "", "Commands:"]
    lines += [f"  {command.name:<10} {command.help}" for command in commands]
    for command in commands:
        if command.recipes:
            lines += ["", *_recipes(command), "", *_groups(command)]
    lines += [
        "",
        "gptoss-ft COMMAND --help       the settings of a command",
        "gptoss-ft COMMAND --cfg job    every setting of a command and its value",
        "gptoss-ft train -m KEY=A,B …   one run per value",
        "gptoss-ft train --config-dir DIR sft=MINE   recipes of your own, in DIR/sft/",
    ]
    return "\n".join(lines)


def command_help(command: Command) -> str:
    """Returns a command's settings, each with what it takes, its default and what it is."""
    lines = [f"gptoss-ft {command.name} key=value …", "", command.help]
    if command.recipes:
        lines += ["", *_recipes(command)]
    if command.groups:
        lines += ["", *_groups(command)]
    lines += ["", "Settings:"]
    for setting in settings(command.load_options()):
        lines += _setting(setting)
    return "\n".join(lines)


def _recipes(command: Command) -> Iterator[str]:
    choices = "|".join(f"{folder}=NAME" for folder in command.recipes)
    yield f"Recipes (gptoss-ft {command.name} {choices} data.path=FILE name=RUN):"
    for folder in command.recipes:
        for name, text in group_options("recipes", folder).items():
            yield f"  {folder}={name:<16} {text}"


def _groups(command: Command) -> Iterator[str]:
    yield f"Config groups (gptoss-ft {command.name} GROUP=CHOICE):"
    for group in command.groups:
        for name, text in group_options("configs", group).items():
            yield f"  {f'{group}={name}':<20} {text}"


def _setting(setting: Setting) -> list[str]:
    if setting.is_group:
        head = f"  {setting.key}.…"
    elif setting.is_free:
        head = f"  {setting.key}.KEY=VALUE"
    else:
        head = f"  {setting.key}={setting.values}"
        default = _shown(setting.default)
        head += f"   (default: {default})" if default else ""
    indent = " " * 6
    return [
        head,
        *textwrap.wrap(
            setting.doc,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        ),
    ]


def _shown(default: Any) -> str:
    """Returns a default as it would be typed; empty where there is none."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return f"[{','.join(map(str, default))}]" if default else ""
    return "" if default is None else str(default)
