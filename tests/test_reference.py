"""The reference's log-probabilities: right, kept, found again, computed anew where they must be."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from preference_runs import write_base, write_pairs

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.preferences import Groups, PreferenceData, prepare_pairs, prepare_ratings
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.vocabulary import packaged_vocabulary
from gptoss_ft.model.load import load_model
from gptoss_ft.train import reference as module
from gptoss_ft.train.reference import Reference, training_rows

VOCABULARY = packaged_vocabulary()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


def fresh(base: Path) -> AdaptedModel:
    torch.manual_seed(0)
    options = AdapterOptions(["attention", "lossless"], r=4)
    return add_adapter(load_model(open_checkpoint(base)), options, AdapterInfo((), "", ""))


@pytest.fixture(scope="module")
def model(base: Path) -> AdaptedModel:
    """With an adapter that is not zero."""
    adapted = fresh(base)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted


def reference_in(home: Path, adapter: str = "", tokens: int = 4096) -> Reference:
    return Reference("sha256:base", adapter, home, True, tokens)


def pairs_of(file: Path, cache: Path, **keys: Any) -> PreferenceData:
    options = DataOptions(str(file), **{"packing": False, "cache": str(cache), **keys})
    return prepare_pairs(options, VOCABULARY)


def rows_of(
    data: PreferenceData, model: AdaptedModel, home: Path, **keys: Any
) -> tuple[datasets.Dataset, str]:
    """The training rows, and what was said of the reference."""
    said: list[str] = []
    rows, _ = training_rows(
        data, model, reference_in(home, **keys), home.with_suffix(".rows"), said.append
    )
    (line,) = said
    return rows, line


def dense(model: AdaptedModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities from the logits of one sequence by itself."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    targets = torch.tensor(completion)[:, None]
    return logits.log_softmax(-1).gather(1, targets)[:, 0]


def close(found: list[float], expected: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(found), expected, atol=1e-4)


def test_pairs_get_the_scores_of_the_base(model: AdaptedModel, tmp_path: Path) -> None:
    data = pairs_of(write_pairs(tmp_path / "p.jsonl", 3), tmp_path)
    rows, line = rows_of(data, model, tmp_path / "reference", tokens=250)
    assert line.startswith("reference: computed for 6 completions")
    for row in rows:
        for side in ("chosen", "rejected"):
            with model.disable_adapter():
                expected = dense(model, row["prompt_ids"], row[f"{side}_ids"])
            assert close(row[f"ref_{side}_logps"], expected)
            assert not close(
                row[f"ref_{side}_logps"], dense(model, row["prompt_ids"], row[f"{side}_ids"])
            )
    with_adapter, line = rows_of(data, model, tmp_path / "reference", adapter="sha256:sft")
    assert "computed for 6 completions" in line, "another reference"
    row = with_adapter[0]
    assert close(row["ref_chosen_logps"], dense(model, row["prompt_ids"], row["chosen_ids"]))


def test_ratings_get_the_scores_of_matched_and_mismatched_completions(
    model: AdaptedModel, tmp_path: Path
) -> None:
    file = write_pairs(tmp_path / "p.jsonl", 3)
    options = DataOptions(str(file), packing=False, cache=str(tmp_path))
    for groups, count in ((Groups(3, 8), 12), (None, 6)):
        data = prepare_ratings(options, VOCABULARY, groups)
        rows, line = rows_of(data, model, tmp_path / f"reference{count}")
        assert f"computed for {count} completions" in line
        for row in rows:
            with model.disable_adapter():
                own = dense(model, row["prompt_ids"], row["completion_ids"])
                assert close(row["ref_logps"], own)
                if groups:
                    kl = dense(model, row["prompt_ids"], row["kl_ids"])
                    assert close(row["ref_kl_logps"], kl)
        assert ("ref_kl_logps" in rows.column_names) == (groups is not None)


def test_a_second_run_computes_nothing(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_pairs(tmp_path / "p.jsonl", 4)
    first, _ = rows_of(pairs_of(file, tmp_path), model, tmp_path / "reference")
    with monkeypatch.context() as patch:
        patch.setattr(module, "score_rows", None)
        again, line = rows_of(pairs_of(file, tmp_path), model, tmp_path / "reference")
        assert line.startswith("reference: cached")
        assert again[:] == first[:]
        # Another order, a split, other weights of channels: the completions are the same.
        answers = RenderOptions(weights={"analysis": 0.0})
        for keys in ({"seed": 7, "packing": True}, {"validation_split": 0.5}, {"render": answers}):
            _, line = rows_of(pairs_of(file, tmp_path, **keys), model, tmp_path / "reference")
            assert line.startswith("reference: cached"), keys
    write_pairs(file, 5)
    _, line = rows_of(pairs_of(file, tmp_path), model, tmp_path / "reference")
    assert line.startswith("reference: computed for 2 of 10 completions")


def test_equal_completions_are_computed_once(model: AdaptedModel, tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "p.jsonl", 2)
    file.write_text(file.read_text() * 3)
    rows, line = rows_of(pairs_of(file, tmp_path), model, tmp_path / "reference")
    assert line.startswith("reference: computed for 4 of 12 completions")
    assert len(rows) == 6 and rows[0]["ref_chosen_logps"] == rows[2]["ref_chosen_logps"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_pass_that_was_broken_off_goes_on(
    killed: bool, model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process keeps the parts it has written, an interrupted one what it has computed."""
    data = pairs_of(write_pairs(tmp_path / "p.jsonl", 6), tmp_path)
    whole, _ = rows_of(data, model, tmp_path / "whole", tokens=1)
    score_rows, calls = module.score_rows, 0

    def broken(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return score_rows(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "score_rows", broken)
        if killed:
            patch.setattr(module._PartWriter, "closing", lambda self: nullcontext())
            patch.setattr(module, "SECONDS_PER_PART", 0.0)
        rows_of(data, model, tmp_path / "reference", tokens=1)
    assert not (tmp_path / "reference.rows").exists(), "no rows without their scores"
    rows, line = rows_of(data, model, tmp_path / "reference", tokens=1)
    assert line.startswith("reference: computed for 4 of 12 completions")
    assert rows[:] == whole[:]


def _score_and_die(base: Path, file: Path, home: Path) -> None:
    """In a process of its own: killed in the third forward pass."""
    score_rows, calls = module.score_rows, 0

    def deadly(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return score_rows(*arguments)

    module.score_rows, module.SECONDS_PER_PART = deadly, 0.0
    rows_of(pairs_of(file, home.parent), fresh(base), home, tokens=1)


@pytest.mark.slow
def test_a_pass_killed_with_signal_9_goes_on(base: Path, tmp_path: Path) -> None:
    file, home = write_pairs(tmp_path / "p.jsonl", 4), tmp_path / "reference"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_score_and_die, args=(base, file, home))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    _, line = rows_of(pairs_of(file, tmp_path), fresh(base), home)
    assert line.startswith("reference: computed for 4 of 8 completions")


def test_other_code_and_other_bases_are_other_references(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = reference_in(tmp_path)
    other = Reference("sha256:other", "", tmp_path, True, 1)
    same = Reference("sha256:base", "", tmp_path, False, 9)
    assert same.folder(model) == mine.folder(model) != other.folder(model)
    before = mine.folder(model)
    monkeypatch.setattr(module, "scoring_version", lambda: "other")
    assert mine.folder(model) != before
