"""The command `train` before training: the run's name, and contradictions."""

from __future__ import annotations

import pytest
import yaml

from gptoss_ft.context import Context
from gptoss_ft.train.command import adapter_problems, named, run_name


@pytest.mark.parametrize(
    ("name", "context", "expected"),
    [
        ("mine", Context(recipe="lora_20b"), "mine"),
        ("", Context(recipe="lora_20b"), "lora_20b"),
        ("", Context(), "sft"),
        ("mine", Context(job=0), "mine-0"),
        ("", Context(recipe="demo", job=3), "demo-3"),
    ],
)
def test_the_name_of_a_run(name: str, context: Context, expected: str) -> None:
    assert run_name(name, context) == expected


@pytest.mark.parametrize("line", ["name: ''", "name: a", "name: 'a\n\n  b'", "name: |\n  a\n\n  b"])
@pytest.mark.parametrize("name", ["demo-0", "1e3", 'Olá: "x" \\1', "a\nb"])
def test_the_name_is_written_into_the_configuration(line: str, name: str) -> None:
    config = yaml.safe_load(named(f"{line}\noutput: outputs\npart:\n  name: kept\n", name))
    assert config == {"name": name, "output": "outputs", "part": {"name": "kept"}}


def test_settings_of_a_fresh_adapter_do_not_go_with_a_trained_one() -> None:
    assert adapter_problems(["adapter", "adapter.r", "sft"]) == []
    assert adapter_problems(["adapter.init", "name"]) == []
    found = adapter_problems(["adapter.init", "adapter.r", "adapter", "name"])
    assert [problem.where for problem in found] == ["adapter", "adapter.r"]
