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

from gptoss_ft.model.attention import SINK_ATTENTION
from gptoss_ft.model.attention_documents import Documents, document_masks, documents_of
from gptoss_ft.model.loss import weighted_loss
from gptoss_ft.model.storage import StoredEmbedding


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
        self,
        *args: Any,
        loss_weights: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | WeightedLossOutput:
        """Without `loss_weights`, the forward of transformers.

        Args:
            loss_weights: `[batch, length]` as `weighted_loss` wants them; needs `labels` too.
            document_ids: int64 `[batch, length]`, 0 for padding; no token sees another document.
                `position_ids` should start anew in each.
            logits_to_keep: as in transformers, whose `generate` looks for this name: without it,
                every position of a prompt would get logits.
        """
        padding = kwargs.get("attention_mask")
        if document_ids is not None:
            kwargs["attention_mask"] = self._masks(document_ids)
        if loss_weights is None:
            return super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
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
                padding,
            )
        return WeightedLossOutput(sums.nll, sums.weight, sums.correct, aux_loss)

    def _masks(self, document_ids: torch.Tensor) -> dict[str, Documents] | dict[str, torch.Tensor]:
        """What each type of layer takes as its mask; transformers passes it through unseen."""
        if self.config._attn_implementation == SINK_ATTENTION:
            documents = documents_of(document_ids)
            if documents is not None:
                return dict.fromkeys(("full_attention", "sliding_attention"), documents)
        window = self.config.sliding_window or document_ids.shape[1]
        return document_masks(document_ids, window, self._compute_dtype())

    def _compute_dtype(self) -> torch.dtype:
        """The dtype of hidden states; packed models store their weights in another."""
        embedding = self.get_input_embeddings()
        if isinstance(embedding, StoredEmbedding):
            return embedding.compute_dtype
        return embedding.get_parameter("weight").dtype
