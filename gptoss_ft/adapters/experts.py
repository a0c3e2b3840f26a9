"""LoRA on packed experts as a PEFT layer.

PEFT targets expert parameters through `target_parameters` and nests one `ParamWrapper` per
parameter. Its own wrapper adds B @ A of all experts to a dense weight in every forward; ours hands
the factors to the packed module, which applies them per expert on the side. Keys, shapes and
adapter_config.json are PEFT's by construction, because everything but the forward is inherited.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import ParamWrapper as PeftParamWrapper
from torch import nn

from gptoss_ft.adapters.layout import expert_A, view_B
from gptoss_ft.errors import AdapterError, Problem
from gptoss_ft.model.experts.low_rank import LowRankUpdate, low_rank_update
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.mxfp4.codec import BLOCK_SIZE


class ParamWrapper(PeftParamWrapper):
    """Low-rank factors of one packed parameter. PEFT checks this class's name."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        """Returns features in PEFT's order for a parameter `[E, out, in]`: it swaps them."""
        experts, out, groups, _ = self.get_param().shape
        self.num_experts = experts
        self._param_ndim = 3
        return out, groups * BLOCK_SIZE

    def updates(self) -> tuple[LowRankUpdate, ...]:
        """Returns one update of all active adapters; none when adapters are disabled."""
        if self.disable_adapters:
            return ()
        pairs = [
            (
                expert_A(self.lora_A[name].get_parameter("weight"), self.num_experts),
                view_B(self.lora_B[name].get_parameter("weight"), self.num_experts),
                self.scaling[name],
            )
            for name in self.active_adapters
            if name in self.lora_A
        ]
        return (low_rank_update(*pairs),) if pairs else ()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._check_forward_args(x, *args, **kwargs)
        updates: dict[str, tuple[LowRankUpdate, ...]] = {}
        layer: nn.Module = self
        while isinstance(layer, ParamWrapper):
            updates[f"{layer.parameter_name.removesuffix('_proj')}_updates"] = layer.updates()
            layer = layer.base_layer
        return layer(x, *args, **updates, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise AdapterError(
            Problem(
                "an adapter cannot be merged into packed weights in memory",
                self.parameter_name,
                mend="use `gptoss-ft merge base=DIR adapter=DIR out=DIR`",
            )
        )


def register_packed_experts(config: LoraConfig) -> None:
    """Tells PEFT to wrap `PackedExperts` with our `ParamWrapper`; this is not saved."""
    config._register_custom_module({PackedExperts: ParamWrapper})
