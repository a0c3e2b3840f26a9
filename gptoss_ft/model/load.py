"""Loading a checkpoint for training: experts packed, files memory-mapped, nothing converted.

The way in is transformers' public quantizer registry. A quantizer under a name of our own replaces,
while the model is still on the meta device, the expert modules by packed ones and the linear layers
by ones that store bfloat16 and compute in the dtype of their input.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import GptOssConfig, PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.models.gpt_oss.modeling_gpt_oss import (
    GptOssExperts,
    GptOssRMSNorm,
    GptOssTopKRouter,
)
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from gptoss_ft.checkpoint.headers import Checkpoint
from gptoss_ft.errors import CheckpointError, Problem
from gptoss_ft.model.attention.sinks import SINK_ATTENTION, register_sink_attention
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.cpu.allocator import return_large_buffers
from gptoss_ft.model.cpu.prefetch import prefetch_layers
from gptoss_ft.model.experts.module import PackedExperts
from gptoss_ft.model.norm import FrozenNorm
from gptoss_ft.model.storage import StoredEmbedding, StoredLinear, StoredRouter

QUANT_METHOD = "gptoss_ft_packed_mxfp4"


class PackedMxfp4Config(QuantizationConfigMixin):
    """Quantization config without settings; its name selects `PackedMxfp4Quantizer`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(quant_method=QUANT_METHOD)  # type: ignore[arg-type]  # a name of our own


class PackedMxfp4Quantizer(HfQuantizer):
    """Keeps MXFP4 blocks and scales as they are in the file, as frozen uint8 parameters."""

    requires_calibration = False

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        with torch.device("meta"):
            replace_layers(model, cast(GptOssConfig, model.config))
        return model

    def get_weight_conversions(self) -> list[WeightRenaming]:
        return [
            WeightRenaming("experts.gate_up_proj_blocks", "experts.gate_up_proj"),
            WeightRenaming("experts.down_proj_blocks", "experts.down_proj"),
        ]

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def replace_layers(model: nn.Module, config: GptOssConfig) -> None:
    """Replaces experts, linear layers, embeddings and routers of a meta model by ours."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            replacement = _replacement(child, config)
            if replacement is not None:
                setattr(parent, name, replacement.to(model_dtype(config)))


def model_dtype(config: GptOssConfig) -> torch.dtype:
    """Returns the dtype that floating-point weights are stored in."""
    return cast(torch.dtype, config.dtype or torch.bfloat16)


def _replacement(child: nn.Module, config: GptOssConfig) -> nn.Module | None:
    if isinstance(child, GptOssExperts):
        return PackedExperts(config)
    if isinstance(child, GptOssTopKRouter):
        return StoredRouter(config)
    if isinstance(child, GptOssRMSNorm):
        return FrozenNorm(child.weight.shape[0], child.variance_epsilon)
    if isinstance(child, nn.Linear):
        return StoredLinear(child.in_features, child.out_features, bias=child.bias is not None)
    if isinstance(child, nn.Embedding):
        return StoredEmbedding(child.num_embeddings, child.embedding_dim, child.padding_idx)
    return None


def _register_quantizer() -> None:
    """Registers our quantizer with transformers once; registering twice raises there."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(PackedMxfp4Config)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(PackedMxfp4Quantizer)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Returns bfloat16 for a GPU, float32 for a CPU.

    Raises:
        CheckpointError: a GPU without bfloat16 (before Ampere); float16 overflows in gpt-oss.
    """
    if device.type != "cuda":
        return torch.float32
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise CheckpointError(
            Problem(
                "this GPU has no bfloat16 units and gpt-oss overflows in float16",
                torch.cuda.get_device_name(device),
                mend="use an Ampere or newer GPU, or train on the CPU with CUDA_VISIBLE_DEVICES=''",
            )
        )
    return torch.bfloat16


def load_model(
    checkpoint: Checkpoint,
    device: torch.device | None = None,
    save_pre_activation: bool = True,
) -> WeightedGptOss:
    """Loads a checkpoint with frozen weights, ready for adapters.

    Packed experts stay packed. While the model is on the CPU its files stay memory-mapped and each
    layer has the pages of its neighbour read ahead; the process returns large buffers to the system
    from then on (see `allocator`). A dense checkpoint loads with transformers' own expert modules,
    in the compute dtype.

    Args:
        checkpoint: what `open_checkpoint` returned.
        device: CUDA when there is one, else the CPU.
        save_pre_activation: see `PackedExperts`; transformers' own modules do not know it.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(device)
    config = GptOssConfig.from_pretrained(checkpoint.path, local_files_only=True)
    register_sink_attention()
    if checkpoint.is_packed:
        _register_quantizer()
        config.quantization_config = {"quant_method": QUANT_METHOD}
    loaded: Any = WeightedGptOss.from_pretrained(
        checkpoint.path,
        config=config,
        dtype=torch.bfloat16 if checkpoint.is_packed else dtype,
        # PEFT dispatches a model with a device map anew, which would copy it out of the memory map.
        device_map=None if device.type == "cpu" else {"": device},
        attn_implementation=SINK_ATTENTION,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    model, report = cast(tuple[WeightedGptOss, dict[str, Any]], loaded)
    unloaded = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(unloaded.values()):
        raise CheckpointError(
            Problem(
                "transformers could not place every tensor", str(checkpoint.path), str(unloaded)
            )
        )
    for module in model.modules():
        if isinstance(module, StoredEmbedding):
            module.compute_dtype = dtype
        if isinstance(module, PackedExperts):
            module.save_pre_activation = save_pre_activation
    if device.type == "cpu":
        return_large_buffers()
        prefetch_layers(model)
    return model.requires_grad_(False).eval()
