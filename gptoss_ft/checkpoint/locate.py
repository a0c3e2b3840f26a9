"""From what a user names as a model to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from gptoss_ft.errors import CheckpointError, Problem

CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.jinja"]


def locate_checkpoint(name: str, hub: bool, key: str) -> Path:
    """Finds the checkpoint's folder; a Hub id is downloaded when the network is allowed.

    Args:
        name: a folder, or a Hub id such as `openai/gpt-oss-20b`.
        hub: whether the network may be used.
        key: the setting that named it, for messages.

    Raises:
        CheckpointError: neither a folder nor a permitted Hub id.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    if not is_hub_id or not hub:
        mend = "give the folder that holds config.json and the *.safetensors files"
        if is_hub_id:
            mend += f", or add hub=true to download {name} from the Hugging Face Hub"
        raise CheckpointError(Problem("there is no model folder here", key, name, mend))
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(name, allow_patterns=CHECKPOINT_FILES, ignore_patterns=["original/*"])
    )
