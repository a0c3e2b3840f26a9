"""DPO against TRL's DPOTrainer on the stock model, and against itself with rows laid otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from small_preferences import (
    StockDPO,
    dpo_trainer,
    losses,
    pair_rows,
    preference_base,
    preference_settings,
    stock_adapted,
    stock_logps,
    trained,
    with_reference,
)
from small_trainer import adapted
from stock import load_stock
from trainers import tokenizer_of
from trl import DPOConfig

from gptoss_ft.adapters.trained import trained_layers
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.data.collate_pairs import PairCollator
from gptoss_ft.model.load import load_model
from gptoss_ft.train.scores import score_rows

METRICS = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
TOKEN_METRICS = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_base(tmp_path_factory)


def _steps(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(end[name] - start[name]).flatten() for name in sorted(start)])


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": ["sigmoid"]},
        {"loss_type": ["ipo"]},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {
            "loss_type": ["apo_zero", "robust"],
            "label_smoothing": 0.1,
            "use_weighting": True,
            "ld_alpha": 0.3,
        },
    ],
    ids=lambda settings: "-".join(settings["loss_type"]),
)
def test_steps_equal_trls_on_the_stock_model(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Losses, rewards and updates of SGD steps with accumulation, adapters random."""
    rows = pair_rows(4)
    common = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "learning_rate": 1e-2,
        **settings,
    }
    model = adapted(base)
    model.save_pretrained(str(tmp_path / "start"))
    start = trained(model)
    ours = dpo_trainer(model, with_reference(model, rows), tmp_path / "ours", **common)
    ours.train()

    stock = stock_adapted(base, tmp_path / "start")
    theirs = StockDPO(
        model=stock,
        args=DPOConfig(**preference_settings(tmp_path / "theirs", **common)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(model),
    )
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4, abs=1e-5)
    for name in (*METRICS, *TOKEN_METRICS):
        assert losses(ours, name) == pytest.approx(losses(theirs, name), rel=1e-4, abs=1e-4), name
    mine, reference = _steps(start, trained(model)), _steps(start, trained(stock))
    assert (mine - reference).norm() <= 1e-4 * reference.norm()
    assert list(model.peft_config) == ["default"], "TRL's copy of the adapter is still there"


@pytest.mark.parametrize("kind", ["attention", "experts", "router", "lossless"])
def test_the_first_loss_is_ln_2_and_the_base_stays_the_base(
    base: Path, tmp_path: Path, kind: str
) -> None:
    """With a fresh adapter of each kind; after five steps it is gone when disabled."""
    rows = pair_rows(4)
    model = adapted(base, [kind])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    before = score_rows(load_model(open_checkpoint(base)), rows)
    trainer = dpo_trainer(
        model,
        with_reference(model, rows),
        tmp_path / "run",
        per_device_train_batch_size=2,
        max_steps=5,
        learning_rate=0.5,
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses(trainer)[-1] - math.log(2)) > 1e-4, "nothing was trained"
    with model.disable_adapter():
        after = score_rows(model, rows)
    for (a, b), (c, d) in zip(before, after, strict=True):
        assert (a - c).abs().max() <= 1e-6 and (b - d).abs().max() <= 1e-6
    if kind == "lossless":
        assert len(trained_layers(model)) > 10


def test_scores_equal_those_of_all_logits(base: Path) -> None:
    rows = pair_rows(4)
    model = adapted(base)
    stock = load_stock(base)
    with model.disable_adapter():
        found = {shared: score_rows(model, rows, shared) for shared in (True, False)}
    for index, row in enumerate(rows):
        for side, name in enumerate(("chosen_ids", "rejected_ids")):
            expected = stock_logps(stock, row["prompt_ids"], row[name])
            for shared in (True, False):
                torch.testing.assert_close(
                    found[shared][index][side], expected, atol=1e-4, rtol=1e-4
                )


def _one_step(
    base: Path, rows: list[dict[str, Any]], out: Path, collator: PairCollator, **settings: Any
) -> tuple[dict[str, float], torch.Tensor]:
    model = adapted(base, ["attention", "experts", "lossless"])
    start = trained(model)
    settings = {"max_steps": 1, "loss_type": ["sigmoid"], **settings}
    trainer = dpo_trainer(model, rows, out, collator=collator, **settings)
    trainer.train()
    return trainer.state.log_history[0], _steps(start, trained(model))


def test_layout_and_batch_split_change_nothing(base: Path, tmp_path: Path) -> None:
    """Shared prompts or not, packed or not, in one batch or in accumulated ones of any sizes."""
    rows = with_reference(adapted(base), pair_rows(6))
    generator = torch.Generator().manual_seed(0)
    for row in rows:
        for side in ("chosen", "rejected"):
            weights = torch.rand(len(row[f"{side}_ids"]), generator=generator)
            row[f"{side}_weights"] = (weights * (weights > 0.3)).tolist()
    packed = [{"pairs": part, "length": 0} for part in (rows[:3], rows[3:4], rows[4:])]
    cases: list[tuple[bool, list[dict[str, Any]], int, int]] = [
        (True, rows, 6, 1),
        (False, rows, 6, 1),
        (True, rows, 1, 6),
        (True, packed, 1, 3),
        (False, packed, 3, 1),
    ]
    results = [
        _one_step(
            base,
            given,
            tmp_path / str(index),
            PairCollator(shared),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        for index, (shared, given, batch, accumulation) in enumerate(cases)
    ]
    logs, step = results[0]
    assert step.norm() > 0
    for other_logs, other in results[1:]:
        assert (other - step).norm() <= 1e-4 * step.norm()
        for name in ("loss", *METRICS, "final/logratios/chosen", "analysis/margins"):
            assert other_logs[name] == pytest.approx(logs[name], rel=1e-4, abs=1e-5), name


def test_metrics_by_channel(base: Path, tmp_path: Path) -> None:
    """Log-ratios and lengths of every channel that occurs, weighted or not."""
    rows = with_reference(adapted(base), pair_rows(3))
    for row in rows:
        row["chosen_weights"] = [float(code == 3) for code in row["chosen_channels"]]
    logs, _ = _one_step(base, rows, tmp_path, PairCollator(), per_device_train_batch_size=3)
    scores = score_rows(adapted(base, ["attention", "experts", "lossless"]), rows)
    for code, channel in ((1, "analysis"), (3, "final")):
        for index, side in enumerate(("chosen", "rejected")):
            ratios, lengths = [], []
            for row, found in zip(rows, scores, strict=True):
                inside = torch.tensor(row[f"{side}_channels"]) == code
                difference = found[index] - torch.tensor(row[f"ref_{side}_logps"])
                ratios.append(difference[inside].sum().item())
                lengths.append(inside.sum().item())
            expected = sum(ratios) / 3
            assert logs[f"{channel}/logratios/{side}"] == pytest.approx(expected, abs=1e-4)
            assert logs[f"{channel}/length/{side}"] == pytest.approx(sum(lengths) / 3)
        margin = logs[f"{channel}/logratios/chosen"] - logs[f"{channel}/logratios/rejected"]
        assert logs[f"{channel}/margins"] == pytest.approx(margin)
    assert not any(name.startswith(("commentary", "tool_call")) for name in logs)
    computed = sum(row["length"] for row in rows)
    assert logs["tokens"] == logs["num_tokens"] == computed, "a shared prompt is computed once"


def test_tokens_without_weight_train_nothing(base: Path, tmp_path: Path) -> None:
    """Other tokens at the end of completions, where nothing after them has weight."""
    rows = with_reference(adapted(base), pair_rows(3))
    results = []
    for shift in (0, 1):
        changed = []
        for row in rows:
            new = dict(row)
            for side in ("chosen", "rejected"):
                ids = list(row[f"{side}_ids"])
                ids[-1] = (ids[-1] + shift) % 199_000
                new[f"{side}_ids"] = ids
                new[f"{side}_weights"] = [1.0] * (len(ids) - 1) + [0.0]
            changed.append(new)
        results.append(
            _one_step(
                base, changed, tmp_path / str(shift), PairCollator(), per_device_train_batch_size=3
            )
        )
    (logs, step), (other_logs, other) = results
    assert other_logs["loss"] == pytest.approx(logs["loss"], rel=1e-6)
    assert (step - other).norm() <= 1e-5 * step.norm()


def test_evaluation_is_a_mean_over_pairs(base: Path, tmp_path: Path) -> None:
    model = adapted(base)
    rows = with_reference(model, pair_rows(5))
    found = [
        dpo_trainer(model, rows, tmp_path / str(batch), per_device_eval_batch_size=batch).evaluate()
        for batch in (1, 2, 5)
    ]
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"):
        values = [metrics[name] for metrics in found]
        assert values == pytest.approx([values[0]] * 3, rel=1e-4, abs=1e-6), name


def test_gradient_checkpointing_changes_nothing(base: Path, tmp_path: Path) -> None:
    rows = with_reference(adapted(base), pair_rows(3))
    results = [
        _one_step(
            base,
            rows,
            tmp_path / str(on),
            PairCollator(),
            per_device_train_batch_size=3,
            gradient_checkpointing=on,
        )
        for on in (False, True)
    ]
    assert (results[0][1] - results[1][1]).norm() <= 1e-5 * results[0][1].norm()


def test_the_auxiliary_loss_is_off_unless_set(base: Path, tmp_path: Path) -> None:
    rows = with_reference(adapted(base), pair_rows(2))
    found = {}
    for coefficient in (0.0, 0.9):
        logs, _ = _one_step(
            base,
            rows,
            tmp_path / str(coefficient),
            PairCollator(),
            per_device_train_batch_size=2,
            router_aux_loss_coef=coefficient,
        )
        found[coefficient] = logs
    assert "aux_loss" not in found[0.0]
    difference = found[0.9]["loss"] - found[0.0]["loss"]
    assert difference == pytest.approx(0.9 * found[0.9]["aux_loss"], rel=1e-4)
    assert found[0.9]["aux_loss"] > 1
