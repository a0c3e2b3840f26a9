"""The benchmarks' machinery: weights of any size, bare products, the runner and its page."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.model.tiny import TinyOptions, tiny_config
from gptoss_ft.mxfp4.codec import unpack

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if "\ndef main()" in path.read_text())


def _config(**changes: Any) -> dict[str, Any]:
    sizes = TinyOptions(layers=2, hidden_size=64, intermediate_size=64, heads=2, kv_heads=1)
    return {**tiny_config(sizes), "vocab_size": 2048, "pad_token_id": 0, **changes}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_says_what_it_measures(script: Path) -> None:
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring is not None
    assert len(docstring.splitlines()) > 5


def test_the_catalogue_is_what_is_there() -> None:
    from catalogue import BENCHMARKS

    assert len({benchmark.name for benchmark in BENCHMARKS}) == len(BENCHMARKS)
    run = {benchmark.arguments[0] for benchmark in BENCHMARKS}
    assert run == {script.name for script in SCRIPTS} - {"results.py"}


def test_synthetic_weights_are_a_checkpoint(tmp_path: Path) -> None:
    from synthetic import RESIDUAL_STD, write_synthetic

    write_synthetic(tmp_path, _config())
    checkpoint = open_checkpoint(tmp_path).require_packed()
    shapes = expected_shapes(_config(), packed=True)
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in found.values())
    prefix = "model.layers.1.mlp.experts"
    for name, std in (("gate_up_proj", 1 / 8), ("down_proj", RESIDUAL_STD / 8)):
        values = unpack(found[f"{prefix}.{name}_blocks"], found[f"{prefix}.{name}_scales"])
        assert std / 1.5 < values.std() < std * 1.5  # scales are powers of two
    assert abs(found["model.embed_tokens.weight"].float().std() - 1) < 0.02


def test_weights_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import synthetic

    monkeypatch.setattr(synthetic, "PIECE_BYTES", 1000)
    random = np.random.Generator(np.random.SFC64(0))
    for name, shape, each in (("a_blocks", (3, 700), 1), ("lm_head.weight", (3, 700), 2)):
        pieces = list(synthetic.pieces(name, shape, random))
        assert max(map(len, pieces)) <= 1000
        assert sum(map(len, pieces)) == each * 2100


def test_a_full_disk_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthetic import write_synthetic

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    with pytest.raises(SystemExit, match="are needed where temporary files go"):
        write_synthetic(tmp_path, _config())
    assert not any(tmp_path.iterdir())


def test_full_size_at_a_tiny_size(tmp_path: Path) -> None:
    """The whole step, in a process of its own as it sets threads and watches memory."""
    config = _config()
    settings = {"tokens": 64, "rank": 2, "recompute": 0, "prefetch": 1, "cold": 1}
    code = (
        "import json, sys; from pathlib import Path; from full_size import run, extrapolate; "
        f"found = run(Path({str(tmp_path)!r}), {config!r}, {settings!r}); "
        "found |= {'layers': 2}; "
        "print(json.dumps(found | {'whole': extrapolate(found, found['layer_anon_gib'], 6)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["experts_hit"] == found["experts"] == 2 * 8
    assert math.isclose(found["loss"], math.log(2048), rel_tol=0.3)
    assert sum(found["breakdown_s"].values()) == pytest.approx(found["cpu_s"], abs=0.1)
    attention = (64 + 128) * 2 + 2 * (64 + 64)
    assert found["trained_parameters"] == 2 * 2 * (attention + 8 * (64 + 128 + 64 + 64))
    assert 0 < found["anon_gib"] < found["rss_gib"]
    loss = found["breakdown_s"]["loss"]
    assert found["whole"]["cpu_s"] == pytest.approx(loss + (found["cpu_s"] - loss) * 3, abs=0.1)


def test_operations_are_those_of_the_formula() -> None:
    from arithmetic import Matrices, StepShape, operations, step_seconds

    config = _config()
    shape = StepShape(config, [[5, 0, 3], [8, 0, 0]], tokens=10, scored=4, rank=2)
    matrices = 64 * 128 + 2 * 64 * 64 + 128 * 64, 64 * 128 + 64 * 64
    factors = (64 + 128) * 2 + 2 * (64 + 64), (64 + 128) + (64 + 64)
    frozen = 2 * 2 * (2 * 10 * matrices[0] + 16 * matrices[1])
    low_rank = 6 * factors[0] * 2 * 10, 6 * factors[1] * 2 * 16
    head = 2 * 2 * 4 * 64 * 2048
    assert operations(shape) == frozen + 2 * low_rank[0] + low_rank[1] + head
    assert set(step_seconds(shape, Matrices())) == {"head", "attention", "experts", "low_rank"}


def test_an_exponent_above_the_arithmetic_shows() -> None:
    from scaling import AXES, TOLERANCE, axis_result

    values = AXES["tokens"]
    bare = {"unpack": [0.0, 0.0], "update": [0.0, 0.0]}

    def measured(step: float, products: float) -> dict[str, list[float]]:
        # The machine is half as fast in the second repeat.
        return {**bare, "step": [step, 2 * step], "products": [products, 2 * products]}

    points = [measured(2e-6 * n**1.5, 1e-3 * n) for n in values]
    found = axis_result("tokens", points)
    assert found["exponent"] == pytest.approx(1.5)
    assert found["arithmetic_exponent"] == pytest.approx(1, abs=0.01)
    assert found["excess"] == pytest.approx(0.5)
    points = [measured(3e-3 * n + 1, 1e-3 * n) for n in values]
    assert axis_result("tokens", points)["excess"] < TOLERANCE


FULL_SIZE = {
    "over_gemm": 1.2,
    "anon_gib": 3.5,
    "tokens": 512,
    "cpu_s": 100.0,
    "system_s": 5.0,
    "wall_s": 110.0,
    "layers": 24,
    "breakdown_s": {"loss": 10.0, "forward experts": 90.0},
    "over_fastest_gemm": 1.3,
    "fastest_gemm_s": {"head": 8.0, "experts": 75.0},
}


def _stored(folder: Path) -> None:
    """Results as the runner stores them."""
    axis = {
        "values": [1, 10],
        "cpu_s": [1.5, 14.0],
        "arithmetic_s": [1.0, 10.0],
        "over_arithmetic": [1.5, 1.4],
        "exponent": 0.97,
        "arithmetic_exponent": 1.0,
        "excess": -0.03,
    }
    longer = {"tokens": 2048, "cpu_s": 250.0, "over_gemm": 1.4, "fastest_gemm_s": {"all": 166.0}}
    long = {**FULL_SIZE, **longer}
    part = {
        **FULL_SIZE,
        "layers": 4,
        "trained_parameters": 4 * 2**30,
        "layer_anon_gib": 0.25,
        "whole": {"layers": 36, "cpu_s": 820.0, "wall_s": 902.0, "anon_gib": 395.5},
    }
    results = {
        "scaling": {"axes": dict.fromkeys(("tokens", "experts", "rank"), axis)},
        "full_size_20b": FULL_SIZE,
        "full_size_20b_2048": long,
        "full_size_120b": part,
    }
    folder.mkdir()
    for name, result in results.items():
        entry = {
            "command": f"python benchmarks/{name}.py",
            "date": "2025-01-31",
            "exit_code": 0,
            "machine": {
                "processor": "A processor",
                "vector_units": "AVX2",
                "cores": 2,
                "memory_gib": 24.0,
                "system": "Linux x86_64",
            },
            "versions": {"python": "3.11", "torch": "2.13"},
            "result": result,
        }
        (folder / f"{name}.json").write_text(json.dumps(entry))


def test_the_page_comes_from_what_is_stored(tmp_path: Path) -> None:
    from results import write_page

    _stored(tmp_path / "results")
    write_page(tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "A processor, 2 cores, AVX2, 24.0 GiB" in page
    meaning = "CPU time over that of its own matrix products by torch.mm"
    assert f"| over_gemm | {meaning} | 1.2 | ≤ 1.35 | yes |" in page
    assert f"2,048 tokens: {meaning}, 1.4 (target ≤ 1.35)" in page
    assert "| 10 | 14 | 10 | 1.4 |" in page
    assert "2,048 over 512 tokens: 1.60 by CPU time, 4.00 by the clock, 1.55 without" in page
    assert "2.00 for the matrix products alone" in page
    assert "over the short one's" not in page
    assert "10.0 + (100.0 - 10.0) · 36 / 4 = 820 s" in page
    assert "3.50 + 32 · (0.250 + 12.000) = 395.50 GiB" in page
    assert "Not run yet: render" in page
    for name in ("scaling", "full_size_20b"):
        assert f"({name}.svg)" in page
        assert (tmp_path / f"{name}.svg").read_text().count("<path") > 3


def test_a_long_step_that_gains_too_little_is_among_what_is_missed(tmp_path: Path) -> None:
    from results import write_page

    _stored(tmp_path / "results")
    file = tmp_path / "results/full_size_20b_2048.json"
    entry = json.loads(file.read_text())
    entry["result"]["cpu_s"] = 350.0
    file.write_text(json.dumps(entry))
    write_page(tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "over the short one's, 1.14 (target ≥ 1.4)" in page.split("## ")[0]


def test_the_same_figures_give_the_same_files(tmp_path: Path) -> None:
    from results import write_page

    _stored(tmp_path / "results")
    write_page(tmp_path)
    first = {file.name: file.read_bytes() for file in tmp_path.glob("*.*")}
    write_page(tmp_path)
    assert first == {file.name: file.read_bytes() for file in tmp_path.glob("*.*")}


def test_chosen_benchmarks() -> None:
    from catalogue import BENCHMARKS
    from results import chosen

    assert chosen([]) == list(BENCHMARKS)
    assert [benchmark.name for benchmark in chosen(["only=loss,epoch"])] == ["loss", "epoch"]
    assert chosen(["only="]) == []
    with pytest.raises(SystemExit, match="unknown: los; known: render"):
        chosen(["only=los"])
    with pytest.raises(SystemExit, match="usage"):
        chosen(["loss"])


def test_a_benchmark_without_result_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import results
    from catalogue import Benchmark

    (tmp_path / "broken.py").write_text("print('no object')")
    (tmp_path / "answer.py").write_text("import sys; print('{\"x\": 1}'); sys.exit(1)")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert results.run(Benchmark("broken", ("broken.py",), "")) is None
    found = results.run(Benchmark("answer", ("answer.py", "a=1"), ""))
    assert found is not None
    assert (found["result"], found["exit_code"]) == ({"x": 1}, 1)
    assert found["command"] == "python benchmarks/answer.py a=1"
    assert str(tmp_path) not in json.dumps(found)
    assert found["versions"]["torch"] == torch.__version__
