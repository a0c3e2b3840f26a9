"""Answers through Harmony: channels, references, exit codes, batches."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stock import load_stock

from gptoss_ft.adapters.model import AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.context import Context
from gptoss_ft.errors import AdapterError, ConfigError, DataError
from gptoss_ft.generate.command import Answer, Question, answer_batch, generate, run
from gptoss_ft.generate.options import GenerateOptions
from gptoss_ft.harmony.parse import parse_completion
from gptoss_ft.harmony.vocabulary import Vocabulary, load_vocabulary, special_name
from gptoss_ft.model.load import load_model

CHATS = [
    [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "First question, rather longer than the second one?"},
        {"role": "assistant", "thinking": "Old thought.", "content": "First answer."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "thinking": "New thought.", "content": "Second answer."},
    ],
    [{"role": "user", "content": "Oi?"}, {"role": "assistant", "content": "Olá."}],
    [{"role": "user", "content": "Without an answer"}],
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    return file


def _said(options: GenerateOptions) -> tuple[int, str]:
    lines: list[str] = []
    code = run(options, Context(say=lines.append)).exit_code
    return code, "\n".join(lines)


def _encoded(text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids of a text in which names of special tokens stand for these tokens."""
    specials = {special_name(token): token for token in range(199_998, 200_019)}
    ids: list[int] = []
    for piece in re.split(r"(<\|\w+\|>)", text):
        ids += [specials[piece]] if piece in specials else vocabulary.encode(piece)
    return ids


def _scripted(monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> list[Question]:
    """Replaces the model by fixed answers, keyed by the question; returns what was asked."""
    asked: list[Question] = []

    def answers(model: Any, questions: Any, vocabulary: Any, options: Any) -> Any:
        for question in questions:
            asked.append(question)
            ids = _encoded(texts[question.text], vocabulary)
            yield Answer(question, parse_completion(ids, vocabulary), ids)

    monkeypatch.setattr(sys.modules[generate.__module__], "answer_batch", answers)
    return asked


def test_greedy_answers_equal_stock_transformers(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    vocabulary = load_vocabulary(checkpoint.path)
    prompts = [
        list(vocabulary.encode(text)) for text in ("Hello", "A longer prompt than the other")
    ]
    questions = [Question("prompt", "", ids, None) for ids in prompts]
    options = GenerateOptions(max_new_tokens=8)
    ours = list(answer_batch(load_model(checkpoint), questions, vocabulary, options))
    stock = load_stock(tiny_checkpoint)
    for question, answer in zip(questions, ours, strict=True):
        output = stock.generate(
            torch.tensor([question.prompt_ids]), max_new_tokens=8, do_sample=False
        )
        assert answer.ids == output[0, len(question.prompt_ids) :].tolist()


def test_a_prompt_is_answered_with_an_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    torch.manual_seed(0)
    info = AdapterInfo(("attention",), "", fingerprint(checkpoint))
    adapted = add_adapter(load_model(checkpoint), AdapterOptions(r=4), info)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.normal_(std=0.2)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ids = []
    for adapter in ("", str(tmp_path / "adapter")):
        out = tmp_path / "answers.jsonl"
        options = GenerateOptions(
            model=str(tiny_checkpoint), adapter=adapter, prompt="Hi", max_new_tokens=6, out=str(out)
        )
        code, said = _said(options)
        assert code == 0
        assert said.startswith("prompt  Hi")
        ids.append(json.loads(out.read_text())["ids"])
    assert ids[0] != ids[1]


def test_sampling_follows_the_seed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ids = []
    for seed in (1, 1, 2):
        out = tmp_path / "answers.jsonl"
        options = GenerateOptions(
            model=str(tiny_checkpoint),
            prompt="Hi",
            max_new_tokens=6,
            temperature=1.5,
            seed=seed,
            out=str(out),
        )
        generate(options, lambda line: None)
        ids.append(json.loads(out.read_text())["ids"])
    assert ids[0] == ids[1] != ids[2]


def test_channels_and_verdict(
    tiny_checkpoint: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _scripted(
        monkeypatch,
        {
            "And then?": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Second answer.<|return|>",
            "Oi?": "<|channel|>final<|message|>Adeus.<|return|>",
            "Without an answer": "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
            "{}<|call|>",
        },
    )
    options = GenerateOptions(
        model=str(tiny_checkpoint), file=str(chats), min_exact=0.5, out=str(tmp_path / "a.jsonl")
    )
    code, said = _said(options)
    assert code == 0
    assert "analysis: Hm." in said
    assert "final: Second answer.\n  = the file's answer" in said
    assert "≠ Olá." in said
    assert "commentary to functions.f: {}" in said
    assert "1 of 2 finals equal the file's (50.0%)" in said
    assert [question.reference for question in asked] == ["Second answer.", "Olá.", None]
    assert [question.where for question in asked] == [f"{chats}:{n}" for n in (1, 2, 3)]
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["exact"] for row in rows] == [True, False, None]

    options.min_exact = 0.6
    assert _said(options)[0] == 1
    options.min_exact, options.max_exact = 0.0, 0.4
    assert _said(options)[0] == 1


def test_prompts_show_the_history_as_at_inference(
    tiny_checkpoint: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = dict.fromkeys(["And then?", "Oi?", "Without an answer"], "<|return|>")
    asked = _scripted(monkeypatch, texts)
    generate(GenerateOptions(model=str(tiny_checkpoint), file=str(chats), effort="low"), print)
    prompt = load_vocabulary(tiny_checkpoint).decode(asked[0].prompt_ids)
    assert prompt.endswith("<|start|>user<|message|>And then?<|end|><|start|>assistant")
    assert "First answer.<|end|>" in prompt
    assert "Old thought." not in prompt, "analysis before an earlier final is dropped"
    assert "Reasoning: low" in prompt
    assert "Be brief." in prompt


def test_answers_are_compared_with_either_side_of_a_pair(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pairs.jsonl"
    row = {"prompt": "Oi?", "chosen": "Olá. Bons ventos!", "rejected": "Olá."}
    file.write_text(json.dumps(row) + "\n")
    _scripted(monkeypatch, {"Oi?": "<|channel|>final<|message|>Olá.<|return|>"})
    options = GenerateOptions(model=str(tiny_checkpoint), file=str(file), min_exact=1.0)
    assert _said(options)[0] == 1
    assert "≠ Olá. Bons ventos!" in _said(options)[1]
    assert _said(replace(options, against="rejected"))[0] == 0
    with pytest.raises(ConfigError, match="chosen or rejected"):
        generate(replace(options, against="best"))
    file.write_text(json.dumps({"prompt": "Oi?", "completion": "Olá.", "label": True}) + "\n")
    with pytest.raises(DataError, match="conversations or preference pairs"):
        generate(options)


def test_bad_settings_files_and_adapters(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = str(tiny_checkpoint)
    with pytest.raises(ConfigError, match="exactly one of prompt and file"):
        generate(GenerateOptions(model=model, prompt="x", file="y"))
    with pytest.raises(ConfigError, match="system"):
        generate(GenerateOptions(model=model, system="x", file="y"))
    with pytest.raises(AdapterError):
        generate(GenerateOptions(model=model, adapter=str(tmp_path), prompt="x"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "robot", "content": "x"}]}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1"):
        generate(GenerateOptions(model=model, file=str(bad)))
