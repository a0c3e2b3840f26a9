"""Which tensors an adapter trains, as a PEFT configuration and a list of base tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from peft import LoraConfig, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES

from gptoss_ft.errors import Problem

KINDS = ("attention", "experts", "router", "lossless")
ATTENTION_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERT_PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ROUTER_TENSORS = ("mlp.router.weight", "mlp.router.bias")
LOSSLESS_TENSORS = (
    *ROUTER_TENSORS,
    "mlp.experts.gate_up_proj_bias",
    "mlp.experts.down_proj_bias",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "model.norm.weight",
    "self_attn.sinks",
)


@dataclass
class AdapterOptions:
    """What is trained.

    Attributes:
        kinds: any of `attention` (LoRA on q, k, v, o), `experts` (LoRA on both matrices of every
            expert), `router` (weight and bias in full), and `lossless` (everything that the
            released checkpoint keeps in bfloat16 but embeddings: LoRA on attention; router, expert
            biases, norms and sinks in full).
        r: rank on the attention matrices.
        alpha: LoRA alpha; the update is scaled by `alpha / rank`, or `alpha / sqrt(rank)` with
            `rslora`.
        expert_r: rank on each expert; 0 takes `r` divided by the number of experts per token, at
            least 1.
        rslora: rank-stabilised scaling (Kalajdzievski 2023).
        init: folder of a trained adapter to go on from, of which the result is a later stage: one
            merge holds both. Kinds, ranks and scaling are then those of that adapter. Preference
            tuning takes it as its reference.
    """

    kinds: list[str] = field(default_factory=lambda: ["attention"])
    r: int = 16
    alpha: float = 32.0
    expert_r: int = 0
    rslora: bool = False
    init: str = ""

    def problems(self, key: str = "adapter.") -> list[Problem]:
        """Finds everything that is out of range or misspelt."""
        found = [
            Problem("unknown adapter kind", key + "kinds", kind, f"use any of {', '.join(KINDS)}")
            for kind in self.kinds
            if kind not in KINDS
        ]
        if not self.kinds:
            found.append(
                Problem("nothing to train", key + "kinds", "[]", f"use any of {', '.join(KINDS)}")
            )
        if self.r < 1:
            found.append(Problem("the rank must be at least 1", key + "r", str(self.r)))
        if self.expert_r < 0:
            found.append(
                Problem(
                    "must be 0 (derived from r) or a rank", key + "expert_r", str(self.expert_r)
                )
            )
        if self.alpha <= 0:
            found.append(Problem("must be above 0", key + "alpha", str(self.alpha)))
        return found

    def expert_rank(self, experts_per_token: int) -> int:
        """Returns the rank per expert; a token meets k experts, so r / k spends as much on it as r
        does.
        """
        return self.expert_r or max(1, self.r // experts_per_token)


def lora_config(options: AdapterOptions, experts_per_token: int) -> LoraConfig:
    """The stock PEFT configuration of the low-rank part; only that part is in it."""
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


def trained_tensors(options: AdapterOptions, base_names: Iterable[str]) -> list[str]:
    """Names of the base tensors that are trained in full, in the order of `base_names`."""
    suffixes: tuple[str, ...] = ()
    if "router" in options.kinds:
        suffixes += ROUTER_TENSORS
    if "lossless" in options.kinds:
        suffixes += LOSSLESS_TENSORS
    return [name for name in base_names if name.endswith(suffixes)] if suffixes else []
