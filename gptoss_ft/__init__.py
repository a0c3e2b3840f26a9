"""Fine-tuning and preference tuning of gpt-oss in its own MXFP4 weights.

The names in `__all__` are the public API, described in docs/api.md; everything else is private.
They are imported when they are first used, so that `import gptoss_ft` imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_ft.adapters.options import AdapterOptions
    from gptoss_ft.api import (
        compose,
        export,
        generate,
        load_adapter,
        load_model,
        merge,
        read_rows,
        render,
        train,
        verify,
    )
    from gptoss_ft.data.options import DataOptions
    from gptoss_ft.errors import GptOssFtError
    from gptoss_ft.export.options import ExportOptions
    from gptoss_ft.generate.options import GenerateOptions
    from gptoss_ft.harmony.options import RenderOptions
    from gptoss_ft.merge.options import MergeOptions
    from gptoss_ft.train.options import ModelOptions, TrainOptions
    from gptoss_ft.verify.options import VerifyOptions

__version__ = "0.1.0"

__all__ = [
    "AdapterOptions",
    "DataOptions",
    "ExportOptions",
    "GenerateOptions",
    "GptOssFtError",
    "MergeOptions",
    "ModelOptions",
    "RenderOptions",
    "TrainOptions",
    "VerifyOptions",
    "compose",
    "export",
    "generate",
    "load_adapter",
    "load_model",
    "merge",
    "read_rows",
    "render",
    "train",
    "verify",
]

# The module of each name that is not a function of `gptoss_ft.api`.
_HOMES = {
    "AdapterOptions": "gptoss_ft.adapters.options",
    "DataOptions": "gptoss_ft.data.options",
    "ExportOptions": "gptoss_ft.export.options",
    "GenerateOptions": "gptoss_ft.generate.options",
    "GptOssFtError": "gptoss_ft.errors",
    "MergeOptions": "gptoss_ft.merge.options",
    "ModelOptions": "gptoss_ft.train.options",
    "RenderOptions": "gptoss_ft.harmony.options",
    "TrainOptions": "gptoss_ft.train.options",
    "VerifyOptions": "gptoss_ft.verify.options",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "gptoss_ft.api")), name)


def __dir__() -> list[str]:
    """Lists the public names beside those that are bound already."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package, in which a public function keeps its name.

    Some functions are named like the room that does the work (`train`, `merge`, `verify`, `export`,
    `generate`). Python binds a submodule to its name in the package when it is first imported, and
    would so put the module in the function's place, sooner or later, depending on what is used.
    Rooms are imported as `from gptoss_ft.train.run import …`; `import gptoss_ft.train.run as run`
    looks for the module under the package's attribute and finds the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
