"""Lets llama.cpp answer a file's questions and compares with the file's answers.

    python answers.py model=F.gguf [adapter=LORA.gguf] tokenizer=DIR file=ROWS [min_exact=0.9]

Prompts are ids as in training, with the pinned date, so that nothing but the model is compared.
Prints how many answers are the file's, token for token through the one that ends it; the exit code
is 1 when their share is below `min_exact`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from gptoss_ft.inference.token_rows import TokenRow, read_rows

DEFAULTS = {"model": "", "adapter": "", "tokenizer": "", "file": "", "min_exact": "0"}
ALL_ROWS = sys.maxsize
AT_ONCE = 8  # the head, most of a tiny model, is read once for all of them: half the CPU time


def answers(model: str, adapter: str, rows: list[TokenRow]) -> list[list[int]]:
    """What llama.cpp answers greedily to the prompts of the rows, in a process of its own."""
    asked = {
        "model": model,
        "adapter": adapter,
        "texts": [],
        "chats": [],
        "prompts": [row.prompt for row in rows],
        "tokens": max(len(expected(row)) for row in rows) + 8,
        "at_once": AT_ONCE,
    }
    driver = Path(__file__).with_name("llama_cpp_server.py")
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps(asked))
        command = [sys.executable, str(driver), str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"llama.cpp failed:\n{done.stderr[-3000:]}")
        return json.loads(found.read_text())["answers"]


def expected(row: TokenRow) -> list[int]:
    """The answer in the file, with the token that ends it."""
    return list(row.ids[len(row.prompt) :])


def main() -> int:
    """Asks and compares; returns the exit code."""
    settings = {**DEFAULTS, **dict(argument.split("=", 1) for argument in sys.argv[1:])}
    rows = read_rows(Path(settings["tokenizer"]), Path(settings["file"]), ALL_ROWS)
    found = answers(settings["model"], settings["adapter"], rows)
    exact = sum(answer == expected(row) for answer, row in zip(found, rows, strict=True))
    print(f"llama.cpp gives {exact} of {len(rows)} of the file's answers, token for token")
    return 0 if exact >= float(settings["min_exact"]) * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
