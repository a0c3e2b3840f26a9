"""From data files to training rows: columns, split, counts, drops, errors, fingerprint."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf

from gptoss_ft import files
from gptoss_ft.data import cache as render
from gptoss_ft.data.dataset import ROW_COLUMNS, PreparedData, check_data, prepare
from gptoss_ft.data.options import DataOptions, SourceOptions
from gptoss_ft.data.reading import parse
from gptoss_ft.errors import ConfigError, DataError
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import IGNORE, Renderer
from gptoss_ft.harmony.vocabulary import packaged_vocabulary

VOCABULARY = packaged_vocabulary()


def chat(number: int, turns: int = 1, **keys: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"question {number}.{turn}"})
        answer = {"content": f"answer {number}.{turn}", "thinking": f"thought {turn}"}
        messages.append({"role": "assistant"} | answer | keys)
    return {"messages": messages}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepared(path: str, **keys: Any) -> PreparedData:
    """Rows one by one; packing has tests of its own."""
    options = DataOptions(path=path, packing=False, **keys)
    return prepare(options, VOCABULARY)


def numbers(dataset: datasets.Dataset) -> set[str]:
    """The numbers of the conversations in a dataset, read back from the rendered questions."""
    texts = [VOCABULARY.decode(ids) for ids in dataset["input_ids"]]
    return {text.split("question ")[1].split(".")[0] for text in texts}


def test_columns_are_the_renderers_rows(tmp_path: Path) -> None:
    rows = [chat(1, 2), chat(2)]
    data = prepared(write(tmp_path / "a.jsonl", rows))
    renderer = Renderer(VOCABULARY, RenderOptions())
    expected = [r for row in rows for r in renderer.render(parse(row, ""))]
    assert data.validation is None
    assert data.train.column_names == ROW_COLUMNS
    assert len(expected) == 3
    assert data.train["input_ids"][:] == [row.input_ids for row in expected]
    assert data.train["labels"][:] == [row.labels for row in expected]
    assert data.train["loss_weights"][:] == [row.loss_weights for row in expected]


def test_the_split_keeps_conversations_whole_and_is_deterministic(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(i, 2) for i in range(20)])
    data = prepared(path, validation_split=0.25, seed=3)
    assert data.validation is not None
    held_out = numbers(data.validation)
    assert len(held_out) == 5 and len(data.validation) == 10 == data.summary.validation_rows
    assert held_out | numbers(data.train) == {str(i) for i in range(20)}
    assert not held_out & numbers(data.train)
    again, other = (prepared(path, validation_split=0.25, seed=seed) for seed in (3, 4))
    assert again.validation is not None and other.validation is not None
    assert numbers(again.validation) == held_out != numbers(other.validation)


def test_a_small_share_still_holds_one_conversation_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1), chat(2)])
    data = prepared(path, validation_split=0.01)
    assert data.validation is not None and len(data.validation) == len(data.train) == 1
    one = write(tmp_path / "b.jsonl", [chat(1)])
    with pytest.raises(DataError, match="too few conversations to hold some out"):
        prepared(one, validation_split=0.5)


def test_a_validation_file_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1)])
    data = prepared(path, validation_path=write(tmp_path / "b.jsonl", [chat(2), chat(3)]))
    assert data.validation is not None
    assert (numbers(data.train), numbers(data.validation)) == ({"1"}, {"2", "3"})


def test_the_summary_counts_what_the_columns_hold(tmp_path: Path) -> None:
    rows = [chat(1, 2), chat(2, thinking=""), chat(3, weight=0)]
    data = prepared(write(tmp_path / "a.jsonl", rows))
    summary = data.summary
    labels = [label for row in data.train["labels"] for label in row]
    assert (summary.conversations, summary.rows, summary.validation_rows) == (3, 3, 0)
    assert summary.tokens == len(labels)
    assert summary.lengths["longest"] == max(len(row) for row in data.train["labels"])
    assert summary.trained_tokens == sum(label != IGNORE for label in labels)
    assert sum(summary.channel_tokens.values()) == summary.trained_tokens
    assert summary.channel_tokens["analysis"] > 0 == summary.channel_tokens["tool_call"]
    assert (summary.finals, summary.bare_finals) == (3, {"medium": 1})
    assert list(summary.dropped.values()) == [1]
    text = "\n".join(summary.lines())
    assert "3 conversations or documents (chat 3), 3 rows" in text
    assert "dropped 1: conversations in which every trained message has weight 0" in text
    assert "1 of 3 trained finals have no analysis" in text


def test_long_rows_are_dropped_or_refused(tmp_path: Path) -> None:
    long = chat(4)
    long["messages"][0]["content"] = "question 4. " + "word " * 500
    path = write(tmp_path / "a.jsonl", [chat(1), long, chat(3)])
    data = prepared(path, max_length=300)
    assert numbers(data.train) == {"1", "3"}
    assert data.summary.dropped == {"rows longer than max_length=300": 1}
    exact = data.summary.lengths["longest"]
    assert len(prepared(path, max_length=exact).train) == 2
    with pytest.raises(DataError) as caught:
        prepared(path, max_length=exact, on_too_long="error")
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:2" and problem.found.endswith(" tokens")
    with pytest.raises(DataError, match=r"no row is left to train on(.|\n)*max_length=10"):
        prepared(path, max_length=10)


def test_a_file_without_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row is left to train on"):
        prepared(write(tmp_path / "a.jsonl", [chat(1, weight=0)]))
    with pytest.raises(DataError, match="no row is left to validate on"):
        held_out = write(tmp_path / "b.jsonl", [chat(1, weight=0)])
        prepared(write(tmp_path / "a.jsonl", [chat(1)]), validation_path=held_out)


def test_the_bad_rows_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    prompt = {"messages": [{"role": "user", "content": "a"}]}
    train = write(tmp_path / "a.jsonl", [chat(1), prompt, "text"])
    held_out = write(tmp_path / "b.jsonl", [{"messages": [{"role": "robot", "content": "a"}]}])
    with pytest.raises(DataError) as caught:
        prepared(train, validation_path=held_out)
    assert [problem.where for problem in caught.value.problems] == [
        f"{train}:2 messages",
        f"{train}:3",
        f"{held_out}:1 messages[0].role",
    ]
    with pytest.raises(DataError) as caught:
        prepared(str(tmp_path / "c.jsonl"), validation_path=held_out)
    assert len(caught.value.problems) == 2


def test_the_first_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"and 30 more problems of 50 in all") as caught:
        prepared(write(tmp_path / "a.jsonl", [{}] * 50))
    assert len(caught.value.problems) == 50


def test_the_fingerprint_follows_content_and_options_not_the_place(tmp_path: Path) -> None:
    first = prepared(write(tmp_path / "a.jsonl", [chat(1), chat(2)])).fingerprint
    path = write(tmp_path / "b.jsonl", [chat(1), chat(2)])
    assert len(first) == 64 and prepared(path).fingerprint == first
    others = [
        prepared(path, render=RenderOptions(effort="low")),
        prepared(path, max_length=1000),
        prepared(path, validation_split=0.5),
        prepared(path, validation_path=write(tmp_path / "d.jsonl", [chat(3)])),
        prepared(write(tmp_path / "c.jsonl", [chat(2), chat(1)])),
    ]
    assert len({first, *(data.fingerprint for data in others)}) == 6


def test_options_out_of_range_are_all_named() -> None:
    options = DataOptions(
        validation_split=1.0,
        max_length=0,
        on_too_long="cut",
        render=RenderOptions(effort="max"),
    )
    with pytest.raises(ConfigError) as caught:
        check_data(options)
    assert [problem.where for problem in caught.value.problems] == [
        "data.path",
        "data.validation_split",
        "data.max_length",
        "data.on_too_long",
        "data.render.effort",
    ]
    both = DataOptions(path="a", validation_path="b", validation_split=0.1)
    assert [problem.where for problem in both.problems("data")] == [
        "data.validation_path, data.validation_split"
    ]
    assert DataOptions(path="a").problems("data") == []


def test_options_work_as_a_structured_config() -> None:
    config = OmegaConf.structured(DataOptions)
    config = OmegaConf.merge(config, {"path": "a", "render": {"weights": {"analysis": 0.5}}})
    options = OmegaConf.to_object(config)
    assert isinstance(options, DataOptions) and isinstance(options.render, RenderOptions)
    weights = {"analysis": 0.5, "commentary": 1.0, "final": 1.0, "tool_call": 1.0}
    assert asdict(options)["render"]["weights"] == weights


def test_sources_are_seen_as_often_as_they_weigh(tmp_path: Path) -> None:
    sources = [
        SourceOptions(
            write(tmp_path / f"{name}.jsonl", [chat(first + i, 2) for i in range(10)]), weight=w
        )
        for name, first, w in (("a", 0, 1.0), ("b", 100, 0.5), ("c", 200, 2.3))
    ]
    options = DataOptions(sources=sources, validation_count=3, packing=False)
    data = prepare(options, VOCABULARY)
    texts = [VOCABULARY.decode(ids) for ids in data.train["input_ids"]]
    seen = Counter(text.rsplit("question ")[-1].split(".")[0] for text in texts)
    by_source = [sum(n for name, n in seen.items() if int(name) // 100 == i) for i in range(3)]
    held_out = Counter(int(name) // 100 for name in numbers(data.validation))
    assert sum(held_out.values()) == 3
    left = [10 - held_out[i] for i in range(3)]
    # Two rows a conversation: the analysis of the first turn is not in the second's prompt.
    assert by_source == [
        2 * left[0],
        2 * round(left[1] * 0.5),
        2 * (2 * left[2] + round(left[2] * 0.3)),
    ]
    assert not numbers(data.train) & numbers(data.validation)
    assert data.summary.conversations == 30
    assert prepare(options, VOCABULARY).fingerprint == data.fingerprint
    sources[1].weight = 0.6
    assert prepare(options, VOCABULARY).fingerprint != data.fingerprint


def test_duplicates_are_counted_and_dropped_when_asked(tmp_path: Path) -> None:
    rows = [chat(1), chat(2), chat(1), {"prompt": "question 1.0", "completion": "x"}, chat(1)]
    path = write(tmp_path / "a.jsonl", rows)
    kept, dropped = prepared(path), prepared(path, duplicates="drop")
    assert kept.summary.duplicates == dropped.summary.duplicates == 2
    assert (len(kept.train), len(dropped.train)) == (5, 3)
    assert any("2 duplicates" in line for line in kept.summary.lines())


def test_truncation_leaves_out_the_oldest_turns(tmp_path: Path) -> None:
    long = {"messages": [{"role": "system", "content": "Be kind."}]}
    for turn in range(4):
        long["messages"] += chat(turn, thinking="")["messages"]
        long["messages"][-2]["content"] = f"turn {turn} " + "word " * 100
    hopeless = chat(7)
    hopeless["messages"][0]["content"] = "word " * 2000
    path = write(tmp_path / "a.jsonl", [long, hopeless])
    data = prepared(path, max_length=350, on_too_long="truncate")
    (row,) = data.train
    text = VOCABULARY.decode(row["input_ids"])
    assert "Be kind." in text and "turn 3" in text and "turn 2" in text
    assert "turn 0" not in text and "turn 1" not in text
    assert data.summary.changed == {"conversations shortened to max_length=350": 1}
    assert data.summary.dropped == {"rows longer than max_length=350": 1}


def test_conversations_without_analysis(tmp_path: Path) -> None:
    rows = [chat(1), chat(2, thinking=""), chat(3, thinking="") | {"reasoning_effort": "high"}]
    path = write(tmp_path / "a.jsonl", rows)
    texts = {
        choice: [
            VOCABULARY.decode(ids)
            for ids in prepared(path, without_analysis=choice).train["input_ids"]
        ]
        for choice in ("keep", "low", "drop")
    }
    efforts = {k: [t.split("Reasoning: ")[1].split("\n")[0] for t in v] for k, v in texts.items()}
    assert efforts == {
        "keep": ["medium", "medium", "high"],
        "low": ["medium", "low", "high"],
        "drop": ["medium"],
    }
    summary = prepared(path, without_analysis="low").summary
    assert summary.bare_finals == {"low": 1, "high": 1}
    assert any("1 of 3" in line and "effort high" in line for line in summary.lines())


def test_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(i, 1 + i % 3) for i in range(1500)])
    one, three = (
        prepared(path, workers=workers, cache=str(tmp_path / f"cache{workers}"))
        for workers in (1, 3)
    )
    assert one.train.to_dict() == three.train.to_dict()
    assert one.summary == three.summary
    assert one.fingerprint == three.fingerprint


def test_rows_are_remembered_until_something_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1), chat(2)])
    cache = str(tmp_path / "cache")
    assert not prepared(path, cache=cache).summary.cached
    again = prepared(path, cache=cache)
    assert again.summary.cached
    assert any("rendered before" in line for line in again.summary.lines())
    assert prepared(path, cache=cache, seed=5, validation_split=0.5).summary.cached
    assert not prepared(path, cache=cache, max_length=999).summary.cached
    assert not prepared(path, cache=cache, render=RenderOptions(effort="low")).summary.cached
    write(tmp_path / "a.jsonl", [chat(1), chat(3)])
    changed = prepared(path, cache=cache)
    assert not changed.summary.cached
    assert numbers(changed.train) == {"1", "3"}


def test_another_run_may_render_the_same_file_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write(tmp_path / "a.jsonl", [chat(1), chat(2)]), str(tmp_path / "cache")
    slow, quicker = render._write, []

    def write_slowly(*arguments: Any) -> Any:
        if not quicker:
            quicker.append(True)
            quicker.append(prepared(path, cache=cache))
        return slow(*arguments)

    # The two would be two processes, with temporary folders of their own.
    names = iter(("one", "two"))
    monkeypatch.setattr(files.os, "getpid", lambda: next(names, "later"))
    monkeypatch.setattr(render, "_write", write_slowly)
    data = prepared(path, cache=cache)
    assert data.train.to_dict() == quicker[1].train.to_dict()
    assert len(list((tmp_path / "cache" / "rendered").iterdir())) == 1


def test_nothing_is_remembered_of_a_bad_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [chat(1), {"messages": []}])
    with pytest.raises(DataError):
        prepared(path, cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "rendered").iterdir()) == []


def test_preference_and_kto_rows_are_refused_with_the_recipe_to_use(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rated = {"prompt": "a", "completion": "b", "label": True}
    path = write(tmp_path / "a.jsonl", [chat(1), pair, rated])
    with pytest.raises(DataError) as caught:
        prepared(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:2", f"{path}:3"]
    assert all("dpo=" in problem.mend for problem in caught.value.problems)


def test_a_thousand_bad_rows_are_all_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "robot", "content": "x"}]}] * 1000)
    with pytest.raises(DataError, match="and 980 more problems of 1000 in all") as caught:
        prepared(path)
    assert len(caught.value.problems) == 1000
    assert f"{path}:20 " in str(caught.value) and f"{path}:21 " not in str(caught.value)


def test_sources_out_of_range_are_all_named() -> None:
    options = DataOptions(
        sources=[SourceOptions(path="", weight=0), SourceOptions(path="a", format="chatt")],
        workers=-1,
    )
    found = {problem.where: problem.mend for problem in options.problems("data")}
    assert found.keys() == {
        "data.sources[0].path",
        "data.sources[0].weight",
        "data.sources[1].format",
        "data.workers",
    }
    assert "did you mean chat?" in found["data.sources[1].format"]
    (lost,) = DataOptions(sources=[SourceOptions(path="b")], format="alpaca").problems("data")
    assert lost.where == "data.format" and "beside each source" in lost.mend
    (twice,) = DataOptions(path="a", sources=[SourceOptions(path="b")]).problems("data")
    assert twice.where == "data.path, data.sources"
