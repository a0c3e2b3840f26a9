"""Which layers' pages are asked for, when, and that asking brings them into the file cache."""

from __future__ import annotations

import copy
import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch
from transformers import GptOssConfig

from gptoss_ft.adapters.model import AdapterInfo, add_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.model.cpu import prefetch
from gptoss_ft.model.cpu.prefetch import will_need
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.load import load_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise is Linux's")
LAYERS = 4


def _blocks(model: torch.nn.Module) -> list[PackedExperts]:
    return [module for module in model.modules() if isinstance(module, PackedExperts)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PackedExperts]:
    """The blocks that were asked for, in order."""
    found: list[PackedExperts] = []
    monkeypatch.setattr(prefetch, "will_need", found.append)
    return found


def test_forward_asks_for_the_next_and_backward_for_the_last(
    tiny_checkpoint: Path, asked: list[PackedExperts]
) -> None:
    model = load_model(open_checkpoint(tiny_checkpoint))
    options = AdapterOptions(["attention", "experts"], r=4)
    adapted = add_adapter(model, options, AdapterInfo((), "", ""))
    blocks = _blocks(adapted)
    assert len(blocks) == LAYERS
    logits = adapted(torch.arange(8)[None]).logits
    assert asked == blocks[1:]
    asked.clear()
    logits.sum().backward()
    assert asked == blocks[-2::-1]


def test_without_gradients_only_forward(tiny_checkpoint: Path, asked: list[PackedExperts]) -> None:
    model = load_model(open_checkpoint(tiny_checkpoint))
    model(torch.arange(8)[None])
    assert asked == _blocks(model)[1:]


def test_few_tokens_ask_for_nothing(tiny_checkpoint: Path, asked: list[PackedExperts]) -> None:
    """Four experts of eight for each of three tokens: less than two pairs per expert."""
    model = load_model(open_checkpoint(tiny_checkpoint))
    model(torch.arange(3)[None])
    assert asked == []


def test_a_copy_asks_for_its_own_layers(tiny_checkpoint: Path, asked: list[PackedExperts]) -> None:
    model = copy.deepcopy(load_model(open_checkpoint(tiny_checkpoint)))
    model(torch.arange(8)[None])
    assert asked == _blocks(model)[1:]


def _block(hidden: int) -> PackedExperts:
    config = GptOssConfig(hidden_size=hidden, intermediate_size=hidden, num_local_experts=8)
    return PackedExperts(config)


def test_memory_that_is_no_file_is_left_alone() -> None:
    block = _block(hidden=64)
    before = block.gate_up_proj.clone()
    will_need(block)
    assert torch.equal(block.gate_up_proj, before)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder in the checkout: temporary files may lie in memory, where nothing is read ahead."""
    with tempfile.TemporaryDirectory(prefix=".test-", dir=Path(__file__).parent) as folder:
        yield Path(folder)


def test_asking_reads_the_pages(on_disk: Path) -> None:
    block, file = _block(hidden=1024), on_disk / "weights"
    file.write_bytes(bytes(block.gate_up_proj.nbytes))
    storage = torch.UntypedStorage.from_file(str(file), False, block.gate_up_proj.nbytes)
    mapped = torch.tensor([], dtype=torch.uint8).set_(storage).view(block.gate_up_proj.shape)
    block.gate_up_proj.data = mapped
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert _resident(mapped) == 0
    will_need(block)
    deadline = time.monotonic() + 20
    while _resident(mapped) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _resident(mapped) == 1


def _resident(tensor: torch.Tensor) -> float:
    """Share of a tensor's pages that are in memory."""
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    start = tensor.data_ptr() // PAGESIZE * PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    pages = ctypes.create_string_buffer(-(-size // PAGESIZE))
    assert libc.mincore(start, size, pages) == 0
    return sum(byte & 1 for byte in pages.raw) / len(pages)
