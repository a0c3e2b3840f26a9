"""Asks llama.cpp's server: `python llama_cpp_server.py INPUT.json OUTPUT.json`; needs xllamacpp.

INPUT: {"model": a .gguf file, "adapter": a LoRA .gguf file or "", "texts": [text], "chats":
[{"messages": […], …}], "prompts": [[ids]], "tokens": n, "at_once": how many prompts
are answered together, 1 if not said}.
OUTPUT: {"texts": [[ids]], "chats": [text], "answers": [[ids]]}: what `/tokenize` makes of the
texts, with the names of special tokens read as such, what `/apply-template` makes of the chats, and
what `/completion` answers to the prompts, greedily, up to the token that ends an answer.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xllamacpp

CONTEXT = 2048  # tokens of one prompt and its answer


def start(model: str, adapter: str, at_once: int) -> xllamacpp.Server:
    """Starts a server on a free port of this machine; it ends with this process."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = CONTEXT * at_once
    params.n_parallel = at_once
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.use_jinja = True
    if adapter:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = adapter, 1.0
        params.lora_adapters = [lora]
    return xllamacpp.Server(params)


def ask(server: xllamacpp.Server, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of an endpoint."""
    request = urllib.request.Request(
        f"{server.listening_address}/{endpoint}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def main() -> None:
    """Reads the questions and writes the answers."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    at_once = asked.get("at_once", 1)
    server = start(asked["model"], asked["adapter"], at_once)
    greedy = {"n_predict": asked["tokens"], "temperature": 0, "return_tokens": True}
    text = {"add_special": False, "parse_special": True}

    def answer(prompt: list[int]) -> list[int]:
        return ask(server, "completion", {"prompt": prompt, **greedy})["tokens"]

    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(answer, asked["prompts"]))
    found = {
        "texts": [
            ask(server, "tokenize", {"content": content, **text})["tokens"]
            for content in asked["texts"]
        ],
        "chats": [ask(server, "apply-template", chat)["prompt"] for chat in asked["chats"]],
        "answers": answers,
    }
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
