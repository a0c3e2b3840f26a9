"""A merge that is killed or runs into a full disk goes on, and ends with the same bytes.

One process forks a child for every merge, so that many kills cost one import of torch. The child
kills itself with SIGKILL at a given step: a step is a write of tensor bytes (half of them still go
out), an opened file, a rename or a removal.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from merges import SMALL, contents, make_case, write_small

from gptoss_ft.errors import MergeError
from gptoss_ft.merge.journal import (
    JOURNAL_NAME,
    MANIFEST_NAME,
    FinishedShard,
    Journal,
    locked,
)
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge
from gptoss_ft.model.tiny import write_tiny

WORKER = """
import json, os, signal, sys
import torch
from gptoss_ft.merge import shard_writer
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge

torch.set_num_threads(1)  # a child of a process with other threads would hang
steps, limit, log = 0, 0, []

def step(what):
    global steps
    steps += 1
    log.append(what)
    if steps == limit:
        if what == "write":
            return True
        os.kill(os.getpid(), signal.SIGKILL)
    return False

def watch(event, arguments):
    if event in ("os.rename", "os.remove") or (event == "open" and "w" in str(arguments[1])):
        step(event)

write = shard_writer.write_all

def counted(stream, data):
    if step("write"):
        write(stream, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(stream, data)

shard_writer.write_all = counted
sys.addaudithook(watch)
base, adapter, *rest = sys.argv[1:]
for line in sys.stdin:
    out, limit, settings = json.loads(line)
    steps, log = 0, []
    child = os.fork()
    if not child:
        plan = plan_merge(MergeOptions(base, adapter, out, max_shard_gb=2e-5, **settings))
        steps, log = 0, []
        merge(plan)
        text = json.dumps(log)
        open(out + ".log", "w").write(text)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Worker:
    """A process that merges on demand, killed at a step or not."""

    def __init__(self, base: Path, adapter: Path, **settings: object) -> None:
        self.settings = settings
        command = [sys.executable, "-c", WORKER, str(base), str(adapter)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def merge(self, out: Path, limit: int = 0) -> int:
        """Merges into `out`, killed at step `limit`; returns the child's wait status."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(out), limit, self.settings]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait() == 0


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and an adapter of its attention, experts and small tensors."""
    folder = tmp_path_factory.mktemp("sources")
    write_small(folder / "base")
    (folder / "base" / "tokenizer.json").write_text("{}\n")  # the real one is 27 MB
    make_case(folder / "base", folder / "adapter", experts=True)
    return folder / "base", folder / "adapter"


@pytest.fixture(scope="module")
def worker(sources: tuple[Path, Path]) -> Iterator[Worker]:
    worker = Worker(*sources)
    yield worker
    worker.close()


def _moments(log: list[str], count: int) -> list[int]:
    """Steps spread over the whole run, a third of them within a shard's write."""
    writes = [step for step, what in enumerate(log, start=1) if what == "write"]
    within = count // 3
    chosen = {writes[len(writes) * i // within] for i in range(within)}
    others = [step for step in range(1, len(log) + 1) if step not in chosen]
    rest = count - len(chosen)
    return sorted(chosen | {others[(len(others) - 1) * i // (rest - 1)] for i in range(rest)})


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment(worker: Worker, tmp_path: Path, count: int) -> None:
    assert worker.merge(tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    log = json.loads((tmp_path / "whole.log").read_text())
    moments = _moments(log, count)
    within = sum(log[step - 1] == "write" for step in moments)
    assert len(moments) == count and within >= count // 4
    out = tmp_path / "out"
    for step in moments:
        status = worker.merge(out, step)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, step
        _assert_nothing_is_half_there(out, whole)
        assert worker.merge(out) == 0, step
        assert contents(out) == whole, f"killed at step {step}, {log[step - 1]}"
        shutil.rmtree(out)


@pytest.mark.slow
def test_killed_while_calibrating_and_rounding(tmp_path: Path) -> None:
    """What calibration has found is kept until the end, and rounding goes on from it."""
    base, adapter, data = (tmp_path / name for name in ("base", "adapter", "rows.jsonl"))
    write_tiny(base, SMALL)
    make_case(base, adapter, experts=True)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    data.write_text(f"{json.dumps({'messages': messages})}\n" * 8)
    worker = Worker(base, adapter, experts="gptq", calibration=str(data), force=True)
    assert worker.merge(tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")
    log = json.loads((tmp_path / "whole.log").read_text())
    writes = [step for step, what in enumerate(log, start=1) if what == "write"]
    out = tmp_path / "out"
    # Before the first byte of a shard, while rows are collected; and in the middle of the shards.
    for step in (2, writes[0] - 2, writes[len(writes) // 2]):
        assert os.WIFSIGNALED(worker.merge(out, step)), step
        _assert_nothing_is_half_there(out, whole)
    assert worker.merge(out) == 0
    assert contents(out) == whole
    worker.close()


def _assert_nothing_is_half_there(out: Path, whole: dict[str, bytes]) -> None:
    """Whatever has a final name is whole; the manifest is there only when all is."""
    there = {
        name: data
        for name, data in contents(out).items()
        if not any(part.startswith(".") for part in Path(name).parts) and name != JOURNAL_NAME
    }
    assert there == {name: whole[name] for name in there}
    assert MANIFEST_NAME not in there or there == whole


def test_a_killed_run_is_not_done_again(worker: Worker, tmp_path: Path) -> None:
    """What was finished is hashed, not written; what was damaged since is written again."""
    out = tmp_path / "out"
    assert worker.merge(tmp_path / "whole") == 0
    log = json.loads((tmp_path / "whole.log").read_text())
    assert os.WIFSIGNALED(worker.merge(out, len(log) * 2 // 3))
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 5
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"?")
    before = {file: file.stat().st_mtime_ns for file in shards}
    assert worker.merge(out) == 0
    changed = [file for file in shards if file.stat().st_mtime_ns != before[file]]
    assert changed == [shards[1]]
    assert contents(out) == contents(tmp_path / "whole")


def _options(sources: tuple[Path, Path], out: Path, **settings: object) -> MergeOptions:
    return MergeOptions(*map(str, sources), str(out), max_shard_gb=2e-5, **settings)


def _assert_resumes(sources: tuple[Path, Path], out: Path, whole: Path) -> None:
    """After a failure that left whole files and a journal, the same merge ends as undisturbed."""
    merge(plan_merge(_options(sources, whole)))
    there = contents(out)
    assert JOURNAL_NAME in there and MANIFEST_NAME not in there
    assert any(name.endswith(".safetensors") for name in there)
    _assert_nothing_is_half_there(out, contents(whole))
    assert not [name for name in there if Path(name).name.startswith(".")], "a part stayed"
    merge(plan_merge(_options(sources, out)))
    assert contents(out) == contents(whole)


def test_files_that_may_not_grow(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fourth shard on, the system refuses to write more than so many bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    add = Journal.add

    def add_and_limit(journal: Journal, file: str, shard: FinishedShard) -> None:
        add(journal, file, shard)
        if len(journal.shards) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))

    monkeypatch.setattr(Journal, "add", add_and_limit)
    try:
        with pytest.raises(MergeError, match="File too large") as caught:
            merge(plan_merge(_options(sources, tmp_path / "out")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert "it goes on from the files that are finished" in str(caught.value)
    _assert_resumes(sources, tmp_path / "out", tmp_path / "whole")


FULL_DISK = """
import sys
from collections.abc import Iterator
from pathlib import Path
from gptoss_ft.errors import MergeError
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge

base, adapter, disk = sys.argv[1:]
plan = plan_merge(MergeOptions(base, adapter, disk + "/out", max_shard_gb=2e-5))
hog = Path(disk, "hog")
hog.write_bytes(bytes(plan.free_bytes - plan.nbytes // 2))
try:
    merge(plan)
except MergeError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError("the disk was not full")
hog.unlink()
"""


def test_a_disk_that_fills_up(sources: tuple[Path, Path], tmp_path: Path) -> None:
    """A small disk in memory, mounted for this test alone, where the system allows that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=8m tmpfs {disk}"
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("this system allows no mounts; a limit on files stands in, in the test before")
    script = tmp_path / "full_disk.py"
    script.write_text(FULL_DISK)
    run = f"{sys.executable} {script} {sources[0]} {sources[1]} {disk}"
    subprocess.run(
        [*alone, f"set -e; {mounted}; {run}; cp -a {disk}/out {tmp_path / 'out'}"], check=True
    )
    _assert_resumes(sources, tmp_path / "out", tmp_path / "whole")


def test_a_finished_merge_is_recognised(sources: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(plan_merge(_options(sources, out)))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert merge(plan_merge(_options(sources, out))).was_complete
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "config.json").write_text("{}")
    with pytest.raises(
        MergeError, match=r"config\.json: a file of this finished merge was changed"
    ):
        merge(plan_merge(_options(sources, out)))


@pytest.mark.parametrize("finished", [True, False])
def test_other_inputs_are_not_mixed_in(
    sources: tuple[Path, Path], worker: Worker, tmp_path: Path, finished: bool
) -> None:
    out = tmp_path / "out"
    if finished:
        merge(plan_merge(_options(sources, out)))
    else:
        assert os.WIFSIGNALED(worker.merge(out, 40))
    before = contents(out)
    with pytest.raises(MergeError) as caught:
        plan_merge(_options(sources, out, weights=[0.5], to="bf16"))
    text = str(caught.value)
    for name in ("adapters", "experts", "to"):
        assert f"the folder holds a merge with another `{name}`" in text
    assert contents(out) == before


def test_two_merges_into_one_folder(sources: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_merge(_options(sources, tmp_path / "out"))
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(MergeError, match="another merge is writing here"):
        merge(plan)
    assert contents(tmp_path / "out") == {}
