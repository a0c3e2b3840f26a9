"""Asks ONNX Runtime GenAI: `python onnx_genai.py INPUT.json OUTPUT.json`.

In an environment with onnxruntime-genai and numpy.

INPUT: {"model": a model folder of its builder, "prompts": [[ids]], "tokens": n}.
OUTPUT: {"greedy": [[ids]], "seconds": wall time}; beside it OUTPUT.logits.npy, the logits of every
prompt's next token, float32 [prompts, vocabulary].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

WINDOW = 128  # the runtime refuses sequences whose largest length is below the sliding window


def answer(model: og.Model, prompt: list[int], tokens: int) -> tuple[np.ndarray, list[int]]:
    """Logits of the prompt's next token, and that many greedy tokens."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=max(WINDOW, len(prompt) + tokens), batch_size=1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    first = logits = next_logits(generator)
    # Token by token, because its own search ends with the token that ends the answer.
    ids = [int(logits.argmax())]
    while len(ids) < tokens:
        generator.append_tokens(np.array([ids[-1:]], dtype=np.int32))
        ids.append(int(next_logits(generator).argmax()))
    return first, ids


def next_logits(generator: og.Generator) -> np.ndarray:
    """Logits of the next token, float32 `[vocabulary]`."""
    return np.array(generator.get_logits())[0, -1].astype(np.float32)


def main() -> None:
    """Reads the questions and writes the answers."""
    asked, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    start = time.perf_counter()
    model = og.Model(asked["model"])
    answers = [answer(model, prompt, asked["tokens"]) for prompt in asked["prompts"]]
    np.save(output.with_suffix(".logits.npy"), np.stack([first for first, _ in answers]))
    greedy = [ids for _, ids in answers]
    output.write_text(json.dumps({"greedy": greedy, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
