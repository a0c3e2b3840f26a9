"""Any checkpoint as a model that only computes forward and keeps its weights memory-mapped.

Packed experts do so in `load_model`. Here dense bfloat16 ones do too: each expert's matrices are
converted for one product and dropped, so that a 42 GB checkpoint runs in a few GB of memory, its
pages being the system's file cache.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssRotaryEmbedding

from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.model.attention.sinks import SINK_ATTENTION, register_sink_attention
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.experts.gate import Gate
from gptoss_ft.model.load import load_model, replace_layers


class MappedExperts(nn.Module):
    """Takes the place of transformers' `GptOssExperts`, without gradients; same names and call.

    Attributes:
        gate_up_proj: `[E, hidden, 2 * intermediate]`, gate columns even, up columns odd.
        down_proj: `[E, intermediate, hidden]`.
        gate_up_proj_bias, down_proj_bias: `[E, out]`.
    """

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        experts, hidden, inner = (
            config.num_local_experts,
            config.hidden_size,
            config.intermediate_size,
        )
        for name, shape in (
            ("gate_up_proj", (experts, hidden, 2 * inner)),
            ("gate_up_proj_bias", (experts, 2 * inner)),
            ("down_proj", (experts, inner, hidden)),
            ("down_proj_bias", (experts, hidden)),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=False))
        self.gate = Gate(config.swiglu_limit, config.swiglu_alpha)

    def forward(
        self, hidden_states: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Computes the weighted sum of the outputs of the experts that each token is routed to.

        Args:
            hidden_states: `[tokens, hidden]`; its dtype is the compute dtype.
            indices: int64 `[tokens, k]`.
            weights: `[tokens, k]`.
        """
        output = torch.zeros_like(hidden_states)
        for expert in indices.unique().tolist():
            token, place = (indices == expert).nonzero(as_tuple=True)
            rows = self._expert(hidden_states[token], expert)
            output.index_add_(0, token, rows.mul_(weights[token, place, None]))
        return output

    def _expert(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        def project(rows: torch.Tensor, name: str) -> torch.Tensor:
            weight = self.get_parameter(name)[expert].to(x.dtype)
            return torch.addmm(self.get_parameter(f"{name}_bias")[expert].to(x.dtype), rows, weight)

        z = project(x, "gate_up_proj")
        return project(self.gate(torch.cat([z[:, ::2], z[:, 1::2]], dim=-1)), "down_proj")


def load_mapped(checkpoint: Checkpoint) -> WeightedGptOss:
    """Loads a checkpoint on the CPU for inference, packed or dense, computing in float32.

    Args:
        checkpoint: what `open_checkpoint` returned.
    """
    if checkpoint.is_packed:
        return load_model(checkpoint, torch.device("cpu"))
    register_sink_attention()
    config = GptOssConfig.from_pretrained(checkpoint.path, local_files_only=True)
    config._attn_implementation = SINK_ATTENTION
    with torch.device("meta"):
        model = WeightedGptOss(config)
        for block in [m for m in model.modules() if hasattr(m, "experts")]:
            if isinstance(block.experts, GptOssExperts):
                block.experts = MappedExperts(config)
        replace_layers(model, config)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    model.load_state_dict(tensors, strict=True, assign=True)
    # Its tables are computed, not stored.
    model.model.rotary_emb = GptOssRotaryEmbedding(config)
    return model.requires_grad_(False).eval()
