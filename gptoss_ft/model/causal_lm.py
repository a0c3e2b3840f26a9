"""The gpt-oss language model with our loss inside its forward.

The loss lives here and not in the trainer because wrappers (DDP, FSDP) hook the outermost forward:
calling the inner model from a trainer would bypass them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GptOssForCausalLM
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from gptoss_ft.documents import Documents
from gptoss_ft.model.attention.masks import dense_masks
from gptoss_ft.model.attention.sinks import SINK_ATTENTION
from gptoss_ft.model.loss import WeightedLoss, weighted_loss
from gptoss_ft.model.storage import StoredEmbedding
from gptoss_ft.model.token_scores import TokenScores, token_scores


class WeightedGptOss(GptOssForCausalLM):
    """`GptOssForCausalLM` that answers with weighted losses or scores of tokens, without logits."""

    def forward(
        self,
        *args: Any,
        loss_weights: torch.Tensor | None = None,
        documents: Documents | None = None,
        target_positions: torch.Tensor | None = None,
        target_ids: torch.Tensor | None = None,
        trained_targets: int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | WeightedLoss | TokenScores:
        """Computes a weighted loss, or scores of tokens, or else what transformers' forward does.

        Args:
            loss_weights: `[batch, length]` as `weighted_loss` wants them; needs `labels` too.
                Asks for a weighted loss.
            documents: what sees what, from the collator; `position_ids` should start anew in each
                document. `attention_mask` then only says which tokens the load-balancing loss
                counts. None to derive it from `attention_mask`, as in transformers.
            target_positions: int64 `[n]`, places in the flattened `[batch * length]` whose hidden
                states are to predict tokens; the same place may predict several. Asks for scores.
            target_ids: int64 `[n]`, these tokens.
            trained_targets: how many of them, from the first, get gradients; None for all.
            logits_to_keep: as in transformers, whose `generate` looks for this name: without it,
                every position of a prompt would get logits.
        """
        padding = kwargs.get("attention_mask")
        if documents is not None:
            kwargs["attention_mask"] = self._masks(documents)
        if loss_weights is None and target_positions is None:
            return super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        labels = kwargs.pop("labels", None)
        router_logits = kwargs.get("output_router_logits", False)
        outputs = self.model(*args, **kwargs)
        hidden = outputs.last_hidden_state
        aux_loss: Any = None
        if router_logits:
            aux_loss = load_balancing_loss_func(
                outputs.router_logits,
                self.num_experts,
                self.num_experts_per_tok,
                padding,
            )
        if loss_weights is not None:
            sums = weighted_loss(hidden, self.lm_head.weight, labels, loss_weights)
            return sums._replace(aux_loss=aux_loss)
        scores = self._scores(hidden, target_positions, target_ids, trained_targets)
        return scores._replace(aux_loss=aux_loss)

    def _scores(
        self, hidden: torch.Tensor, positions: Any, ids: Any, trained: int | None
    ) -> TokenScores:
        """Scores targets; the head is passed twice where some need no gradient."""
        rows = hidden.flatten(0, 1).index_select(0, positions)
        if trained is None or not torch.is_grad_enabled():
            trained = len(ids)
        head = self.lm_head.weight
        scores = token_scores(rows[:trained], head, ids[:trained])
        if trained == len(ids):
            return scores
        others = token_scores(rows[trained:].detach(), head, ids[trained:])
        return TokenScores(*map(torch.cat, zip(scores[:-1], others[:-1], strict=True)))

    def _masks(self, documents: Documents) -> dict[str, Documents] | dict[str, torch.Tensor]:
        """Returns each layer type's mask, which transformers passes through unseen."""
        if self.config._attn_implementation == SINK_ATTENTION:
            return dict.fromkeys(("full_attention", "sliding_attention"), documents)
        window = self.config.sliding_window or documents.length
        return dense_masks(documents, window, self._compute_dtype(), self.lm_head.weight.device)

    def _compute_dtype(self) -> torch.dtype:
        """Returns the dtype of hidden states; packed models store their weights in another."""
        embedding = self.get_input_embeddings()
        if isinstance(embedding, StoredEmbedding):
            return embedding.compute_dtype
        return embedding.get_parameter("weight").dtype
