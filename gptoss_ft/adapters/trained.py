"""Base tensors that an adapter trains in full, without touching the base.

LoRA has no form for a bias, a norm or a sink. Unfreezing them would change the base itself, so that
a disabled adapter would no longer give the base's logits. Instead the adapter holds its own float32
copy, and the tensor in force is chosen on each access: the copy while the adapter is active, the
base's otherwise. PEFT switches these copies together with its LoRA layers because they are tuner
layers too.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrize

from gptoss_ft.model.experts.module import PackedExperts


class TrainedTensor(nn.Module, BaseTunerLayer):
    """Chooses between a base tensor and the copies that adapters train.

    Attributes:
        values: float32 copies, keyed by adapter name.
    """

    adapter_layer_names = ("values",)
    other_param_names = ()

    def __init__(self, base: torch.Tensor, adapter_name: str) -> None:
        super().__init__()
        self.values = nn.ParameterDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = [adapter_name]
        self.add(base, adapter_name)

    def add(self, base: torch.Tensor, adapter_name: str) -> None:
        """Gives an adapter its own copy, starting from the base."""
        self.values[adapter_name] = nn.Parameter(base.detach().float().clone())

    def forward(self, base: torch.Tensor) -> torch.Tensor:
        """Returns the tensor in force; float32 when it is an adapter's."""
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self.values:
                    return self.values[name]
        return base


def attach_trained(model: nn.Module, names: Iterable[str], adapter_name: str = "default") -> None:
    """Puts `TrainedTensor`s in front of base tensors, in place.

    Args:
        model: gpt-oss as `load_model` returns it, before PEFT wraps it.
        names: base tensor names such as `model.layers.0.self_attn.sinks`.
    """
    for name in names:
        module_name, _, tensor_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        base = getattr(module, tensor_name)
        trained = TrainedTensor(base, adapter_name)
        if isinstance(module, PackedExperts):
            # PEFT finds target parameters by name and a parametrised module hides its names.
            module.trained_biases[tensor_name.removesuffix("_bias")] = trained
        else:
            parametrize.register_parametrization(module, tensor_name, trained, unsafe=True)


def trained_layers(model: nn.Module) -> dict[str, TrainedTensor]:
    """Finds every `TrainedTensor` of a model, keyed by the base tensor's name."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, TrainedTensor):
            found[base_name(path)] = module
    return found


def base_name(path: str) -> str:
    """Returns the name of the base tensor behind a `TrainedTensor` at `path`, without PEFT's
    prefixes.
    """
    path = path.removeprefix("base_model.model.").replace(".base_layer", "")
    if ".trained_biases." in path:
        return path.replace(".trained_biases.", ".") + "_bias"
    return path.removesuffix(".0").replace(".parametrizations.", ".")
