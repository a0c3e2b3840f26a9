"""Checkpoints as folders: published whole, recognised when they are not, found, pruned, cleaned."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path

import pytest
from killed_run import watch_files
from transformers import TrainerState

from gptoss_ft.errors import RunError
from gptoss_ft.files import leftovers
from gptoss_ft.train.checkpoints import (
    CONTENTS,
    STAGING,
    checkpoint_at,
    checkpoints,
    clean,
    is_whole,
    newest_checkpoint,
    prune,
    publish,
)


def _stage(folder: Path, step: int, text: str = "", best: str | None = None) -> Path:
    staged = checkpoint_at(folder / STAGING, step)
    (staged / "inner").mkdir(parents=True)
    TrainerState(best_model_checkpoint=best).save_to_json(str(staged / "trainer_state.json"))
    (staged / "text").write_text(text)
    (staged / "inner" / "optimizer.pt").write_bytes(bytes(100))
    return staged


def _write(folder: Path, *steps: int) -> None:
    for step in steps:
        publish(_stage(folder, step), checkpoint_at(folder, step))


def _steps(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_the_newest_by_number_is_found(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    assert newest_checkpoint(tmp_path) is None
    _write(tmp_path, 9, 100, 20)
    (tmp_path / "checkpoint-best").mkdir()
    assert _steps(tmp_path) == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-100"
    assert (newest / "inner" / "optimizer.pt").read_bytes() == bytes(100)


def test_a_checkpoint_with_a_file_missing_or_cut_off_is_not_whole(tmp_path: Path) -> None:
    for spoil in (
        lambda at: (at / CONTENTS).unlink(),
        lambda at: (at / "inner" / "optimizer.pt").unlink(),
        lambda at: (at / "inner" / "optimizer.pt").write_bytes(bytes(99)),
        lambda at: shutil.rmtree(at / "inner"),
    ):
        _write(tmp_path, 1, 2)
        assert is_whole(checkpoint_at(tmp_path, 2))
        spoil(checkpoint_at(tmp_path, 2))
        assert not is_whole(checkpoint_at(tmp_path, 2))
        assert newest_checkpoint(tmp_path) == checkpoint_at(tmp_path, 1)
        clean(tmp_path)
        assert _steps(tmp_path) == ["checkpoint-1"]
        shutil.rmtree(tmp_path / "checkpoint-1")


def test_without_a_whole_checkpoint_nothing_is_removed(tmp_path: Path) -> None:
    """Starting over in silence would throw hours away; the files may have been left elsewhere."""
    _write(tmp_path, 3, 4)
    for step in (3, 4):
        (checkpoint_at(tmp_path, step) / "trainer_state.json").unlink()
    for action in (newest_checkpoint, clean):
        with pytest.raises(RunError, match="no checkpoint of this run is whole") as refused:
            action(tmp_path)
        assert "checkpoint-3, checkpoint-4" in str(refused.value)
    assert _steps(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_publishing_replaces_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    _write(tmp_path, 5)
    publish(_stage(tmp_path, 5, "newer"), checkpoint_at(tmp_path, 5))
    assert is_whole(checkpoint_at(tmp_path, 5))
    assert (tmp_path / "checkpoint-5" / "text").read_text() == "newer"


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4]),
        (0, None, [1, 2, 3, 4]),
        (-1, None, [1, 2, 3, 4]),
        (9, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (2, 4, [3, 4]),
        (2, 1, [1, 4]),
        (3, 2, [2, 3, 4]),
        (1, 3, [3, 4]),
        (1, None, [4]),
    ],
)
def test_pruning_keeps_the_newest_and_the_best(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    _write(tmp_path, 1, 2, 3, 4)
    # The best one may be named by a path from before the run was moved.
    prune(tmp_path, limit, f"elsewhere/checkpoint-{best}" if best else None)
    assert _steps(tmp_path) == [f"checkpoint-{step}" for step in kept]
    prune(tmp_path / "none", limit, None)


def test_a_process_killed_at_any_event_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Signal 9 before every operation on files, from publishing a checkpoint to pruning others."""
    codes = []
    for kill_at in itertools.count():
        folder = tmp_path / str(kill_at)
        _write(folder, 1, 2)
        staged = _stage(folder, 3, best="elsewhere/checkpoint-1")
        child = os.fork()
        if child == 0:
            watch_files(folder, tmp_path / "events", kill_at)
            publish(staged, checkpoint_at(folder, 3))
            prune(folder, 1, "checkpoint-1")
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        newest = newest_checkpoint(folder)
        assert newest is not None and newest.name in ("checkpoint-2", "checkpoint-3")
        assert all(map(is_whole, checkpoints(folder)))
        clean(folder, 1)
        assert not leftovers(folder) and newest_checkpoint(folder) == newest
        if newest.name == "checkpoint-3":
            assert _steps(folder) == ["checkpoint-1", "checkpoint-3"], "the best one and the newest"
        if codes[-1] == 0:
            break
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    events = (tmp_path / "events").read_text()
    assert len(codes) > 15 and "os.rename .checkpoint.tmp0/checkpoint-3 checkpoint-3" in events
