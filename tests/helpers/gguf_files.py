"""GGUF files for tests: models to write as such, and llama.cpp to run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports import TOKENS, Answers, prompts, run_driver
from gguf import GGUFReader, ReaderTensor

from gptoss_ft.harmony.messages import Conversation, Message
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import packaged_vocabulary
from gptoss_ft.model.tiny import TinyOptions, write_tiny

CHATS = (
    [{"role": "user", "content": "Olá, você! 12345 naïve 日本語 🙂"}],
    [
        {"role": "system", "content": "Be brief.\n\nAnd kind."},
        {"role": "user", "content": "it's  two  spaces\n\nand lines"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "def f(x):\n    return x ** 2"},
    ],
)


def write_model(out: Path, **sizes: int) -> Path:
    """A small model with the whole vocabulary and with YaRN's range as llama.cpp cuts it."""
    smaller = {"layers": 2, "hidden_size": 64, "intermediate_size": 96}
    write_tiny(out, TinyOptions(**(smaller | sizes)))
    config = json.loads((out / "config.json").read_text())
    config["rope_scaling"]["truncate"] = True
    (out / "config.json").write_text(json.dumps(config))
    return out


def tensors_of(file: Path) -> dict[str, ReaderTensor]:
    """The tensors of a GGUF file as the gguf package reads them."""
    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


def ask_llama_cpp(model: Path, folder: Path, adapter: Path | None = None) -> Answers:
    """llama.cpp's answers, with everything computed in float32."""
    asked = {"prompts": prompts(), "tokens": TOKENS}
    found = run_driver("llama_cpp.py", model, folder, adapter, **asked)
    return Answers(torch.from_numpy(np.load(folder / "out.logits.npy")), found["greedy"])


def rendered_chats(**settings: Any) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Plain chats at every effort: as a server is asked for them, and as our renderer writes them.

    Args:
        settings: of the renderer, such as its date.
    """
    asked, expected = [], []
    for effort in ("low", "medium", "high"):
        renderer = Renderer(packaged_vocabulary(), RenderOptions(effort=effort, **settings))
        for chat in CHATS:
            messages = tuple(Message(row["role"], row["content"]) for row in chat)
            expected.append(renderer.prompt(Conversation(messages)))
            given = {"reasoning_effort": effort}
            asked.append({"messages": chat, "chat_template_kwargs": given})
    return asked, expected
