"""Training that goes on from a saved adapter instead of a fresh one (`adapter.init`)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from gptoss_ft.adapters.files import ADAPTER_INFO, Adapter, open_adapter
from gptoss_ft.adapters.options import AdapterOptions
from gptoss_ft.files import sha256_file


def open_start(options: AdapterOptions) -> Adapter | None:
    """Opens the adapter to continue from; None for a fresh one.

    Raises:
        AdapterError: it cannot be read; whether it fits the base is `check_adapter`'s question.
    """
    return open_adapter(Path(options.init)) if options.init else None


def continued(options: AdapterOptions, adapter: Adapter) -> AdapterOptions:
    """Returns the options with kinds, ranks and scaling of the saved adapter."""
    ranks = {
        experts: max(
            (u.rank for u in adapter.updates.values() if u.is_experts == experts), default=0
        )
        for experts in (False, True)
    }
    kinds = list(adapter.kinds)
    if not kinds:  # a stock PEFT adapter says nothing of kinds, and trains no tensor in full
        kinds = [
            kind for kind, rank in (("attention", ranks[False]), ("experts", ranks[True])) if rank
        ]
    return replace(
        options,
        kinds=kinds,
        r=ranks[False] or options.r,
        alpha=float(adapter.config["lora_alpha"]),
        expert_r=ranks[True],
        rslora=bool(adapter.config.get("use_rslora")),
    )


def described(options: AdapterOptions) -> str:
    """Kinds and ranks, for people."""
    ranks = [f"rank {options.r}"]
    if "experts" in options.kinds:
        ranks.append(f"{options.expert_r} on each expert")
    return f"{', '.join(options.kinds)}; {', '.join(ranks)}; alpha {options.alpha:g}"


def adapter_fingerprint(adapter: Adapter) -> str:
    """Identifies what the adapter computes: SHA-256 over its configuration and tensors."""
    files = [file for file in adapter.files if file.name != ADAPTER_INFO]
    text = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
