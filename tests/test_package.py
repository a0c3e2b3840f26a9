"""The wheel carries configs, recipes and data, and works from an empty folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "gptoss_ft"


def test_the_wheel_holds_every_asset_and_runs(tmp_path: Path) -> None:
    """Built without the network by the installed hatchling, and run from where it is unpacked."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for folder in ("configs", "recipes", "data"):
        inside = site / "gptoss_ft/assets" / folder
        files = {p.relative_to(REPOSITORY / folder) for p in _tracked(folder)}
        assert {p.relative_to(inside) for p in inside.rglob("*") if p.is_file()} >= files
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import gptoss_ft; assert 'site' in gptoss_ft.__file__, gptoss_ft.__file__\n"
        "from gptoss_ft.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, site, "train", "sft=demo", "--cfg", "job", "--resolve"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert str(site / "gptoss_ft/assets/data/lighthouse.jsonl") in done.stdout


def _tracked(folder: str) -> list[Path]:
    return [path for path in (REPOSITORY / folder).rglob("*") if path.is_file()]


def test_only_three_modules_know_hydra() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.name not in ("cli.py", "config.py", "arguments.py"):
            text = file.read_text()
            assert "hydra" not in text and "omegaconf" not in text, file.name


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, gptoss_ft.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
