"""`to=onnx`: a model folder for ONNX Runtime GenAI, made by its own builder.

The builder (`onnxruntime_genai.models.builder`, in the extra `onnx`) runs in a process of its own.
On a CPU it writes everything in float32, or 8-bit weights with the experts re-quantised from their
MXFP4 values. It holds the dense model in memory, so a large one needs a large machine.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from tqdm import tqdm

from gptoss_ft.checkpoint.companions import companion_files
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.errors import ExportError, Problem
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import (
    Source,
    alternating_problems,
    no_adapter_problems,
    packed_problems,
    tokenizer_problems,
)

BUILDER = "onnxruntime_genai.models.builder"
MODULES = ("onnxruntime_genai", "onnx_ir")
_EMBEDDING = "model.embed_tokens.weight"
_SETTINGS = {
    "fp32": ["-p", "fp32"],
    "int8": ["-p", "int8", "--extra_options", "moe_quant_type=int8"],
}
# What it writes per weight: 8 bits and the scales of their blocks. The embedding stays float32.
_WEIGHT_BYTES = {"fp32": 4.0, "int8": 1.25}
_SHOWN_LINES = 5


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds what the builder cannot take, and what it needs and is not installed."""
    found = [
        *no_adapter_problems(source, options),
        *tokenizer_problems(source),
        *alternating_problems(source, options),
        *_builder_problems(),
        *_memory_problems(source, options),
    ]
    if options.written_dtype == "int8":
        mend = "merge with to=mxfp4 and export that folder, or say dtype=fp32"
        found += packed_problems(source, options, mend)
    return found


def _builder_problems() -> Iterator[Problem]:
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        yield Problem(
            "ONNX Runtime GenAI's model builder is not installed",
            "to=onnx",
            f"no module {' and no '.join(missing)}",
            "pip install 'gptoss-ft[onnx]'",
        )


def _memory_problems(source: Source, options: ExportOptions) -> Iterator[Problem]:
    """Checks the memory: the builder loads all weights as bfloat16, and what it needs beyond that
    is unknown.
    """
    needed = 2 * sum(_weights(source).values())
    available = psutil.virtual_memory().available
    if needed > available:
        yield Problem(
            "ONNX Runtime GenAI's builder holds the dense model in memory, and there is too little",
            f"model={options.model}",
            f"{available / 1e9:.1f} GB available, more than {needed / 1e9:.1f} GB needed",
            "export on a larger machine, or choose a target that is streamed, such as to=gguf",
        )


def _weights(source: Source) -> dict[str, int]:
    """Counts the values of every tensor, experts dense."""
    shapes = expected_shapes(source.config, packed=False)
    return {name: math.prod(shape) for name, shape in shapes.items()}


def size(source: Source, options: ExportOptions) -> int:
    """Estimates what the builder writes, in bytes."""
    counts = _weights(source)
    embedding = counts.pop(_EMBEDDING)
    files = sum(file.stat().st_size for file in companion_files(source.folder))
    weights = sum(counts.values()) * _WEIGHT_BYTES[options.written_dtype]
    return round(4 * embedding + weights) + files


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Runs the builder.

    Raises:
        ExportError: the builder failed; its last lines are in the message.
    """
    cache = out / ".cache"
    command = builder_command(source, options, out, cache)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = " / ".join(done.stdout.strip().splitlines()[-_SHOWN_LINES:])
        mend = "see what it says; the versions of the extra `onnx` are those it was tested with"
        raise ExportError(Problem("the builder failed", shlex.join(command), last, mend))
    shutil.rmtree(cache, ignore_errors=True)
    progress.update(size(source, options))


def builder_command(source: Source, options: ExportOptions, out: Path, cache: Path) -> list[str]:
    """Returns the builder's command line."""
    return [
        *(sys.executable, "-m", BUILDER, "-i", str(source.folder), "-o", str(out)),
        *("-e", "cpu", "-c", str(cache)),
        *_SETTINGS[options.written_dtype],
    ]


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to run the folder."""
    place = str(options.place.absolute())
    window = source.config["sliding_window"]
    proof = _PROOF[options.written_dtype]
    return f"""# Running this model with ONNX Runtime GenAI

```sh
pip install onnxruntime-genai
```

```python
import onnxruntime_genai as og

model = og.Model({place!r})
tokenizer = og.Tokenizer(model)
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=2048)
generator = og.Generator(model, parameters)
chat = '[{{"role": "user", "content": "Hello"}}]'
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
generator.append_tokens(tokenizer.encode(prompt))
while not generator.is_done():
    generator.generate_next_token()
    print(tokenizer.decode(generator.get_next_tokens()), end="", flush=True)
```

`max_length` counts prompt and answer and must be at least {window}, the sliding window.

{proof}
"""


_PROOF = {
    "fp32": """Run on a CPU (`make runtimes`): float32 models of this layout give the
log-probabilities and the greedy answers of transformers.""",
    "int8": """Run on a CPU (`make runtimes`): 8-bit models of this layout load and give the greedy
answers. Weights and experts are rounded to 8 bits, so log-probabilities are not those of
transformers; dtype=fp32 keeps them.""",
}
