"""A tiny model tuned a little: how much of it survives each target, measured end to end.

`pytest -m slow -s tests/test_survival.py` prints the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from merges import refusal

from gptoss_ft.adapters.model import AdaptedModel, AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.digests import fingerprint
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.inference.token_rows import TokenRow, read_rows
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge
from gptoss_ft.model.load import load_model
from gptoss_ft.model.tiny import TinyOptions, write_tiny
from gptoss_ft.resources import asset
from gptoss_ft.verify.measure import Verification, verify
from gptoss_ft.verify.options import VerifyOptions

TRAINING = asset("data") / "lighthouse.jsonl"
HELD_OUT = asset("data") / "lighthouse_heldout.jsonl"
SIZES = TinyOptions(layers=2, hidden_size=256, intermediate_size=256)
STEPS, RATE, BATCH = 40, 2e-4, 4
TARGETS = {
    "nearest": {"to": "mxfp4", "experts": "nearest", "force": True},
    "gptq": {"to": "mxfp4", "experts": "gptq", "calibration": str(TRAINING), "force": True},
    "adapter": {"to": "mxfp4", "experts": "adapter"},
    "bf16": {"to": "bf16"},
}


@dataclass(frozen=True)
class Survived:
    """One line of the table: the largest epsilon and rho of any matrix that was rounded."""

    epsilon: float | None
    rho: float | None
    verification: Verification


def _loss(model: AdaptedModel, rows: list[TokenRow]) -> torch.Tensor:
    total, weight = torch.zeros(()), torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.ids])
        weights = torch.zeros(ids.shape)
        weights[0, torch.tensor(row.scored) + 1] = 1.0
        output = model(input_ids=ids, labels=ids, loss_weights=weights)
        total, weight = total + output.loss, weight + output.weight
    return total / weight


def _tune(base: Path, out: Path) -> None:
    """LoRA on the experts only, so that nothing but their rounding can be lost."""
    torch.manual_seed(0)
    checkpoint = open_checkpoint(base)
    info = AdapterInfo(("experts",), str(base), fingerprint(checkpoint))
    model = add_adapter(
        load_model(checkpoint), AdapterOptions(kinds=["experts"], r=4, alpha=4), info
    )
    rows = read_rows(base, TRAINING, 43)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        _loss(model, [rows[i] for i in torch.randperm(len(rows))[:BATCH].tolist()]).backward()
        optimizer.step()
    model.save_pretrained(str(out))


def _survived(base: Path, adapter: Path, out: Path, target: str) -> Survived:
    result = merge(plan_merge(MergeOptions(str(base), str(adapter), str(out), **TARGETS[target])))
    assert not result.problems
    extra = str(out / "expert_adapter") if target == "adapter" else ""
    verification = verify(
        VerifyOptions(
            base=str(base),
            adapter=str(adapter),
            candidate=str(out),
            expert_adapter=extra,
            prompts=str(HELD_OUT),
            answers=0,
        )
    )
    matrices = [item for name, item in result.statistics.items() if not name.endswith("_bias")]
    rhos = [matrix.rho for matrix in matrices if matrix.rho is not None]
    epsilons = [matrix.epsilon for matrix in matrices]
    return Survived(max(epsilons, default=None), max(rhos, default=None), verification)


def _questions(file: Path) -> set[str]:
    rows = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    return {message["content"] for row in rows for message in row if message["role"] == "user"}


@pytest.mark.slow
def test_what_survives(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_tiny(base, SIZES)
    _tune(base, adapter)
    questions = [_questions(file) for file in (TRAINING, HELD_OUT)]
    assert not questions[0] & questions[1], "calibration and evaluation share rows"

    message = refusal(tmp_path / "out", base=base, adapter=adapter, to="mxfp4", experts="nearest")
    assert "force" in message

    found = {name: _survived(base, adapter, tmp_path / f"to_{name}", name) for name in TARGETS}
    print(f"\n{'target':<10}{'epsilon':>9}{'rho':>7}{'KL':>11}{'kept':>9}{'same top-1':>12}")
    for name, item in found.items():
        shown = item.verification
        epsilon, rho = ("-" if x is None else f"{x:.3f}" for x in (item.epsilon, item.rho))
        print(
            f"{name:<10}{epsilon:>9}{rho:>7}{shown.candidate.kl:>11.6f}"
            f"{shown.kept:>9.1%}{shown.candidate.top1:>12.1%}"
        )
    kept = {name: item.verification.kept for name, item in found.items()}
    assert 0.005 < (found["nearest"].epsilon or 0) < 0.02
    assert found["nearest"].verification.base.kl > 1e-3, "the tuning has hardly any effect"
    assert kept["adapter"] >= 0.99
    assert kept["bf16"] >= 0.95
    assert 1 - kept["gptq"] <= 0.5 * (1 - kept["nearest"])
    assert all(item.verification.reload.ok for item in found.values())
