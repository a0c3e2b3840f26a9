"""Asks OpenAI's reference implementation: `python gpt_oss_reference.py INPUT.json OUTPUT.json`.

In an environment with torch, safetensors and `gpt-oss` (installed without its dependencies).

INPUT: {"model": a folder in its layout, "prompts": [[ids]], "tokens": n, "drafts": [[ids]], what
the answers may be}.
OUTPUT: {"greedy": [[ids]], "seconds": wall time}; beside it OUTPUT.logits.npy, the logits of every
prompt's next token, float32 [prompts, vocabulary].

The model is the package's own, loaded by its own loader and computed in float32.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gpt_oss.torch.model import Transformer


@torch.inference_mode()
def answer(
    model: Transformer, prompt: list[int], tokens: int, draft: list[int]
) -> tuple[np.ndarray, list[int]]:
    """Logits of the prompt's next token, and that many greedy tokens.

    The model has no cache. A draft saves passes, and cannot change the answer: every pass chooses a
    token for each drafted position, of which those count that follow a draft of chosen tokens.
    """
    first: torch.Tensor | None = None
    ids: list[int] = []
    while len(ids) < tokens:
        guess = draft[len(ids) : tokens - 1] if draft[: len(ids)] == ids else []
        logits = model(torch.tensor(prompt + ids + guess, dtype=torch.int32))[-len(guess) - 1 :]
        first = logits[0] if first is None else first
        chosen = logits.argmax(-1).tolist()
        right = next((i for i, token in enumerate(guess) if token != chosen[i]), len(guess))
        ids += chosen[: right + 1]
    return first.numpy(), ids


def main() -> None:
    """Reads the questions and writes the answers."""
    asked, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    start = time.perf_counter()
    model = Transformer.from_checkpoint(asked["model"], device="cpu").float()
    answers = [
        answer(model, prompt, asked["tokens"], draft)
        for prompt, draft in zip(asked["prompts"], asked["drafts"], strict=True)
    ]
    np.save(output.with_suffix(".logits.npy"), np.stack([first for first, _ in answers]))
    greedy = [ids for _, ids in answers]
    output.write_text(json.dumps({"greedy": greedy, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
