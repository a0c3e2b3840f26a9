"""An adapter folder as it lies on disk: what it updates, and whether it fits a base.

The layout is PEFT's, so stock PEFT loads what it has a place for:

- `adapter_config.json`: a stock `LoraConfig`.
- `adapter_model.safetensors`: LoRA factors. A linear layer has A `[r, in]` and B `[out, r]`. The
  experts of a layer share one pair: A `[E * r, in]`, expert slowest, and B `[out, r * E]`, expert
  fastest.
- `trained_tensors.safetensors`, optional: full values, under the base's names, of tensors that LoRA
  does not cover (biases, norms, sinks, routers). Stock PEFT does not read it.
- `gptoss_ft.json`, optional: format, kinds, and the fingerprint of the base. Stock adapters have
  none.

Opening reads headers only; whether the adapter fits a base is `check.check_adapter`'s question.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gptoss_ft.adapters.layout import EXPERT_PARAMETERS, expert_A, expert_B
from gptoss_ft.adapters.targets import ends_with_one_of
from gptoss_ft.checkpoint.headers import Checkpoint, TensorInfo, read_header
from gptoss_ft.errors import AdapterError, Problem

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED_TENSORS = "trained_tensors.safetensors"
ADAPTER_INFO = "gptoss_ft.json"
FORMAT = 1

_PICKLED_WEIGHTS = "adapter_model.bin"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# LoraConfig fields under which an adapted layer computes something else than W + scaling * B @ A.
_OTHER_UPDATES = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
# Initialisations that take something out of the base weight: the adapter is no delta to that base.
_BASE_CHANGING_INITS = ("corda", "loftq", "lora_ga", "olora", "pissa")


@dataclass(frozen=True)
class LoraHeaders:
    """The low-rank update `W + scaling * B @ A` of one matrix, or of one projection of all experts.

    Attributes:
        stem: base tensor without its ending, such as `model.layers.0.self_attn.q_proj` or
            `model.layers.0.mlp.experts.gate_up_proj`.
        A, B: headers of the two factors.
        rank: rank of each matrix.
        scaling: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    """

    stem: str
    A: TensorInfo
    B: TensorInfo
    rank: int
    scaling: float

    @property
    def is_experts(self) -> bool:
        """True if this updates all experts of a layer."""
        return is_expert_stem(self.stem)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads A and B in float32: `[r, in]`, `[out, r]`; for experts `[E, r, in]`, `[E, out,
        r]`.
        """
        A, B = read_tensor(self.A).float(), read_tensor(self.B).float()
        if not self.is_experts:
            return A, B
        experts = A.shape[0] // self.rank
        return expert_A(A, experts), expert_B(B, experts)


@dataclass(frozen=True)
class Adapter:
    """An adapter folder.

    Attributes:
        path: the folder.
        config: adapter_config.json as a dictionary.
        base_fingerprint: of the checkpoint that it was trained on; None for a stock PEFT adapter.
        kinds: what was trained, as gptoss_ft.json says; empty for a stock PEFT adapter.
        updates: low-rank updates by stem of the base tensor.
        trained: headers of fully trained tensors by base name.
        base_tensors: of that checkpoint, what each tensor was (`tensor_digests`); may be empty.
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    base_fingerprint: str | None
    kinds: tuple[str, ...]
    updates: dict[str, LoraHeaders] = field(repr=False)
    trained: dict[str, TensorInfo] = field(repr=False)
    base_tensors: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> list[Path]:
        """The files of the layout that exist."""
        names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINED_TENSORS, ADAPTER_INFO)
        return [self.path / name for name in names if (self.path / name).is_file()]


def is_expert_stem(stem: str) -> bool:
    """Returns whether a stem names a projection of the experts."""
    return ".mlp.experts." in stem


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """Reads the tensor that a header describes, in its stored dtype."""
    with safe_open(info.file, framework="pt") as file:
        return file.get_tensor(info.name)


def open_adapter(path: Path) -> Adapter:
    """Reads an adapter folder's JSON files and headers.

    Raises:
        AdapterError: missing or broken files, pickled weights, settings that make the update
            something else than plain LoRA, factors without their partner, keys that are not
            understood.
    """
    _require_files(path)
    problems: list[Problem] = []
    config = _read_json(path / ADAPTER_CONFIG, problems)
    info = _read_json(path / ADAPTER_INFO, problems)
    factors = _read_headers(path / ADAPTER_WEIGHTS, problems)
    trained = _read_headers(path / TRAINED_TENSORS, problems)
    if problems:
        raise AdapterError(problems)
    pairs, problems = _pair_factors(factors, config.get("target_parameters") or [])
    problems = [*_config_problems(path, config), *_info_problems(path, info), *problems]
    if not factors and not trained:
        problems.append(
            Problem("the adapter holds no tensor", str(path), mend="train it or save it again")
        )
    if problems:
        raise AdapterError(problems)
    return Adapter(
        path=path,
        config=config,
        base_fingerprint=info.get("base_fingerprint") or None,
        kinds=tuple(info.get("kinds", ())),
        updates={stem: _update(stem, pair, config) for stem, pair in pairs.items()},
        trained={info.name: info for info in trained},
        base_tensors=info.get("base_tensors") or {},
    )


def _require_files(path: Path) -> None:
    if not path.is_dir():
        raise AdapterError(
            Problem(
                "there is no adapter folder here",
                str(path),
                mend=f"give the folder that holds {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}",
            )
        )
    pickled = (path / _PICKLED_WEIGHTS).is_file()
    problems = []
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if (path / name).is_file():
            continue
        if name == ADAPTER_WEIGHTS and pickled:
            problems.append(
                Problem(
                    "the adapter is pickled, and a pickle can run any code when it is read",
                    str(path / _PICKLED_WEIGHTS),
                    mend="load it where you trust it and save it with safe_serialization=True",
                )
            )
            continue
        problems.append(
            Problem(
                f"{name} is missing",
                str(path),
                mend="give the folder that PEFT's save_pretrained wrote",
            )
        )
    if problems:
        raise AdapterError(problems)


def _read_json(file: Path, problems: list[Problem]) -> dict[str, Any]:
    """Reads the object in a JSON file; empty when the file does not exist."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problems.append(
            Problem(f"{file.name} is not valid JSON", str(file), str(error), "save it again")
        )
        return {}
    if not isinstance(value, dict):
        problems.append(
            Problem(
                f"{file.name} is not a JSON object",
                str(file),
                type(value).__name__,
                "save it again",
            )
        )
        return {}
    return value


def _read_headers(file: Path, problems: list[Problem]) -> list[TensorInfo]:
    if not file.exists():
        return []
    try:
        return read_header(file)
    except (SafetensorError, OSError, ValueError) as error:
        problems.append(
            Problem(
                "this is not a whole safetensors file",
                str(file),
                str(error),
                "copy or save it again",
            )
        )
        return []


def _config_problems(path: Path, config: dict[str, Any]) -> Iterator[Problem]:
    where = f"{path / ADAPTER_CONFIG}: "
    plain = "only plain LoRA can be read; train with this setting off"
    if config.get("peft_type") != "LORA":
        yield Problem(
            "this is not a LoRA adapter",
            f"{where}peft_type",
            repr(config.get("peft_type")),
            "use an adapter trained with LoRA",
        )
        return
    for key in _OTHER_UPDATES:
        if config.get(key):
            yield Problem("this setting is not plain LoRA", where + key, repr(config[key]), plain)
    if config.get("bias", "none") != "none":
        mend = "train with bias='none'; trained biases belong into " + TRAINED_TENSORS
        yield Problem(
            "biases trained by PEFT are not read", f"{where}bias", repr(config["bias"]), mend
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.startswith(_BASE_CHANGING_INITS):
        yield Problem(
            "this initialisation changes the base, so the adapter does not fit the original one",
            f"{where}init_lora_weights",
            repr(init),
            "convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    yield from _number_problems(where, config)


def _number_problems(where: str, config: dict[str, Any]) -> Iterator[Problem]:
    """Ranks must be whole numbers from 1, alphas numbers, and patterns regular expressions."""
    for key, pattern_key in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        patterns = config.get(pattern_key) or {}
        if not isinstance(patterns, dict):
            yield Problem(
                "this is not an object", where + pattern_key, repr(patterns), "save it again"
            )
            continue
        named = {f"{pattern_key}.{pattern}": value for pattern, value in patterns.items()}
        for name, value in {key: config.get(key), **named}.items():
            if not (_is_rank(value) if key == "r" else _is_number(value)):
                wanted = "a whole number from 1" if key == "r" else "a number"
                yield Problem(f"must be {wanted}", where + name, repr(value), "save it again")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                what = f"this is not a regular expression: {error}"
                yield Problem(what, where + pattern_key, pattern, "save it again")


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _info_problems(path: Path, info: dict[str, Any]) -> Iterator[Problem]:
    if info and info.get("format") != FORMAT:
        yield Problem(
            "this adapter was written in another format",
            f"{path / ADAPTER_INFO}: format",
            repr(info.get("format")),
            f"this version reads format {FORMAT}; use the version that wrote the adapter",
        )


def _pair_factors(
    factors: Iterable[TensorInfo], target_parameters: list[str]
) -> tuple[dict[str, dict[str, TensorInfo]], list[Problem]]:
    """Pairs LoRA tensors as `{stem: {"A": info, "B": info}}` and notes what could not be paired or
    read.
    """
    pairs: dict[str, dict[str, TensorInfo]] = {}
    problems = []
    for info in factors:
        match = _KEY.fullmatch(info.name)
        stem = _stem(match["module"], target_parameters) if match else None
        if match is None or stem is None:
            problems.append(
                Problem(
                    "this adapter tensor is not understood",
                    info.name,
                    mend="LoRA factors of linear layers, and of mlp.experts.gate_up_proj and "
                    "mlp.experts.down_proj named in target_parameters, can be read; PEFT leaves "
                    "whole embeddings out with save_pretrained(..., save_embedding_layers=False)",
                )
            )
        else:
            pairs.setdefault(stem, {})[match["factor"]] = info
    for pair in pairs.values():
        if len(pair) == 1:
            ((factor, info),) = pair.items()
            partner = "B" if factor == "A" else "A"
            problems.append(
                Problem(
                    f"lora_{factor} has no lora_{partner}", info.name, mend="save the adapter again"
                )
            )
    return pairs, problems


def _stem(module: str, target_parameters: list[str]) -> str | None:
    """Returns the stem of the base tensor behind a PEFT module name; None when there is none we can
    read.

    `…mlp.experts` and any number of `.base_layer` stand for the nested wrappers around the experts,
    the outermost first. Which parameter a wrapper holds follows from `target_parameters` alone.
    """
    before, experts, wrapping = module.partition(".mlp.experts")
    if not experts:
        return module
    depth = wrapping.count(".base_layer")
    names = [f"{before}{experts}.{name}" for name in EXPERT_PARAMETERS]
    wrapped = [name for name in names if ends_with_one_of(name, target_parameters)]
    if wrapping != ".base_layer" * depth or depth >= len(wrapped):
        return None
    stem = wrapped[-1 - depth]
    return None if stem.endswith("_bias") else stem


def _update(stem: str, pair: dict[str, TensorInfo], config: dict[str, Any]) -> LoraHeaders:
    # PEFT matches patterns on a module's name, or on a parameter's where that is the target.
    name = f"{stem}.weight" if stem.endswith(".router") else stem
    rank = configured_rank(name, config)
    alpha = float(_by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]))
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraHeaders(stem, pair["A"], pair["B"], rank, scaling)


def configured_rank(name: str, config: dict[str, Any]) -> int:
    """Returns the rank that adapter_config.json gives to a module or parameter of this name."""
    return int(_by_pattern(config.get("rank_pattern"), name, config["r"]))


def _by_pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches the name or its end after a dot, as in
    PEFT.
    """
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def base_names(stem: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the base tensors that hold the matrix of a stem."""
    if not is_expert_stem(stem):
        return (f"{stem}.weight",)
    return (f"{stem}_blocks", f"{stem}_scales") if checkpoint.is_packed else (stem,)
