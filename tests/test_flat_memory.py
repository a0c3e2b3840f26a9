"""A million rows, rendered and packed: memory does not grow with the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Prepares a file and prints the largest anonymous memory seen, in MiB: the pages of mapped files
# are the kernel's to take back.
MEASURE = """
import sys, threading, time
from gptoss_ft.data.dataset import prepare
from gptoss_ft.data.options import DataOptions
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

vocabulary, peak, done = packaged_vocabulary(), [anonymous()], threading.Event()
start = peak[0]

def watch():
    while not done.wait(0.02):
        peak[0] = max(peak[0], anonymous())

thread = threading.Thread(target=watch)
thread.start()
data = prepare(DataOptions(path=sys.argv[1], cache=sys.argv[2], workers=1), vocabulary)
done.set()
thread.join()
print(data.summary.train_rows, data.summary.packed_rows, start, peak[0])
"""


def _peak(folder: Path, rows: int) -> tuple[float, float]:
    """Anonymous MiB before, and at most while, `rows` rows are prepared."""
    file = folder / f"{rows}.jsonl"
    with file.open("w") as stream:
        for i in range(rows):
            asked = {"role": "user", "content": f"What is {i} plus {i % 97}?"}
            answered = {"role": "assistant", "content": f"It is {i + i % 97}."}
            stream.write(json.dumps({"messages": [asked, answered]}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, file, folder / "cache"],
        capture_output=True,
        text=True,
        check=True,
    )
    found, packed, start, peak = done.stdout.split()
    assert int(found) == rows > 20 * int(packed) > 0
    return float(start), float(peak)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_flat_in_a_million_rows(tmp_path: Path) -> None:
    """Ten times the rows may cost what choosing among them takes, below 100 bytes a row."""
    _, small = _peak(tmp_path, 100_000)
    start, large = _peak(tmp_path, 1_000_000)
    print(f"anonymous memory: {start:.0f} MiB before, {small:.0f} for 100,000, {large:.0f} for 10⁶")
    assert large - small <= 900_000 * 100 / 2**20
