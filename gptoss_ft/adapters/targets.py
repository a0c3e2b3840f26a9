"""Matrices that an adapter_config.json targets, by PEFT's rules for names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def is_targeted(stem: str, config: dict[str, Any]) -> bool:
    """Returns whether a matrix of the base is to have an update.

    Args:
        stem: base tensor without its ending, such as `model.layers.0.self_attn.q_proj` or
            `model.layers.0.mlp.experts.gate_up_proj`.
        config: adapter_config.json.
    """
    parameter = f"{stem}.weight" if stem.endswith(".router") else stem
    if ".mlp." in stem:  # experts and router are parameters, not linear layers
        return ends_with_one_of(parameter, config.get("target_parameters") or ())
    excluded = config.get("exclude_modules")
    if excluded and _matches(stem, excluded):
        return False
    targets = config.get("target_modules") or ()
    if not _matches(stem, targets):
        return False
    named = isinstance(targets, str) or stem in targets
    layers = config.get("layers_to_transform")
    return named or layers in (None, []) or _layer(stem) in _listed(layers)


def ends_with_one_of(name: str, endings: Iterable[str]) -> bool:
    """Returns whether a dotted name is one of the endings, or ends with one after a dot."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _matches(name: str, targets: str | Iterable[str]) -> bool:
    """Matches a name against a regular expression for all of it, if given a string, or a list of
    endings.
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return ends_with_one_of(name, targets)


def _layer(stem: str) -> int | None:
    found = re.match(r"model\.layers\.(\d+)\.", stem)
    return int(found[1]) if found else None


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]
