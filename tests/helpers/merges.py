"""Bases, adapters and comparisons that the tests of the merge share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock import load_tensors, write_stock_adapter, write_trained_tensors

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.errors import MergeError
from gptoss_ft.merge.options import MergeOptions
from gptoss_ft.merge.plan import plan_merge
from gptoss_ft.merge.planned import MergePlan
from gptoss_ft.merge.stream import merge
from gptoss_ft.model.tiny import TinyOptions, write_tiny

SMALL = TinyOptions(
    layers=2,
    hidden_size=64,
    intermediate_size=32,
    heads=2,
    kv_heads=1,
    experts=4,
    experts_per_token=2,
)


@dataclass(frozen=True)
class Case:
    """A random adapter: its folder, what it adds to each weight, the tensors it trains in full."""

    adapter: Path
    deltas: dict[str, torch.Tensor]
    trained: dict[str, torch.Tensor]


def make_case(base: Path, adapter: Path, *, experts: bool, seed: int = 0) -> Case:
    """LoRA on attention and perhaps experts, and every other small tensor trained."""
    deltas = write_stock_adapter(base, adapter, experts=experts, seed=seed)
    return Case(adapter, deltas, write_trained_tensors(base, adapter, seed))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller base whose experts are not square, for what needs no logits."""
    out = tmp_path_factory.mktemp("small") / "model"
    write_small(out)
    return out


@pytest.fixture(scope="module")
def full(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LoRA on attention and experts of the small base, every other small tensor trained."""
    return make_case(small, tmp_path_factory.mktemp("full") / "adapter", experts=True)


@pytest.fixture(scope="module")
def lossless(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """LoRA on attention of the small base, every other small tensor trained, experts untouched."""
    return make_case(small, tmp_path_factory.mktemp("lossless") / "adapter", experts=False)


def write_small(out: Path, rows: int = 512) -> None:
    """A base whose experts are not square, vocabulary cut to `rows`, for what needs no logits."""
    write_tiny(out, SMALL)
    config = json.loads((out / "config.json").read_text())
    config |= {"vocab_size": rows, "pad_token_id": 0, "eos_token_id": 1}
    (out / "config.json").write_text(json.dumps(config))
    file = out / "model-00001-of-00002.safetensors"
    tensors = {name: tensor[:rows].clone() for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def edit_tensor(folder: Path, name: str, change: object) -> None:
    """Applies a function to one tensor of a checkpoint, in place or by what it returns."""
    info = open_checkpoint(folder).tensors[name]
    tensors = load_file(info.file)
    changed = change(tensors[name])  # type: ignore[operator]
    tensors[name] = tensors[name] if changed is None else changed
    save_file(tensors, info.file, metadata={"format": "pt"})


def merge_to(base: Path, adapter: object, out: Path, to: str, **settings: object) -> MergePlan:
    """Merges and checks the size of what was written."""
    adapter = list(map(str, adapter)) if isinstance(adapter, list) else str(adapter)
    plan = plan_merge(MergeOptions(str(base), adapter, str(out), to, **settings))
    result = merge(plan)
    assert not result.problems
    written = {**load_tensors(out), **load_tensors(out / "expert_adapter")}
    assert result.nbytes == plan.nbytes == sum(tensor.nbytes for tensor in written.values())
    return plan


def assert_rounded(merged: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    """`merged` is the bfloat16 nearest to `exact`, but for float32 noise that may tip a tie."""
    assert merged.dtype == torch.bfloat16
    spacing = torch.exp2(torch.frexp(exact).exponent.float() - 8)
    error = (merged.float() - exact).abs()
    assert (error <= spacing / 2 + 1e-6).all(), name
    assert (merged == exact.to(torch.bfloat16)).float().mean() > 0.999, name


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    same_form = a.dtype == b.dtype and a.shape == b.shape
    return same_form and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refusal(out: Path, *, base: Path, adapter: object, **settings: object) -> str:
    """The message of a merge that is refused and leaves nothing behind."""
    there = sorted(out.parent.rglob("*"))
    adapter = list(map(str, adapter)) if isinstance(adapter, list) else str(adapter)
    with pytest.raises(MergeError) as caught:
        merge(plan_merge(MergeOptions(str(base), adapter, str(out), **settings)))
    assert sorted(out.parent.rglob("*")) == there, "something was left behind"
    return str(caught.value)
