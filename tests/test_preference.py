"""Whole preference runs on a very small model: files, reference, resume, going on from SFT."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chats import write_chats
from preference_runs import (
    logs_of,
    preference_options,
    run_preference,
    write_base,
    write_pairs,
)
from safetensors.torch import load_file
from stock import write_stock_adapter
from transformers import AutoTokenizer, TrainerCallback

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import AdapterError, GptOssFtError
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge
from gptoss_ft.train import steps
from gptoss_ft.train.options import TrainOptions
from gptoss_ft.train.run import train


@pytest.fixture(autouse=True, scope="module")
def _one_tokenizer(base: Path) -> Iterator[None]:
    """Read once: it takes longer than a run on this model does."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    once = SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "AutoTokenizer", once)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 6)


@pytest.fixture(scope="module")
def sft(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a few steps of SFT, LoRA and full tensors."""
    home = tmp_path_factory.mktemp("sft")
    chats = write_chats(home / "chats.jsonl", 4)
    options = preference_options(base, chats, home, preference={})
    options = replace(options, preference=None, adapter=AdapterOptions(["lossless"], r=3, alpha=5))
    return train(options, "", lambda line: None).adapter


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    files = (run / "adapter").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_a_run_writes_its_files_and_says_what_it_compares(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    options = preference_options(base, pairs, tmp_path, trainer={"num_train_epochs": 2})
    run, said = run_preference(options)
    names = {path.name for path in run.iterdir()}
    assert names == {"adapter", "config.yaml", "manifest.json", "metrics.jsonl"}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["method"] == "dpo"
    assert manifest["base_fingerprint"] == fingerprint(open_checkpoint(base))
    assert manifest["data_summary"]["compared"]["chosen analysis"] > 0
    lines = logs_of(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert manifest["tokens_seen"] == 2 * manifest["data_summary"]["tokens"]
    accuracies = [line["rewards/accuracies"] for line in lines[3:]]
    assert manifest["reward_accuracy"] == pytest.approx(sum(accuracies) / 3)
    text = "\n".join(said)
    for words in ("6 examples", "reference: computed for 12", "reward accuracy in the last epoch"):
        assert words in text


@pytest.mark.parametrize(
    ("method", "trainer"),
    [
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ("kto", {"loss_type": "apo_zero_unpaired", "per_device_train_batch_size": 1}),
        pytest.param("kto", {}, marks=pytest.mark.slow),
        pytest.param("orpo", {}, marks=pytest.mark.slow),
        pytest.param("simpo", {"beta": 2.0}, marks=pytest.mark.slow),
    ],
)
def test_every_method_lowers_its_loss(
    method: str, trainer: dict[str, Any], base: Path, pairs: Path, tmp_path: Path
) -> None:
    given = {"num_train_epochs": 3} | trainer
    settings = {"preference": {"method": method}, "trainer": given}
    run, said = run_preference(preference_options(base, pairs, tmp_path, **settings))
    losses = [line["loss"] for line in logs_of(run)]
    assert sum(losses[-3:]) < sum(losses[:3])
    has_reference = any(line.startswith("reference:") for line in said)
    assert has_reference == (method in ("dpo", "kto"))


def test_equal_runs_are_equal_to_the_bit_with_a_reference_from_the_cache(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data": {"validation_split": 0.3, "packing": True}}
    first, _ = run_preference(preference_options(base, pairs, tmp_path, **settings))
    again, said = run_preference(preference_options(base, pairs, tmp_path, name="b", **settings))
    assert any(line.startswith("reference: cached") for line in said)
    before, after = _tensors(first), _tensors(again)
    assert all(torch.equal(before[name], after[name]) for name in before)
    evaluated = [line for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_rewards/accuracies" in line for line in evaluated)


class _Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "method", ["dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kto", "simpo"))]
)
def test_a_resumed_run_ends_as_an_undisturbed_one(
    method: str, base: Path, pairs: Path, tmp_path: Path
) -> None:
    trainer = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    settings: dict[str, Any] = {"trainer": trainer, "preference": {"method": method}}
    whole, _ = run_preference(preference_options(base, pairs, tmp_path, name="whole", **settings))
    broken = preference_options(base, pairs, tmp_path, name="broken", **settings)
    with pytest.raises(KeyboardInterrupt):
        run_preference(broken, _Interrupt())
    resumed, said = run_preference(replace(broken, resume=True))
    assert any(line.endswith("checkpoint-4") for line in said)
    before, after = _tensors(whole), _tensors(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    names = ("step", "loss", "grad_norm", "rewards/margins", "tokens")
    logs = [
        [[line.get(name) for name in names] for line in logs_of(run)] for run in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def _continued(base: Path, pairs: Path, output: Path, sft: Path, **settings: Any) -> TrainOptions:
    adapter = AdapterOptions(["experts"], r=9, init=str(sft))
    return preference_options(base, pairs, output, adapter=adapter, **settings)


@pytest.fixture(scope="module")
def second_stage(
    base: Path, pairs: Path, sft: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A run that goes on from the adapter of SFT."""
    return run_preference(_continued(base, pairs, tmp_path_factory.mktemp("second"), sft))


def test_a_run_goes_on_from_an_adapter_which_is_its_reference(
    base: Path, sft: Path, second_stage: tuple[Path, list[str]]
) -> None:
    run, said = second_stage
    assert logs_of(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "lossless; rank 3; alpha 5" in said[0]
    start, result = open_adapter(sft), open_adapter(run / "adapter")
    check_adapter(result, open_checkpoint(base))
    assert result.kinds == ("lossless",) and result.base_fingerprint == start.base_fingerprint
    assert result.updates.keys() == start.updates.keys()
    assert result.trained.keys() == start.trained.keys()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["adapter"]["kinds"] == ["lossless"] and manifest["adapter"]["r"] == 3
    before, after = _tensors(sft.parent), _tensors(run)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert all(0 < move < 0.1 for move in moved.values()), "small steps from where SFT ended"


def test_one_merge_holds_both_stages(
    base: Path, second_stage: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run, _ = second_stage
    out = tmp_path / "merged"
    plan = plan_merge(MergeOptions(str(base), str(run / "adapter"), str(out), "mxfp4"))
    assert not merge(plan).problems
    merged = {n: t for file in out.glob("*.safetensors") for n, t in load_file(file).items()}
    trained = load_file(run / "adapter" / "trained_tensors.safetensors")
    assert trained and all(torch.equal(merged[n], trained[n].bfloat16()) for n in trained)


def test_sft_goes_on_from_an_adapter_too(base: Path, sft: Path, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl", 4)
    options = replace(_continued(base, chats, tmp_path, sft), preference=None)
    said: list[str] = []
    result = open_adapter(train(options, "", said.append).adapter)
    assert "going on from" in said[0] and result.kinds == ("lossless",)


def test_a_stock_adapter_can_be_gone_on_from(base: Path, pairs: Path, tmp_path: Path) -> None:
    write_stock_adapter(base, tmp_path / "stock")
    run, said = run_preference(_continued(base, pairs, tmp_path, tmp_path / "stock"))
    assert "attention, experts" in said[0]
    assert logs_of(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    result = open_adapter(run / "adapter")
    assert result.updates.keys() == open_adapter(tmp_path / "stock").updates.keys()
    assert result.base_fingerprint == fingerprint(open_checkpoint(base))


def test_an_adapter_of_another_base_is_refused(pairs: Path, sft: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(AdapterError, match="trained on another base"):
        run_preference(_continued(other, pairs, tmp_path, sft))
    with pytest.raises(GptOssFtError, match="no adapter folder"):
        run_preference(_continued(other, pairs, tmp_path, tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_a_changed_start_is_another_run(base: Path, pairs: Path, sft: Path, tmp_path: Path) -> None:
    trainer = {"save_strategy": "steps", "max_steps": 9}
    options = _continued(base, pairs, tmp_path, sft, trainer=trainer)
    with pytest.raises(KeyboardInterrupt):
        run_preference(options, _Interrupt())
    fresh = replace(options, resume=True, adapter=AdapterOptions(["lossless"], r=3, alpha=5))
    with pytest.raises(GptOssFtError) as caught:
        run_preference(fresh)
    (problem,) = caught.value.problems
    assert problem.where == "init_fingerprint (adapter.init)"


def test_unbalanced_ratings_are_warned_of(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": f"b {i}", "label": i < 4} for i in range(5)]
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"preference": {"method": "kto"}, "trainer": {"max_steps": 1}}
    options = preference_options(base, file, tmp_path, **settings)
    assert isinstance(options.data, DataOptions)
    _, said = run_preference(options)
    (warning,) = (line for line in said if line.startswith("warning"))
    assert "4.00 times" in warning and "between 0.25 and 0.33" in warning
