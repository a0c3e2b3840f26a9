"""Which matrices an adapter targets: the answers are PEFT's own."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from gptoss_ft.adapters.targets import is_targeted
from gptoss_ft.checkpoint.shapes import expected_shapes
from gptoss_ft.model.tiny import TinyOptions, tiny_config

NAMES = expected_shapes(tiny_config(TinyOptions(layers=12)), packed=False)
LINEAR = [name.removesuffix(".weight") for name in NAMES if name.endswith("_proj.weight")]
LINEAR.append("lm_head")


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, 24),
        ({"target_modules": ["self_attn.q_proj", "lm_head"]}, 13),
        ({"target_modules": ["proj"]}, 0),
        ({"target_modules": r"model\.layers\.[02]\.self_attn\..*"}, 8),
        ({"target_modules": r".*\.1"}, 0),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 10]}, 2),
        ({"target_modules": ["q_proj"], "layers_to_transform": 1}, 1),
        ({"target_modules": ["q_proj"], "layers_to_transform": []}, 12),
        ({"target_modules": ["lm_head"], "layers_to_transform": [1]}, 1),
        (
            {
                "target_modules": ["q_proj", "k_proj"],
                "exclude_modules": ["layers.3.self_attn.q_proj"],
            },
            23,
        ),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*q_proj"}, 12),
        ({"target_modules": None, "target_parameters": ["mlp.experts.down_proj"]}, 0),
        ({"target_modules": []}, 0),
    ],
)
def test_linear_layers(config: dict[str, Any], count: int) -> None:
    stock = LoraConfig(**config)
    saved = stock.to_dict() | {
        name: sorted(value) for name, value in config.items() if isinstance(value, list)
    }
    wanted = {name for name in LINEAR if _match(stock, name)}
    assert {name for name in LINEAR if is_targeted(name, saved)} == wanted
    assert len(wanted) == count


def _match(config: LoraConfig, name: str) -> bool:
    found = check_target_module_exists(config, name)
    return bool(found) and type(found).__name__ != "_ExcludedModule"
