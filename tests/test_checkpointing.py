"""Trading memory for work: full checkpointing, or only the experts' pre-activation formed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from small_trainer import adapted, trainer_on

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate import Collator
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.load import load_model
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.train.options import ModelOptions, TrainOptions
from gptoss_ft.train.prepare import find_base
from gptoss_ft.train.steps import build_model

LAYERS = 3
WAYS = ("save", "recompute", "checkpoint")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpointing") / "model"
    sizes = TinyOptions(layers=LAYERS, hidden_size=64, intermediate_size=64, heads=2, kv_heads=1)
    write_tiny(out, sizes)
    return out


def packed_rows() -> list[dict[str, Any]]:
    """A row of three documents, one longer than the sliding window, and a shorter row."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for lengths in ((150, 30, 1), (40, 50)):
        ids = torch.randint(0, 199_000, (sum(lengths),), generator=generator)
        weights = torch.rand(len(ids), generator=generator) * (torch.arange(len(ids)) % 3 == 0)
        row = {"input_ids": ids, "labels": ids, "loss_weights": weights}
        rows.append({name: value.tolist() for name, value in row.items()})
        rows[-1]["documents"] = list(lengths)
    return rows


def model_for(base: Path, way: str) -> AdaptedModel:
    model = adapted(base, ["experts", "lossless"]).train()
    for module in experts_of(model):
        module.save_pre_activation = way != "recompute"
    if way == "checkpoint":
        model.activation_checkpointing_enable()
    return model


def experts_of(model: torch.nn.Module) -> list[PackedExperts]:
    return [module for module in model.modules() if isinstance(module, PackedExperts)]


def test_gradients_are_the_same_whatever_is_kept(base: Path) -> None:
    """Packed experts, all kinds of adapters, several documents in a row."""
    batch = Collator()(packed_rows())
    found, calls = {}, {}
    for way in WAYS:
        model = model_for(base, way)
        runs: list[int] = []
        for module in experts_of(model):
            # Before, not after: forming again stops as soon as all that was saved is there.
            module.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        model(**batch).loss.backward()
        found[way] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        calls[way] = len(runs)
    assert calls == {"save": LAYERS, "recompute": LAYERS, "checkpoint": 2 * LAYERS}
    for name, expected in found["save"].items():
        assert expected is not None and torch.isfinite(expected).all(), name
        for way in WAYS[1:]:
            difference = (found[way][name] - expected).norm()
            assert difference <= 1e-6 * expected.norm(), f"{way}: {name}"


def test_each_way_keeps_less_than_the_one_before(base: Path) -> None:
    batch = Collator()(packed_rows())
    kept = {}
    for way in WAYS:
        model = model_for(base, way)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(**batch)
        kept[way] = sum(size for start, size in storages.items() if start not in weights)
        assert output.loss.requires_grad
    pairs = 2 * 181 * 4  # rows, padded length, experts per token
    assert kept["save"] - kept["recompute"] == LAYERS * pairs * 2 * 64 * 4
    assert kept["checkpoint"] < kept["recompute"] / LAYERS


def test_the_trainer_checkpoints_without_reentrance(base: Path, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(packed_rows())
    results = []
    for checkpointing in (False, True):
        trainer = trainer_on(
            adapted(base),
            rows,
            tmp_path / str(checkpointing),
            per_device_train_batch_size=2,
            max_steps=1,
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        model = trainer.model
        layers = model.get_base_model().model.layers
        assert [layer.gradient_checkpointing for layer in layers] == [checkpointing] * LAYERS
        results.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    function = layers[0]._gradient_checkpointing_func
    assert function.keywords == {"use_reentrant": False}
    for name, expected in results[0].items():
        assert (results[1][name] - expected).norm() <= 1e-6 * expected.norm(), name


@pytest.mark.parametrize("save", [True, False])
def test_the_setting_reaches_every_layer(base: Path, save: bool) -> None:
    options = TrainOptions(
        name="run",
        model=ModelOptions(path=str(base), save_pre_activation=save),
        adapter=AdapterOptions(["experts"]),
    )
    model = build_model(options, find_base(options))
    assert [module.save_pre_activation for module in experts_of(model)] == [save] * LAYERS
    default = load_model(open_checkpoint(base))
    assert all(module.save_pre_activation for module in experts_of(default))


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_forming_the_pre_activation_three_times_is_refused(name: str) -> None:
    def problems(save: bool, **trainer: Any) -> list[str]:
        model = ModelOptions(path="base", save_pre_activation=save)
        options = TrainOptions(name="run", model=model, trainer=trainer)
        return [str(p) for p in options.problems() if p.where == "model.save_pre_activation"]

    (problem,) = problems(False, **{name: True})
    assert "gradient checkpointing forms the pre-activation again already" in problem
    assert problems(True, **{name: True}) == problems(False, **{name: False}) == []
    assert problems(False) == []
