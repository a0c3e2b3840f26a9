"""A gpt-oss with an adapter: PEFT's model, with our tensors saved and loaded beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModelForCausalLM
from safetensors import safe_open
from safetensors.torch import save_file

from gptoss_ft import __version__
from gptoss_ft.adapters.experts import register_packed_experts
from gptoss_ft.adapters.files import ADAPTER_INFO, TRAINED_TENSORS, Adapter
from gptoss_ft.adapters.lora import lora_config
from gptoss_ft.adapters.options import AdapterOptions, trained_tensors
from gptoss_ft.adapters.trained import attach_trained, trained_layers
from gptoss_ft.files import write_json
from gptoss_ft.model.causal_lm import WeightedGptOss


@dataclass(frozen=True)
class AdapterInfo:
    """The origin of an adapter; saved as `gptoss_ft.json` in its folder.

    Attributes:
        kinds: the adapter kinds that were trained.
        base: folder or model id of the base, for people.
        base_fingerprint: identifies the base's weights, for checks.
        base_tensors: the `tensor_digests` behind it, so that a check can name what differs.
    """

    kinds: tuple[str, ...]
    base: str
    base_fingerprint: str
    base_tensors: Mapping[str, str] = field(default_factory=dict)


class AdaptedModel(PeftModelForCausalLM):
    """`PeftModelForCausalLM` that keeps fully trained tensors in a file of their own.

    `adapter_model.safetensors` holds the LoRA tensors alone, so that stock PEFT loads the folder;
    `trained_tensors.safetensors` holds the others under the base's names, float32.
    """

    info: AdapterInfo

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Saves as PEFT does, plus trained tensors and `gptoss_ft.json`."""
        state = kwargs.pop("state_dict", None)
        state = self.state_dict() if state is None else state
        lora = {name: tensor for name, tensor in state.items() if ".lora_" in name}
        super().save_pretrained(save_directory, *args, state_dict=lora, **kwargs)
        folder = Path(save_directory)
        trained = {
            name: layer.values["default"].detach().cpu().contiguous()
            for name, layer in trained_layers(self).items()
        }
        if trained:
            save_file(trained, folder / TRAINED_TENSORS, metadata={"format": "pt"})
        write_json(
            folder / ADAPTER_INFO, {"format": 1, **asdict(self.info), "version": __version__}
        )

    def load_adapter(  # type: ignore[override]  # everything else is passed through
        self, model_id: str, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Loads as PEFT does, plus trained tensors."""
        result = super().load_adapter(model_id, adapter_name, *args, **kwargs)
        file = Path(model_id) / TRAINED_TENSORS
        layers = trained_layers(self)
        if file.is_file():
            with safe_open(file, framework="pt") as tensors, torch.no_grad():
                for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                    layers[name].values[adapter_name].copy_(tensors.get_tensor(name))
        return result


def add_adapter(model: WeightedGptOss, options: AdapterOptions, info: AdapterInfo) -> AdaptedModel:
    """Gives a loaded model a fresh trainable adapter; adapters and trained tensors are float32."""
    names = [name for name, _ in model.named_parameters()]
    attach_trained(model, trained_tensors(options, names))
    config = lora_config(options, model.config.num_experts_per_tok)
    return _adapted(model, config, info)


def load_adapter(
    model: WeightedGptOss,
    adapter: Adapter,
    trainable: bool = False,
    info: AdapterInfo | None = None,
) -> AdaptedModel:
    """Puts a saved adapter on a loaded model.

    Args:
        model: what `load_model` returned.
        adapter: what `open_adapter` returned and `check_adapter` accepted for this base.
        trainable: whether to go on training it.
        info: what is saved with it later; None for what is known of it.
    """
    attach_trained(model, adapter.trained)
    config = LoraConfig.from_pretrained(str(adapter.path))
    config.inference_mode = not trainable
    base = model.config.name_or_path or ""
    fingerprint = adapter.base_fingerprint or ""
    info = info or AdapterInfo(adapter.kinds, base, fingerprint, adapter.base_tensors)
    adapted = _adapted(model, config, info)
    adapted.load_adapter(str(adapter.path), "default", is_trainable=trainable)
    return adapted.train(trainable).requires_grad_(False) if not trainable else adapted


def _adapted(model: WeightedGptOss, config: LoraConfig, info: AdapterInfo) -> AdaptedModel:
    register_packed_experts(config)
    adapted = AdaptedModel(model, config)
    adapted.info = info
    return adapted


def adapter_parameters(model: AdaptedModel) -> dict[str, int]:
    """Counts trained parameters by part: attention, experts, full tensors."""
    counts = {"attention": 0, "experts": 0, "full tensors": 0}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lora_part = "experts" if ".experts." in name else "attention"
        counts[lora_part if ".lora_" in name else "full tensors"] += parameter.numel()
    return {part: count for part, count in counts.items() if count}
