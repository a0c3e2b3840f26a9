"""The tensors that an adapter trains (config group `adapter`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gptoss_ft.errors import Problem
from gptoss_ft.validation import dotted, field_problems, number_field, path_field, unknown_choice

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
    """The parts to train, and their ranks.

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
    r: int = number_field(16, least=1)
    alpha: float = number_field(32.0, above=0)
    expert_r: int = number_field(0, least=0)
    rslora: bool = False
    init: str = path_field()

    def problems(self, key: str = "") -> list[Problem]:
        """Finds everything that is out of range or misspelt."""
        where = dotted(key, "kinds")
        found = [
            unknown_choice("unknown adapter kind", where, kind, KINDS)
            for kind in self.kinds
            if kind not in KINDS
        ]
        if not self.kinds:
            found.append(
                Problem("nothing to train", where, "[]", f"write any of {', '.join(KINDS)}")
            )
        return found + field_problems(self, key)

    def expert_rank(self, experts_per_token: int) -> int:
        """Returns the rank per expert; a token meets k experts, so r / k spends as much on it as r
        does.
        """
        return self.expert_r or max(1, self.r // experts_per_token)


def trained_tensors(options: AdapterOptions, base_names: Iterable[str]) -> list[str]:
    """Returns the base tensors that are trained in full, in the order of `base_names`."""
    suffixes: tuple[str, ...] = ()
    if "router" in options.kinds:
        suffixes += ROUTER_TENSORS
    if "lossless" in options.kinds:
        suffixes += LOSSLESS_TENSORS
    return [name for name in base_names if name.endswith(suffixes)] if suffixes else []
