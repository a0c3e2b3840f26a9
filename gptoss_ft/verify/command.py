"""The command `verify`: measure, show, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from gptoss_ft.files import write_json
from gptoss_ft.verify.measure import verify
from gptoss_ft.verify.options import VerifyOptions
from gptoss_ft.verify.table import lines


def run_verify(options: VerifyOptions, say: Callable[[str], None] = print) -> int:
    """Verifies, shows the result, writes it where asked; 0 when the candidate passes, else 1."""
    result = verify(options)
    for line in lines(result):
        say(line)
    if options.out:
        path = Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asdict(result), "kept": result.kept, "ok": result.ok})
    return 0 if result.ok else 1
