"""What calibration records is what stock transformers' experts see, and which rows it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from merges import SMALL, make_case
from peft import PeftModel
from stock import load_stock, set_tensors

from gptoss_ft.adapters.combine import Changes, combine, read_factors
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.errors import DataError, MergeError
from gptoss_ft.inference.hidden_states import packs
from gptoss_ft.inference.token_rows import read_rows
from gptoss_ft.merge.calibrate import DONE, Calibration, calibrate
from gptoss_ft.model.tiny import write_tiny

ROWS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short conversations."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How many lamps has house {n}?"},
                {"role": "assistant", "content": f"House {n} has {n * n} lamps."},
            ]
        }
        for n in range(12)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def tuned(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Changes, Calibration]:
    """A base, LoRA on attention and experts with every small tensor trained, its calibration."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_tiny(folder / "base", SMALL)
    case = make_case(folder / "base", folder / "adapter", experts=True)
    checkpoint = open_checkpoint(folder / "base")
    changes = combine([(open_adapter(case.adapter), 1.0)])
    return checkpoint, changes, calibrate(checkpoint, changes, data, ROWS, folder / "inputs")


def _stock_inputs(
    checkpoint: Checkpoint, changes: Changes, data: Path
) -> dict[int, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Per layer and row: what stock experts are given, their indices, and their gate_up output."""
    model = load_stock(checkpoint.path)
    adapter = next(iter(changes.updates.values()))[0].A.file.parent
    trained = {name: values[0].info for name, values in changes.trained.items()}
    set_tensors(model, {name: _read(info.file, name) for name, info in trained.items()})
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
    for number, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        seen[number] = []

        def keep(
            module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], number: int = number
        ) -> None:
            hidden = inputs[0].flatten(0, -2)
            z = torch.einsum("th,ehi->eti", hidden, module.gate_up_proj)
            z = z + module.gate_up_proj_bias[:, None]
            seen[number].append((hidden, inputs[1], module._apply_gate(z)))

        experts.register_forward_pre_hook(keep)
    with torch.no_grad():
        for row in read_rows(checkpoint.path, data, ROWS):
            model(input_ids=torch.tensor([row.ids]))
    return seen


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(file)[name]


def test_inputs_are_those_of_stock_transformers(
    tuned: tuple[Checkpoint, Changes, Calibration], data: Path
) -> None:
    checkpoint, changes, calibration = tuned
    seen = _stock_inputs(checkpoint, changes, data)
    reached = 0
    for layer, rows in seen.items():
        for expert in range(SMALL.experts):
            hits = [(indices == expert).any(-1) for _, indices, _ in rows]
            prefix = f"model.layers.{layer}.mlp.experts"
            for name, expected in (
                (
                    "gate_up_proj",
                    [hidden[hit] for (hidden, _, _), hit in zip(rows, hits, strict=True)],
                ),
                (
                    "down_proj",
                    [act[expert][hit] for (_, _, act), hit in zip(rows, hits, strict=True)],
                ),
            ):
                found, held_out = calibration.inputs(f"{prefix}.{name}", expert)
                wanted = torch.cat(expected)
                assert found.shape == wanted.shape
                assert (found - wanted).norm() <= 5e-3 * wanted.norm(), (
                    "more than bfloat16 explains"
                )
                counts = [len(part) for part in expected]
                assert held_out.tolist() == [
                    number % 8 == 7 for number, count in enumerate(counts) for _ in range(count)
                ]
                reached += len(found)
    tokens = sum(len(row.ids) for row in read_rows(checkpoint.path, data, ROWS))
    assert reached == 2 * SMALL.layers * SMALL.experts_per_token * tokens
    summary = json.loads((calibration.folder / DONE).read_text())
    assert (summary["rows"], summary["tokens"]) == (ROWS, tokens)


def test_rounding_depends_on_neither_order_nor_run(
    tuned: tuple[Checkpoint, Changes, Calibration], data: Path
) -> None:
    checkpoint, changes, calibration = tuned
    again = calibrate(checkpoint, changes, data, ROWS, calibration.folder)
    stems = list(changes.expert_stems)

    def rounded(calibration: Calibration, stem: str) -> torch.Tensor:
        blocks, scales = (checkpoint.read(f"{stem}_{part}") for part in ("blocks", "scales"))
        update = read_factors(changes.updates[stem]).expert(1)
        result = calibration.round(stem, 1, blocks[1], scales[1], update)
        assert 0 < result.error < result.effect
        return result.rounded.blocks

    forward = {stem: rounded(calibration, stem) for stem in stems}
    backward = {stem: rounded(again, stem) for stem in reversed(stems)}
    assert all(torch.equal(forward[stem], backward[stem]) for stem in stems)


def test_a_finished_calibration_is_not_run_again(
    tuned: tuple[Checkpoint, Changes, Calibration], tmp_path: Path
) -> None:
    checkpoint, changes, calibration = tuned
    before = {file: file.stat().st_mtime_ns for file in calibration.folder.iterdir()}
    calibrate(checkpoint, changes, tmp_path / "no such file", ROWS, calibration.folder)
    assert before == {file: file.stat().st_mtime_ns for file in calibration.folder.iterdir()}


def test_too_few_or_bad_rows_are_refused(
    tuned: tuple[Checkpoint, Changes, Calibration], data: Path, tmp_path: Path
) -> None:
    checkpoint, changes, _ = tuned
    with pytest.raises(MergeError, match="at least 8 rows"):
        calibrate(checkpoint, changes, data, 7, tmp_path / "few")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(data.read_text().splitlines()[0] + '\n{"messages": []}\n{"what": 1}\n')
    with pytest.raises(DataError) as caught:
        calibrate(checkpoint, changes, bad, 20, tmp_path / "few")
    wheres = " ".join(problem.where for problem in caught.value.problems)
    assert f"{bad}:2" in wheres and f"{bad}:3" in wheres
    assert not (tmp_path / "few").exists()


def test_packs_hold_whole_rows_in_order(
    data: Path, tuned: tuple[Checkpoint, object, object]
) -> None:
    rows = read_rows(tuned[0].path, data, 12)
    found = list(packs(rows, 2 * len(rows[0].ids) + 5))
    assert [row for pack in found for row in pack.rows] == rows
    assert len(found) == 6
    assert torch.equal(torch.cat([pack.numbers for pack in found]).unique(), torch.arange(12))
    pack = found[1]
    ids = [token for row in pack.rows for token in row.ids]
    for row in pack.rows:
        answer = [row.ids[position + 1] for position in row.scored]
        assert row.ids == (*row.prompt, *answer)
    expected = [i for i, number in enumerate(pack.numbers.tolist()) if number >= 0]
    assert set(pack.scored.tolist()) < set(expected) and max(pack.scored.tolist()) < len(ids)
