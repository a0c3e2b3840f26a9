"""A checkpoint loaded by stock transformers: no key missing or left over, and the same logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.utils.quantization_config import Mxfp4Config

from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.inference.hidden_states import Pack, hidden_states
from gptoss_ft.inference.token_rows import TokenRow
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.mapped import load_mapped

# Dense weights that stock transformers may hold in memory; a larger model is cut to its first
# layers, one at least.
WHOLE_BYTES = 2 << 30
CUT_BYTES = 6 << 30
TOKENS = 48
# Of the logits' norm: float32 against float32, and bfloat16 against float32.
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Reload:
    """The checkpoint as stock transformers loaded it.

    Attributes:
        layers, all_layers: how many layers it loaded, and how many there are.
        wrong_keys: keys that it missed, did not expect, or could not fit.
        difference: of its logits and ours, relative to the norm of ours; None with
            wrong keys.
        limit: the largest difference that its dtype explains.
    """

    layers: int
    all_layers: int
    wrong_keys: tuple[str, ...]
    difference: float | None
    limit: float

    @property
    def ok(self) -> bool:
        """True if it is the model that we run."""
        return self.difference is not None and self.difference <= self.limit


def reload(checkpoint: Checkpoint, rows: Sequence[TokenRow]) -> Reload:
    """Loads a checkpoint with stock transformers and compares logits on one short sequence.

    A model too large for memory is cut to its first layers in bfloat16, by us as by stock
    transformers; keys of the other layers are then expected to be left over.
    """
    shapes = expected_shapes(checkpoint.config, packed=False)
    layers = checkpoint.config["num_hidden_layers"]
    count, dtype = layers, torch.float32
    if 4 * sum(map(math.prod, shapes.values())) > WHOLE_BYTES:
        dtype = torch.bfloat16
        inside = sum(math.prod(s) for name, s in shapes.items() if ".layers." in name)
        outside = sum(map(math.prod, shapes.values())) - inside
        count = max(1, min(layers, (CUT_BYTES // 2 - outside) // (inside // layers)))
    model, wrong = _stock(checkpoint, count, dtype)
    if wrong:
        return Reload(count, layers, tuple(wrong), None, LIMITS[dtype])
    row = TokenRow(rows[0].where, rows[0].ids[:TOKENS], ())
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([row.ids])).logits[0].float()
    del model
    ours = _logits(load_mapped(checkpoint), count, row)
    difference = float((ours - theirs).norm() / ours.norm())
    return Reload(count, layers, (), difference, LIMITS[dtype])


def _stock(
    checkpoint: Checkpoint, layers: int, dtype: torch.dtype
) -> tuple[GptOssForCausalLM, list[str]]:
    config = GptOssConfig.from_pretrained(checkpoint.path, local_files_only=True)
    left_out = tuple(f"model.layers.{i}." for i in range(layers, config.num_hidden_layers))
    config.num_hidden_layers = layers
    config.layer_types = config.layer_types[:layers] if config.layer_types else None
    extra: dict[str, Any] = {}
    if checkpoint.is_packed:
        extra["quantization_config"] = Mxfp4Config(dequantize=True)
    loaded: Any = GptOssForCausalLM.from_pretrained(
        checkpoint.path,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        **extra,
    )
    model, report = cast(tuple[GptOssForCausalLM, dict[str, Any]], loaded)
    wrong = [
        f"{kind.removesuffix('_keys')}: {key}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(map(str, report[kind]))
        if not (kind == "unexpected_keys" and key.startswith(left_out))
    ]
    return model.eval(), wrong


def _logits(model: WeightedGptOss, layers: int, row: TokenRow) -> torch.Tensor:
    """Logits of the first layers, final norm and head of our model."""
    model.model.layers = model.model.layers[:layers]
    with torch.inference_mode():
        return model.lm_head(hidden_states(model, Pack(0, (row,)))).float()
