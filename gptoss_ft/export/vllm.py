"""`to=vllm`: a folder that vLLM loads, or an adapter folder for its `--lora-modules`.

A checkpoint keeps the Hugging Face layout, whose names vLLM maps to its own; its config.json gets
the legacy keys beside the current ones, because vLLM versions differ in which they read. With an
adapter only the adapter is written: the checkpoint is served from where it stands.

Rules from vLLM 0.32: `model_executor/models/gpt_oss.py`, `lora/lora_model.py`,
`lora/peft_helper.py`, `lora/model_manager.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from gptoss_ft.adapters.files import ADAPTER_CONFIG
from gptoss_ft.checkpoint.companions import (
    checkpoint_config,
    companion_files,
    copy_companion_files,
)
from gptoss_ft.checkpoint.headers import INDEX_NAME
from gptoss_ft.errors import Problem
from gptoss_ft.export import vllm_adapter
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import (
    Source,
    alternating_problems,
    left_out_problems,
    packed_problems,
    tokenizer_problems,
)
from gptoss_ft.files import write_json

# As released; transformers 5 reads these and writes newer ones.
LEGACY_KEYS = ("rope_theta", "rope_scaling", "num_experts_per_tok", "experts_per_token")
_COPY_BYTES = 16 << 20


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds what vLLM would not load, or would load as something else."""
    found = [
        *_dtype_problems(source, options),
        *left_out_problems(source, options),
        *tokenizer_problems(source),
        *alternating_problems(source, options),
    ]
    if source.adapter is not None:
        found += vllm_adapter.problems(source.adapter, options)
        found += _base_problems(source, options)
    return found


def _dtype_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    if options.written_dtype == "mxfp4":
        mend = (
            "merge with to=mxfp4 and export that folder; or say dtype=bf16 to serve the dense "
            "folder, four times the size and a path on which vLLM has had faults"
        )
        yield from packed_problems(source, options, mend)
    elif source.checkpoint.is_packed:
        mend = "merge with to=bf16 and export that folder, or leave dtype out"
        yield Problem(
            "dtype=bf16 needs dense experts", f"model={options.model}", "MXFP4 experts", mend
        )
    method = (source.config.get("quantization_config") or {}).get("quant_method")
    if source.checkpoint.is_packed and method != "mxfp4":
        yield Problem(
            "config.json does not say that the experts are MXFP4",
            f"{source.folder / 'config.json'}: quantization_config.quant_method",
            repr(method),
            "copy quantization_config from the released config.json",
        )


def _base_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    """Checks that a checkpoint served from its own folder has the keys of the released one."""
    missing = [key for key in LEGACY_KEYS if key not in source.config]
    if missing:
        yield Problem(
            "the checkpoint's config.json lacks keys that some vLLM versions read",
            str(source.folder / "config.json"),
            f"no {', '.join(missing)}",
            f"export it first: gptoss-ft export model={options.model} to=vllm out=DIR, "
            "and then the adapter with model=DIR",
        )


def size(source: Source, options: ExportOptions) -> int:
    """Returns the bytes of the copied files, or of the adapter's factors."""
    if source.adapter is not None:
        return vllm_adapter.size(source.adapter)
    files = [*_shards(source), *companion_files(source.folder)]
    return sum(file.stat().st_size for file in files)


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Copies the checkpoint with both generations of configuration keys, or writes the adapter."""
    if source.adapter is not None:
        vllm_adapter.write(source.adapter, source.config, out, progress)
        return
    for file in _shards(source):
        _copy(file, out / file.name, progress)
    if (source.folder / INDEX_NAME).is_file():
        _copy(source.folder / INDEX_NAME, out / INDEX_NAME, progress)
    copy_companion_files(source.folder, out)
    write_json(out / "config.json", checkpoint_config(source.config, source.checkpoint.is_packed))


def _shards(source: Source) -> list[Path]:
    return sorted({info.file for info in source.checkpoint.tensors.values()})


def _copy(source: Path, target: Path, progress: tqdm) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while data := reader.read(_COPY_BYTES):
            writer.write(data)
            progress.update(len(data))


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to serve the folder, or the checkpoint with the adapter."""
    if source.adapter is not None:
        return _serve_adapter(source, options)
    place = shlex.quote(str(options.place.absolute()))
    return f"""# Serving this checkpoint with vLLM

```sh
pip install vllm
vllm serve {place} --served-model-name {shlex.quote(options.model_name)}
```

{_PROOF if options.written_dtype == "mxfp4" else _PROOF_DENSE}
"""


def _serve_adapter(source: Source, options: ExportOptions) -> str:
    assert source.adapter is not None
    base = shlex.quote(str(source.folder.absolute()))
    lora = shlex.quote(f"{options.model_name}-tuned={options.place.absolute()}")
    rank = vllm_adapter.served_rank(source.adapter)
    return f"""# Serving this adapter with vLLM

```sh
pip install vllm
vllm serve {base} --enable-lora --max-lora-rank {rank} \\
    --lora-modules {lora}
```

Ask for the model `{options.model_name}-tuned`. The checkpoint stays where it is; the adapter is
`{ADAPTER_CONFIG}` and its weights in this folder. Every scaling is folded into the factors
(alpha = rank), so vLLM versions with and without `alpha_pattern` compute the same.

Proven on a CPU: vLLM's own loader takes adapters of this layout (`make runtimes VLLM=1`), and stock
PEFT computes the same with this folder as with the adapter it was made from. Not run: vLLM's LoRA
kernels for experts, which need a GPU.
"""


_PROOF = """Checked without a GPU: tensors, names and configuration against vLLM's loader.
Not run: vLLM's MXFP4 kernels, which need a GPU."""
_PROOF_DENSE = """A dense folder of this layout was run in vLLM at float32 on a CPU
(`make runtimes VLLM=1`): its log-probabilities are those of transformers."""
