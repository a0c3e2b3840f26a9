"""`to=ollama`: a folder with GGUF and Modelfile, or with base, adapter and Modelfile.

Ollama parses Harmony by itself where the architecture is gpt-oss and the template contains
`<|start|>` and `<|end|>` (`shouldUseHarmony` in its server/routes.go). One adapter is its limit.
The template writes plain chats as they were trained, with the pinned date; it has no tools, and
Ollama then refuses requests with tools instead of sending something the model never saw.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tqdm import tqdm

from gptoss_ft.errors import Problem
from gptoss_ft.export import gguf, gguf_lora
from gptoss_ft.export.gguf_metadata import YARN_NOTE
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import Source, no_adapter_problems
from gptoss_ft.harmony.blocks import developer_text, system_text
from gptoss_ft.harmony.options import RenderOptions

MODEL_FILE = "model.gguf"
ADAPTER_FILE = "adapter.gguf"
MODELFILE = "Modelfile"
STOPS = ("<|return|>", "<|call|>")
# OpenAI's recommendation for gpt-oss is plain sampling; Ollama's defaults cut the distribution.
SAMPLING = {"temperature": "1", "top_k": "0", "top_p": "1"}
CONTEXT = 16384

_EFFORT = (
    "{{ if .ThinkLevel }}{{ .ThinkLevel }}{{ else if .IsThinkSet }}low{{ else }}medium{{ end }}"
)
_MESSAGES = """\
{{- $last := 0 }}
{{- range $i, $_ := .Messages }}{{ $last = $i }}{{ end }}
{{- $open := false }}
{{- range $i, $m := .Messages }}
{{- if eq $m.Role "user" }}<|start|>user<|message|>{{ $m.Content }}<|end|>
{{- else if eq $m.Role "assistant" }}
{{- if lt $i $last }}<|start|>assistant<|channel|>final<|message|>{{ $m.Content }}<|end|>
{{- else if $m.Content }}{{ $open = true -}}
<|start|>assistant<|channel|>final<|message|>{{ $m.Content }}
{{- else if $m.Thinking }}{{ $open = true -}}
<|start|>assistant<|channel|>analysis<|message|>{{ $m.Thinking }}
{{- end }}
{{- end }}
{{- end }}
{{- if not $open }}<|start|>assistant{{ end }}"""


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds what the GGUF files cannot hold."""
    found = [*gguf.model_problems(source, options)]
    if source.adapter is None:
        return [*found, *no_adapter_problems(source, options)]
    return [*found, *gguf_lora.adapter_problems(source, source.adapter, options)]


def size(source: Source, options: ExportOptions) -> int:
    """Returns the bytes of the GGUF files."""
    adapter = gguf_lora.size(source, options) if source.adapter else 0
    return gguf.size(source, options) + adapter


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Writes the files into the folder `out`."""
    gguf.write(source, options, out / MODEL_FILE, progress)
    if source.adapter is not None:
        gguf_lora.write(source, options, out / ADAPTER_FILE, progress)
    (out / MODELFILE).write_text(modelfile(source.adapter is not None), encoding="utf-8")


def modelfile(has_adapter: bool) -> str:
    """Writes the text of the folder's Modelfile."""
    parameters = [*SAMPLING.items(), ("num_ctx", str(CONTEXT))]
    lines = [
        f"FROM ./{MODEL_FILE}",
        *([f"ADAPTER ./{ADAPTER_FILE}"] if has_adapter else []),
        f'TEMPLATE """{chat_template()}"""',
        *(f"PARAMETER {name} {value}" for name, value in parameters),
        *(f'PARAMETER stop "{stop}"' for stop in STOPS),
    ]
    return "\n".join(lines) + "\n"


def chat_template() -> str:
    """Writes Ollama's Go template for plain chats.

    The last message may be an assistant's: then it is left open, to be continued.
    """
    system = system_text(RenderOptions(), _EFFORT, has_functions=False)
    developer = developer_text("{{ .System }}", "")
    return (
        f"<|start|>system<|message|>{system}<|end|>\n"
        "{{- if .System }}<|start|>developer<|message|>"
        f"{developer}<|end|>{{{{ end }}}}\n{_MESSAGES}"
    )


def ollama_name(name: str) -> str:
    """Converts a model's name to one that Ollama allows."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to import the folder and query the model."""
    place = options.place.absolute()
    name = ollama_name(options.model_name)
    llama = f"llama-server --model {shlex.quote(str(place / MODEL_FILE))}"
    if source.adapter is not None:
        llama += f" --lora {shlex.quote(str(place / ADAPTER_FILE))}"
    return f"""# Serving this model with Ollama

```sh
ollama create {name} --file {shlex.quote(str(place / MODELFILE))}
ollama run {name}
```

Ollama recognises gpt-oss and parses Harmony itself: `think` sets the effort (low, medium, high),
answers arrive as `content` and `thinking`. The template in the Modelfile writes plain chats as they
were trained, with the same pinned date. Tools are not in it.

The folder also serves llama.cpp: `{llama} --jinja`.

{YARN_NOTE}"""
