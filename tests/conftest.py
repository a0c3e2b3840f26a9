"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptoss_ft.model.tiny import TinyOptions, write_tiny


@pytest.fixture(autouse=True)
def _two_threads_at_most() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gpt-oss checkpoint with the default sizes, shared and never written to."""
    out = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny(out, TinyOptions())
    return out
