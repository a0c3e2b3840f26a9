"""The table of `make runtimes`: its verdict, and all of it under the marker `runtime`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from exports import TOKENS
from runtimes.cases import Case, all_cases
from runtimes.table import Result, as_table, main, matching

CASE = Case(runtime="r", form="f", driver="d", model=(), reference="x", limit=1e-4)
GOOD = Result(CASE, difference=1e-5, agreement=(TOKENS,) * 8, seconds=1.0)


@pytest.mark.parametrize(
    ("result", "passes"),
    [
        (GOOD, True),
        (replace(GOOD, difference=2e-4), False),
        (replace(GOOD, difference=float("nan")), False),
        (replace(GOOD, agreement=(TOKENS, TOKENS - 1)), False),
        (Result(CASE, failure="no such file"), False),
        (replace(GOOD, case=replace(CASE, limit=None), difference=0.5, agreement=(3,)), True),
        (Result(replace(CASE, limit=None), failure="no such file"), False),
    ],
)
def test_verdict(result: Result, passes: bool) -> None:
    assert result.passes is passes
    assert ("falls short" in as_table([result])) is not passes


def test_agreement_ends_at_the_first_difference() -> None:
    assert matching([1, 2, 3], [1, 2, 3]) == 3
    assert matching([1, 2, 3], [1, 5, 3]) == 1


def test_what_is_required() -> None:
    """The limits that a release is held to."""
    limits = {
        (case.runtime, case.form): (case.measure, case.limit)
        for case in all_cases("demo", onnx=True, vllm=True)
        if case.limit is not None
    }
    assert limits == {
        ("gpt-oss reference", "openai, MXFP4"): ("log_probs", 1e-4),
        ("llama.cpp", "gguf f32"): ("logits", 1e-4),
        ("llama.cpp", "gguf f32 + gguf-lora"): ("log_probs", 1e-3),
        ("ONNX Runtime GenAI", "onnx fp32"): ("log_probs", 1e-3),
        ("vLLM", "bf16 folder at float32"): ("top", 1e-3),
    }


@pytest.mark.runtime
def test_every_runtime_agrees(tmp_path: Path) -> None:
    """As `make runtimes`, on the models of `make demo`."""
    assert main([f"work={tmp_path}"]) == 0
