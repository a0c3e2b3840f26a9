"""Files of the Hugging Face layout beside the weights: config, tokenizer, generation config."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gptoss_ft.files import atomic_file

# Copied as they are. README.md is not: it describes the base.
COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
    "USAGE_POLICY",
)


def checkpoint_config(base: dict[str, Any], packed: bool) -> dict[str, Any]:
    """Returns config.json of a checkpoint derived from a base.

    Every key of the base is kept. Where a setting has a legacy name (released checkpoints,
    converters to other runtimes) and a current one (transformers 5), both are written, with the
    same value.

    Args:
        base: config.json of the base.
        packed: the experts are MXFP4; else everything is bfloat16 and `quantization_config` is
            dropped.
    """
    config = dict(base)
    rope = dict(base.get("rope_parameters") or base.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or base.get("rope_theta")
    if rope:
        config["rope_scaling"] = rope
        config["rope_parameters"] = rope
    if theta is not None:
        config["rope_theta"] = theta
        config["rope_parameters"] = {**rope, "rope_theta": theta}
    active = base.get("num_experts_per_tok", base.get("experts_per_token"))
    if active is not None:
        config["num_experts_per_tok"] = config["experts_per_token"] = active
    if not packed:
        config.pop("quantization_config", None)
        config["dtype"] = config["torch_dtype"] = "bfloat16"
    return dict(sorted(config.items()))


def companion_files(base: Path) -> list[Path]:
    """Lists the files of a base folder that a derived checkpoint takes over unchanged."""
    return [base / name for name in COMPANION_FILES if (base / name).is_file()]


def copy_companion_files(base: Path, out: Path) -> None:
    """Copies tokenizer, chat template, generation config and licence into the folder `out`."""
    for file in companion_files(base):
        with atomic_file(out / file.name) as temporary:
            shutil.copyfile(file, temporary)
