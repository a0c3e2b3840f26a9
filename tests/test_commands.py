"""The table of commands: one command more, the objective of a sweep, and each command's help."""

from __future__ import annotations

from pathlib import Path

import pytest
from extra_command import ECHO

from gptoss_ft import cli
from gptoss_ft.cli import run
from gptoss_ft.commands import COMMANDS, Command
from gptoss_ft.schema import settings


def test_a_table_with_one_more_command(capsys: pytest.CaptureFixture[str]) -> None:
    table = (*COMMANDS, ECHO)
    with pytest.raises(SystemExit) as done:
        cli.main(["echo", "prompt=Olá, (y)=z", "times=3", "model=a/b", "+part.path=~/x"], table)
    assert done.value.code == 2, "the command's own exit code, one less than times"
    said = capsys.readouterr().out
    assert "prompt Olá, (y)=z\n" in said
    assert "recipe '', job None, given ['model', 'part.path', 'prompt', 'times']" in said
    assert run("echo", ["times=1"], table) == 0
    assert run("echo", ["tims=1"], table) == 2
    assert "did you mean times?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--help"], table)
    assert "  echo       say it again" in capsys.readouterr().out
    assert run("echo", []) == 2, "the package's own table is as it was"


def test_a_sweeper_is_given_the_objective(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = "+hydra.callbacks.seen._target_=extra_command.Objectives"
    assert run("echo", ["-m", "times=1,3,2", callback], [ECHO]) == 2, "the largest exit code"
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("objective")] == [
        "objective 1.0",
        "objective 3.0",
        "objective 2.0",
    ]
    assert [f"job {job}," in said for job in range(4)] == [True, True, True, False]


def test_the_help_of_a_command_shows_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("echo", ["--help"], [ECHO]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gptoss-ft echo key=value …",
        "",
        "say it again",
        "",
        "Settings:",
        "  prompt=TEXT",
        "      taken as it is typed.",
        "  model=PATH",
        "      taken as they are typed, too.",
        "  out=PATH",
        "      taken as they are typed, too.",
        "  times=INTEGER   (default: 1)",
        "      how often.",
        "  end=TEXT",
        "      `interrupt`, `bug` or `error`, or empty.",
        "  hub=true|false   (default: false)",
        "      whether the network may be used.",
        "  part.…",
        "      one.",
        "  part.path=PATH",
        "      where it is.",
    ]
    assert run("merge", ["-h"]) == 0
    said = capsys.readouterr().out
    assert "  to=mxfp4|bf16   (default: mxfp4)\n" in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_setting_has_a_doc(command: Command) -> None:
    undocumented = [item.key for item in settings(command.load_options()) if not item.doc]
    assert undocumented == []
