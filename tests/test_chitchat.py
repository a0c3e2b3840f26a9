"""Data not written for this project: the 7,168 dialogues of the chitchat-dataset package."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest
from chitchat_dataset import ConversationDataset, Dataset

from gptoss_ft.cli import run


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One dialogue a line, the first speaker as the user; monologues become plain text."""
    file = tmp_path_factory.mktemp("chitchat") / "dialogues.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for dialogue in ConversationDataset():
            turns = [turn for turn in dialogue if turn.strip()]
            row: dict[str, object] = {"text": " ".join(turns) or "(silence)"}
            if len(turns) > 1:
                roles = ("user", "assistant")
                row = {
                    "messages": [
                        {"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)
                    ]
                }
            stream.write(json.dumps(row) + "\n")
    return file


def test_they_preview(dialogues: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"data.path={dialogues}", "random=5", f"html={dialogues.parent / 'page.html'}"]
    assert run("preview", arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.count("dialogues.jsonl:") >= 5
    assert (dialogues.parent / "page.html").stat().st_size > 5_000


def test_they_train(dialogues: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"data.path={dialogues}", f"output={tmp_path}", "name=chitchat", "model=tiny"]
    sizes = ["model.tiny.layers=1", "model.tiny.hidden_size=32", "model.tiny.intermediate_size=32"]
    short = ["trainer.max_steps=20", "trainer.gradient_accumulation_steps=1", "data.workers=2"]
    short += ["data.max_length=512", "data.on_too_long=truncate"]
    short += ["trainer.learning_rate=1e-2"]
    assert run("train", [*arguments, *sizes, *short]) == 0
    said = capsys.readouterr().out
    manifest = json.loads((tmp_path / "chitchat" / "manifest.json").read_text())
    summary = manifest["data_summary"]
    assert manifest["steps"] == 20
    assert summary["conversations"] == 7168 == sum(summary["formats"].values())
    assert summary["formats"] == {"chat": 4017, "text": 3151}
    assert summary["finals"] > 12_000
    assert summary["trained_tokens"] > 100_000
    lines = (tmp_path / "chitchat" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert sum(losses[-5:]) < sum(losses[:5])
    for words in ("7,168 conversations", "trained finals have no analysis", "without_analysis=low"):
        assert words in said


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last answer of every rated dialogue, good where it was rated above the middle."""
    file = tmp_path_factory.mktemp("ratings") / "rated.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for dialogue in Dataset().values():
            scores = [score for score in dialogue.get("ratings", {}).values() if score is not None]
            turns = [" ".join(part["text"] for part in turn) for turn in dialogue["messages"]]
            turns = [turn for turn in turns if turn.strip()]
            if len(turns) % 2:
                del turns[-1]  # the last word was the user's
            if not turns or not scores or mean(scores) == 5:  # where the slider stood at first
                continue
            roles = ("user", "assistant")
            said = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
            row = {"prompt": said[:-1], "completion": said[-1:], "label": mean(scores) > 5}
            stream.write(json.dumps(row) + "\n")
    return file


@pytest.mark.slow
def test_their_ratings_train_kto(
    ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 steps on a few of the ratings; all of them are read."""
    sources = f"data.sources=[{{path: {ratings}, weight: 0.03}}]"
    arguments = ["dpo=kto_20b", sources, f"output={tmp_path}", "name=kto", "model=tiny"]
    sizes = ["model.tiny.layers=1", "model.tiny.hidden_size=32", "model.tiny.intermediate_size=32"]
    short = ["trainer.max_steps=20", "trainer.gradient_accumulation_steps=1"]
    short += ["data.max_length=512", "data.on_too_long=truncate", "trainer.learning_rate=1e-2"]
    assert run("train", [*arguments, *sizes, *short]) == 0
    said = capsys.readouterr().out
    manifest = json.loads((tmp_path / "kto" / "manifest.json").read_text())
    summary = manifest["data_summary"]
    assert manifest["steps"] == 20 and manifest["method"] == "kto"
    assert summary["examples"] == 2342 and summary["formats"] == {"kto": summary["examples"]}
    assert 0 < summary["good"] < summary["train_rows"] < summary["examples"] * 0.04
    lines = (tmp_path / "kto" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert losses[0] == pytest.approx(0.5, abs=1e-4), "nothing is better than the reference yet"
    assert sum(losses[-5:]) < sum(losses[:5])
    assert "reference: computed" in said and "good completions" in said
