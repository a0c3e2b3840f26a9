"""`to=lmstudio`: the GGUF file where LM Studio looks for models, `publisher/model/file.gguf`."""

from __future__ import annotations

import shlex
from pathlib import Path

from tqdm import tqdm

from gptoss_ft.errors import Problem
from gptoss_ft.export import gguf
from gptoss_ft.export.gguf_metadata import YARN_NOTE
from gptoss_ft.export.options import ExportOptions
from gptoss_ft.export.source import Source

MODELS_FOLDER = "~/.lmstudio/models"


def problems(source: Source, options: ExportOptions) -> list[Problem]:
    """Finds what one GGUF file cannot hold."""
    return gguf.problems(source, options)


def size(source: Source, options: ExportOptions) -> int:
    """Returns the bytes of the GGUF file."""
    return gguf.size(source, options)


def write(source: Source, options: ExportOptions, out: Path, progress: tqdm) -> None:
    """Writes the GGUF file into the folder `out`."""
    gguf.write(source, options, out / file_name(options), progress)


def file_name(options: ExportOptions) -> str:
    """Names the file after model and dtype, which LM Studio shows."""
    return f"{options.model_name}-{options.written_dtype.upper()}.gguf"


def serve(source: Source, options: ExportOptions) -> str:
    """Explains how to load the model in LM Studio."""
    key = f"{options.publisher}/{options.model_name}"
    file = shlex.quote(str((options.place / file_name(options)).absolute()))
    return f"""# Serving this model with LM Studio

LM Studio lists what lies below its models folder (`{MODELS_FOLDER}`, shown and changed in
My Models) as `publisher/model/file.gguf`. This folder is `{key}` of such a
tree; if `out` was not that folder, import the file:

```sh
lms import {file} --user-repo {shlex.quote(key)}
```

Then:

```sh
lms load {shlex.quote(options.model_name.lower())}
lms server start
```

{YARN_NOTE}"""
