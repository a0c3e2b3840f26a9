"""Asks llama.cpp: `python llama_cpp.py INPUT.json OUTPUT.json`, in an environment with xllamacpp.

INPUT: {"model": a .gguf file, "adapter": a LoRA .gguf file or "", "prompts": [[ids]], "tokens": n}.
OUTPUT: {"greedy": [[ids]], "seconds": wall time}; beside it OUTPUT.npy, log-probabilities of every
prompt's next token, float32 [prompts, vocabulary], and OUTPUT.logits.npy, the logits.

The xllamacpp wheel is one library that also exports llama.cpp's C interface (`llama.h`), which
gives exact logits. Its parameter structures change between versions, so only the fields up to the
last one that is set are declared, and their defaults are checked before use. Everything is computed
in float32: the key-value cache too, without flash attention.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

F32 = 0
F16 = 1
NO_FLASH_ATTENTION = 0
THREADS = 1  # its threads wait for each other in a loop, which is slow on a busy machine


class ModelParams(ctypes.Structure):
    """`llama_model_params`, passed on as it comes."""

    _fields_ = (("fields", ctypes.c_uint64 * 32),)


class ContextParams(ctypes.Structure):
    """The head of `llama_context_params`, and room for the rest."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        ("n_rs_seq_to_n_outputs_max_per_seq", ctypes.c_uint32 * 3),
        *((name, ctypes.c_int32) for name in ("n_threads", "n_threads_batch")),
        ("ctx_type_to_attention_type", ctypes.c_int32 * 4),
        ("flash_attn_type", ctypes.c_int32),
        ("rope", ctypes.c_uint32 * 8),
        ("cb_eval", ctypes.c_void_p * 2),
        *((name, ctypes.c_int32) for name in ("type_k", "type_v")),
        ("rest", ctypes.c_uint64 * 32),
    )


class Batch(ctypes.Structure):
    """`llama_batch`: tokens of one sequence, of which the last one's logits are wanted."""

    _fields_ = (("n_tokens", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6))


@dataclass(frozen=True)
class Llama:
    """A loaded model with its context."""

    interface: ctypes.CDLL
    context: int
    vocabulary: int


def load_library() -> ctypes.CDLL:
    """The library in the xllamacpp wheel, with the signatures that are used here."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("xllamacpp is not installed here")
    (file,) = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
    library = ctypes.CDLL(str(file))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures = {
        "llama_model_default_params": (ModelParams, ()),
        "llama_context_default_params": (ContextParams, ()),
        "llama_model_load_from_file": (pointer, (ctypes.c_char_p, ModelParams)),
        "llama_init_from_model": (pointer, (pointer, ContextParams)),
        "llama_model_get_vocab": (pointer, (pointer,)),
        "llama_vocab_n_tokens": (number, (pointer,)),
        "llama_adapter_lora_init": (pointer, (pointer, ctypes.c_char_p)),
        "llama_set_adapters_lora": (number, (pointer, pointer, ctypes.c_size_t, pointer)),
        "llama_get_memory": (pointer, (pointer,)),
        "llama_memory_clear": (None, (pointer, ctypes.c_bool)),
        "llama_batch_get_one": (Batch, (pointer, number)),
        "llama_decode": (number, (pointer, Batch)),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (pointer, number)),
        "llama_log_set": (None, (pointer, pointer)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def load(model: str, adapter: str, longest: int) -> Llama:
    """Loads a model, and an adapter if there is one, for sequences of up to `longest` tokens."""
    library = load_library()
    params = library.llama_context_default_params()
    known = (params.n_ctx, params.n_batch, params.n_ubatch, params.type_k, params.type_v)
    if known != (512, 2048, 512, F16, F16):
        sys.exit(f"this version of xllamacpp has other context parameters: {known}")
    params.n_ctx = params.n_batch = params.n_ubatch = longest
    params.n_threads = params.n_threads_batch = THREADS
    params.type_k = params.type_v = F32
    params.flash_attn_type = NO_FLASH_ATTENTION
    loaded = library.llama_model_load_from_file(
        model.encode(), library.llama_model_default_params()
    )
    if not loaded:
        sys.exit(f"llama.cpp cannot load {model}")
    context = library.llama_init_from_model(loaded, params)
    if not context:
        sys.exit("llama.cpp cannot make a context")
    if adapter:
        lora = library.llama_adapter_lora_init(loaded, adapter.encode())
        if not lora:
            sys.exit(f"llama.cpp cannot load {adapter}")
        adapters, scales = (ctypes.c_void_p * 1)(lora), (ctypes.c_float * 1)(1.0)
        if library.llama_set_adapters_lora(context, adapters, 1, scales):
            sys.exit(f"llama.cpp cannot use {adapter}")
    rows = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))
    return Llama(library, context, rows)


def logits_after(llama: Llama, ids: Sequence[int]) -> np.ndarray:
    """Appends ids to the sequence; the next token's logits, float32 `[vocabulary]`."""
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    batch = llama.interface.llama_batch_get_one(tokens, len(ids))
    if llama.interface.llama_decode(llama.context, batch):
        sys.exit("llama.cpp failed to decode")
    logits = llama.interface.llama_get_logits_ith(llama.context, -1)
    return np.ctypeslib.as_array(logits, (llama.vocabulary,)).copy()


def answer(llama: Llama, prompt: Sequence[int], tokens: int) -> tuple[np.ndarray, list[int]]:
    """Logits of the prompt's next token, and that many greedy tokens."""
    llama.interface.llama_memory_clear(llama.interface.llama_get_memory(llama.context), True)
    first = logits = logits_after(llama, prompt)
    greedy = [int(first.argmax())]
    while len(greedy) < tokens:
        logits = logits_after(llama, greedy[-1:])
        greedy.append(int(logits.argmax()))
    return first, greedy


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float32, computed in float64."""
    exact = logits.astype(np.float64)
    shifted = exact - exact.max(-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)


def main() -> None:
    """Reads the questions and writes the answers."""
    asked = json.loads(Path(sys.argv[1]).read_text())
    output = Path(sys.argv[2])
    longest = max(map(len, asked["prompts"])) + asked["tokens"]
    start = time.perf_counter()
    llama = load(asked["model"], asked["adapter"], longest)
    answers = [answer(llama, prompt, asked["tokens"]) for prompt in asked["prompts"]]
    logits = np.stack([first for first, _ in answers])
    np.save(output.with_suffix(".logits.npy"), logits)
    np.save(output.with_suffix(".npy"), log_softmax(logits))
    greedy = [ids for _, ids in answers]
    output.write_text(json.dumps({"greedy": greedy, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
