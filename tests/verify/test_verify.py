"""The verify command against stock transformers and stock PEFT, on every target of the merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from merges import SMALL, Case, edit_tensor, make_case
from peft import PeftModel
from stock import load_stock, set_tensors

from gptoss_ft.adapters.combine import combine
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.cli import run as run_command
from gptoss_ft.context import Context, Outcome
from gptoss_ft.errors import CheckpointError, ConfigError
from gptoss_ft.inference.token_rows import TokenRow, read_rows
from gptoss_ft.inference.tuned import tuned_model
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.stream import merge
from gptoss_ft.model.mapped import load_mapped
from gptoss_ft.model.tiny import write_tiny
from gptoss_ft.verify import reload as reload_module
from gptoss_ft.verify.command import run
from gptoss_ft.verify.measure import verify
from gptoss_ft.verify.options import VerifyOptions
from gptoss_ft.verify.reload import reload
from gptoss_ft.verify.spot import spot_check
from gptoss_ft.verify.table import lines

ROWS = 2
TARGETS = {
    "bf16": {"to": "bf16"},
    "adapter": {"to": "mxfp4", "experts": "adapter"},
    "gptq": {"to": "mxfp4", "experts": "gptq", "force": True},
    "nearest": {"to": "mxfp4", "experts": "nearest", "force": True},
}


@dataclass(frozen=True)
class Setup:
    """A base, an adapter on it, every merge of the two, and rows."""

    base: Path
    case: Case
    merged: dict[str, Path]
    data: Path
    rows: list[TokenRow]

    def options(self, candidate: Path, **settings: object) -> VerifyOptions:
        """Options of a quick check."""
        return VerifyOptions(
            base=str(self.base),
            adapter=str(self.case.adapter),
            candidate=str(candidate),
            prompts=str(self.data),
            **{"rows": ROWS, "answers": 0, **settings},  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("verify")
    base, data = folder / "base", folder / "rows.jsonl"
    rows = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n} {n * n}"}]
        for n in range(12)
    ]
    data.write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    write_tiny(base, SMALL)
    case = make_case(base, folder / "adapter", experts=True)
    merged = {}
    for name, settings in TARGETS.items():
        merged[name] = folder / f"merged_{name}"
        given = {"calibration": str(data)} if name == "gptq" else {}
        options = MergeOptions(str(base), str(case.adapter), str(merged[name]), **settings, **given)
        assert not merge(plan_merge(options)).problems
    return Setup(base, case, merged, data, read_rows(base, data, ROWS))


@torch.no_grad()
def _log_probabilities(model: torch.nn.Module, rows: Sequence[TokenRow]) -> torch.Tensor:
    """At the scored positions, each row alone."""
    parts = [
        model(input_ids=torch.tensor([row.ids])).logits[0, list(row.scored)].float() for row in rows
    ]
    return torch.log_softmax(torch.cat(parts), dim=-1)


def _stock_tuned(setup: Setup) -> torch.nn.Module:
    """Stock PEFT on the stock base, with the tensors that PEFT has no place for."""
    model = load_stock(setup.base)
    set_tensors(model, setup.case.trained)
    return PeftModel.from_pretrained(model, setup.case.adapter).eval()


@pytest.fixture(scope="module")
def stock(setup: Setup) -> dict[str, torch.Tensor]:
    """Log-probabilities of base and base + adapter in stock libraries."""
    models = {"base": load_stock(setup.base), "tuned": _stock_tuned(setup)}
    return {name: _log_probabilities(model, setup.rows) for name, model in models.items()}


def _kl(model: torch.Tensor, reference: torch.Tensor) -> float:
    return float(F.kl_div(reference, model, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("target", TARGETS)
def test_stock_libraries_and_verify_agree(
    setup: Setup, stock: dict[str, torch.Tensor], target: str
) -> None:
    extra = setup.merged[target] / "expert_adapter"
    settings = {"expert_adapter": str(extra)} if target == "adapter" else {}
    result = verify(setup.options(setup.merged[target], **settings))
    model: torch.nn.Module = load_stock(setup.merged[target])
    if target == "adapter":
        model = PeftModel.from_pretrained(model, extra).eval()
    candidate = _log_probabilities(model, setup.rows)
    assert result.positions == len(candidate) == sum(len(row.scored) for row in setup.rows)
    assert result.base.kl == pytest.approx(_kl(stock["base"], stock["tuned"]), rel=1e-3)
    assert result.candidate.kl == pytest.approx(_kl(candidate, stock["tuned"]), rel=1e-2, abs=1e-6)
    same = (candidate.argmax(-1) == stock["tuned"].argmax(-1)).float().mean()
    assert result.candidate.top1 == pytest.approx(float(same), abs=1 / len(candidate) + 1e-6)
    assert result.reload.ok and result.reload.layers == SMALL.layers
    assert all(check.ok for check in result.tensors), lines(result)
    kinds = {check.expected for check in result.tensors}
    assert kinds == {"copy", "merged"} | ({"rounded"} if target in ("gptq", "nearest") else set())
    if target in ("bf16", "adapter"):
        assert result.kept > 0.99 and result.ok


def test_several_weighted_adapters(setup: Setup, tmp_path: Path) -> None:
    """Base + sum of weighted updates, against stock transformers with the sum in its weights."""
    other = make_case(setup.base, tmp_path / "other", experts=True, seed=1)
    adapters = [(open_adapter(setup.case.adapter), 0.5), (open_adapter(other.adapter), -2.0)]
    ours = _log_probabilities(
        tuned_model(open_checkpoint(setup.base), combine(adapters)), setup.rows
    )
    model = load_stock(setup.base)
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in values.items()}
    for case, weight in ((setup.case, 0.5), (other, -2.0)):
        for name, delta in case.deltas.items():
            values[name] += weight * delta
        for name, tensor in case.trained.items():
            values[name] += weight * (tensor - before[name])
    set_tensors(model, values)
    theirs = _log_probabilities(model, setup.rows)
    assert (ours - theirs).abs().max() < 1e-3


def test_dense_checkpoint_stays_in_its_files(setup: Setup) -> None:
    checkpoint = open_checkpoint(setup.merged["bf16"])
    model = load_mapped(checkpoint)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    theirs = _log_probabilities(load_stock(checkpoint.path), setup.rows)
    assert (_log_probabilities(model, setup.rows) - theirs).abs().max() < 1e-3


def test_the_base_keeps_nothing(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    out = setup.data.parent / "result" / "verify.json"
    options = setup.options(setup.base, answers=1, max_new_tokens=4, out=str(out))
    assert run(options, Context()) == Outcome(1)
    written = json.loads(out.read_text())
    assert written["kept"] == pytest.approx(0, abs=1e-6) and not written["ok"]
    assert written["answers"] == 1 and written["candidate"] == written["base"]
    wrong = {check["name"] for check in written["tensors"] if not check["ok"]}
    assert {name.split(".")[-2] for name in wrong} >= {"q_proj", "router"}
    assert "kept       0.0%" in capsys.readouterr().out


def test_exit_codes(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    def command(**settings: object) -> int:
        given = {
            "base": setup.base,
            "adapter": setup.case.adapter,
            "candidate": setup.merged["gptq"],
            "prompts": setup.data,
            "rows": 1,
            "answers": 0,
            **settings,
        }
        return run_command("verify", [f"{name}={value}" for name, value in given.items()])

    assert command(keep=0.0) == 0
    assert command(prompts=setup.data.with_name("none.jsonl")) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_damage_is_found(setup: Setup, tmp_path: Path) -> None:
    """A value that is off by two steps, in a tensor that no logit may show."""
    shutil.copytree(setup.merged["bf16"], tmp_path / "damaged")
    name = "model.layers.1.self_attn.q_proj.weight"

    def damage(tensor: torch.Tensor) -> None:
        tensor[3, 5] *= 1 + 2**-6

    edit_tensor(tmp_path / "damaged", name, damage)
    base, candidate = open_checkpoint(setup.base), open_checkpoint(tmp_path / "damaged")
    adapters = [(open_adapter(setup.case.adapter), 1.0)]
    found = spot_check(base, adapters, candidate, 2)
    assert [check.name for check in found if not check.ok] == [name]


def test_large_models_are_cut_to_their_first_layers(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "WHOLE_BYTES", 0)
    monkeypatch.setattr(reload_module, "CUT_BYTES", 0)
    result = reload(open_checkpoint(setup.merged["gptq"]), setup.rows)
    assert (result.layers, result.all_layers) == (1, 2)
    assert result.ok and 1e-5 < result.difference < result.limit


def test_bad_settings_are_reported_together(setup: Setup, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        verify(VerifyOptions(keep=1.5, rows=0, weights=[1.0, 2.0]))
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == ["base", "candidate", "adapter", "prompts", "rows", "keep", "weights"]
    with pytest.raises(CheckpointError, match="no model folder"):
        verify(setup.options(tmp_path / "nowhere"))
