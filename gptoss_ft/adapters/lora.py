"""The stock PEFT configuration of an adapter's low-rank part."""

from __future__ import annotations

from peft import LoraConfig, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES

from gptoss_ft.adapters.options import ATTENTION_MODULES, EXPERT_PARAMETERS, AdapterOptions


def lora_config(options: AdapterOptions, experts_per_token: int) -> LoraConfig:
    """Returns PEFT's own configuration of the low-rank part; only that part is in it."""
    attention = bool({"attention", "lossless"} & set(options.kinds))
    experts = "experts" in options.kinds
    expert_rank = options.expert_rank(experts_per_token)
    # The general rank is the experts' where there are any: PEFT warns of patterns on parameters.
    rank = expert_rank if experts else options.r
    differs = attention and experts and expert_rank != options.r
    target_modules: list[str] | str = list(ATTENTION_MODULES) if attention else []
    if not attention and not experts:
        target_modules = DUMMY_TARGET_MODULES
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # any number will do
        use_rslora=options.rslora,
        lora_dropout=0.0,
        bias="none",
        target_modules=target_modules,
        target_parameters=list(EXPERT_PARAMETERS) if experts else None,
        rank_pattern=dict.fromkeys(ATTENTION_MODULES, options.r) if differs else {},
    )
