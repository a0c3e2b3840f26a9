"""The command `verify`: measure, show, keep."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from gptoss_ft.context import Context, Outcome
from gptoss_ft.files import write_json
from gptoss_ft.verify.measure import verify
from gptoss_ft.verify.options import VerifyOptions
from gptoss_ft.verify.table import lines


def run(options: VerifyOptions, context: Context) -> Outcome:
    """Verifies, shows the result and writes it where asked; exit code 1 if the candidate fails."""
    result = verify(options)
    for line in lines(result):
        context.say(line)
    if options.out:
        path = Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asdict(result), "kept": result.kept, "ok": result.ok})
    return Outcome(0 if result.ok else 1)
