"""The gpt-oss language model with our loss inside its forward.

The loss lives here and not in the trainer because wrappers (DDP, FSDP) hook the outermost forward:
calling the inner model from a trainer would bypass them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GptOssForCausalLM
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func
from transformers.utils.generic import ModelOutput

from gptoss_ft.model.loss import weighted_loss


@dataclass
class WeightedLossOutput(ModelOutput):
    """Sums over the scored positions of a batch; see `WeightedLoss`.

    Attributes:
        loss: sum of weight times negative log-likelihood, differentiable.
        weight: sum of weights.
        correct: sum of weights of the positions whose most likely token is the label.
        aux_loss: load-balancing loss of the batch, when router logits were asked for.
    """

    loss: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    correct: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


class WeightedGptOss(GptOssForCausalLM):
    """`GptOssForCausalLM` that answers `loss_weights` with weighted losses, without logits."""

    def forward(
        self, *args: Any, loss_weights: torch.Tensor | None = None, **kwargs: Any
    ) -> MoeCausalLMOutputWithPast | WeightedLossOutput:
        """Without `loss_weights`, the forward of transformers.

        Args:
            loss_weights: `[batch, length]` as `weighted_loss` wants them; needs `labels` too.
        """
        if loss_weights is None:
            return super().forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        router_logits = kwargs.get("output_router_logits", False)
        outputs = self.model(*args, **kwargs)
        sums = weighted_loss(outputs.last_hidden_state, self.lm_head.weight, labels, loss_weights)
        aux_loss: Any = None
        if router_logits:
            aux_loss = load_balancing_loss_func(
                outputs.router_logits,
                self.num_experts,
                self.num_experts_per_tok,
                kwargs.get("attention_mask"),
            )
        return WeightedLossOutput(sums.nll, sums.weight, sums.correct, aux_loss)
