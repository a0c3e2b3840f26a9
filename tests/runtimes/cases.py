"""What `make runtimes` runs: exports of the demo's models, each with what it must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        runtime, form: what runs, and what it runs.
        driver: script of this folder.
        environment: where driver and export run, see `environments`.
        model: arguments of the export command that makes what is loaded.
        adapter: arguments of the one that makes an adapter beside it; empty for none.
        reference: folder in the demo, or two joined with `+`, base and adapter.
        truncated: YaRN's range in the reference as llama.cpp always cuts it.
        measure: what is compared: `logits`, `log_probs`, `top` (log-probabilities of the
            likeliest tokens), or nothing but whether it loads.
        limit: largest difference allowed, greedy answers then being equal; None when both are
            shown and not judged.
    """

    runtime: str
    form: str
    driver: str
    model: tuple[str, ...]
    reference: str
    environment: str = "project"
    adapter: tuple[str, ...] = ()
    truncated: bool = False
    measure: str = "log_probs"
    limit: float | None = None


def all_cases(demo: str, *, onnx: bool, vllm: bool) -> list[Case]:
    """The cases in the order of the table.

    Args:
        demo: folder of `make demo`.
        onnx, vllm: whether those runtimes are wanted, which need environments of their own.
    """
    cases = [*_light(demo)]
    cases += _onnx(demo) if onnx else []
    cases += _vllm(demo) if vllm else []
    return cases


def _light(demo: str) -> Iterator[Case]:
    """Runtimes that the project's own environment holds."""
    lossless, base = f"model={demo}/lossless-mxfp4", f"model={demo}/base"
    yield Case(
        runtime="gpt-oss reference",
        form="openai, MXFP4",
        driver="gpt_oss_reference.py",
        model=("to=openai", lossless),
        reference="lossless-mxfp4",
        limit=1e-4,
    )
    llama = {"runtime": "llama.cpp", "driver": "llama_cpp.py", "truncated": True}
    yield Case(
        form="gguf f32",
        model=("to=gguf", "dtype=f32", lossless),
        reference="lossless-mxfp4",
        measure="logits",
        limit=1e-4,
        **llama,
    )
    yield Case(
        form="gguf MXFP4",
        model=("to=gguf", lossless),
        reference="lossless-mxfp4",
        **llama,
    )
    yield Case(
        form="gguf f32 + gguf-lora",
        model=("to=gguf", "dtype=f32", base),
        adapter=("to=gguf-lora", base, f"adapter={demo}/experts/adapter"),
        reference="base+experts/adapter",
        limit=1e-3,
        **llama,
    )


def _onnx(demo: str) -> Iterator[Case]:
    shared = {
        "runtime": "ONNX Runtime GenAI",
        "driver": "onnx_genai.py",
        "environment": "onnx",
        "reference": "lossless-mxfp4",
    }
    model = ("to=onnx", f"model={demo}/lossless-mxfp4")
    yield Case(form="onnx fp32", model=(*model, "dtype=fp32"), limit=1e-3, **shared)
    yield Case(form="onnx int8", model=(*model, "dtype=int8"), **shared)


def _vllm(demo: str) -> Iterator[Case]:
    shared = {"runtime": "vLLM", "driver": "vllm_cpu.py", "environment": "vllm"}
    dense = ("to=vllm", "dtype=bf16", f"model={demo}/experts-bf16")
    yield Case(
        form="bf16 folder at float32",
        model=dense,
        reference="experts-bf16",
        measure="top",
        limit=1e-3,
        **shared,
    )
    # vLLM's LoRA on experts computes on GPUs only; its loader runs everywhere.
    yield Case(
        form="LoRA adapter, loaded only",
        model=dense,
        adapter=("to=vllm", f"model={demo}/base", f"adapter={demo}/experts/adapter"),
        reference="",
        measure="",
        **shared,
    )
