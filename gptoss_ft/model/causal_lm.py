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

from gptoss_ft.model.attention.documents import (
    Documents,
    dense_masks,
    document_masks,
    documents_of,
)
from gptoss_ft.model.attention.sinks import SINK_ATTENTION
from gptoss_ft.model.loss import weighted_loss
from gptoss_ft.model.storage import StoredEmbedding
from gptoss_ft.model.token_scores import TokenScores, token_scores


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


@dataclass
class ScoredOutput(ModelOutput):
    """Scores of the targets that were asked for, in their order; see `TokenScores`.

    Attributes:
        log_probs, entropy, mean_logits, is_top1, log_sum_sq_probs: `[n]`; gradients through
            `log_probs` alone, of the first `trained_targets`.
        aux_loss: load-balancing loss of the batch, when router logits were asked for.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None
    log_sum_sq_probs: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


class WeightedGptOss(GptOssForCausalLM):
    """`GptOssForCausalLM` that answers with weighted losses or scores of tokens, without logits."""

    def forward(
        self,
        *args: Any,
        loss_weights: torch.Tensor | None = None,
        document_ids: torch.Tensor | None = None,
        documents: Documents | None = None,
        target_positions: torch.Tensor | None = None,
        target_ids: torch.Tensor | None = None,
        trained_targets: int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast | WeightedLossOutput | ScoredOutput:
        """Without `loss_weights` or `target_positions`, the forward of transformers.

        Args:
            loss_weights: `[batch, length]` as `weighted_loss` wants them; needs `labels` too.
            document_ids: int64 `[batch, length]`, 0 for padding; no token sees another document.
                `position_ids` should start anew in each.
            documents: the same, known on the host already, and prompts shared by documents.
            target_positions: int64 `[n]`, places in the flattened `[batch * length]` whose hidden
                states are to predict tokens; the same place may predict several.
            target_ids: int64 `[n]`, these tokens.
            trained_targets: how many of them, from the first, get gradients; None for all.
            logits_to_keep: as in transformers, whose `generate` looks for this name: without it,
                every position of a prompt would get logits.
        """
        padding = kwargs.get("attention_mask")
        if documents is None and document_ids is not None:
            documents = documents_of(document_ids)
        if documents is not None or document_ids is not None:
            kwargs["attention_mask"] = self._masks(documents, document_ids)
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
            return WeightedLossOutput(sums.nll, sums.weight, sums.correct, aux_loss)
        scores = self._scores(hidden, target_positions, target_ids, trained_targets)
        return ScoredOutput(**scores._asdict(), aux_loss=aux_loss)

    def _scores(
        self, hidden: torch.Tensor, positions: Any, ids: Any, trained: int | None
    ) -> TokenScores:
        """Scores of targets; the head is passed twice where some need no gradient."""
        rows = hidden.flatten(0, 1).index_select(0, positions)
        if trained is None or not torch.is_grad_enabled():
            trained = len(ids)
        head = self.lm_head.weight
        scores = token_scores(rows[:trained], head, ids[:trained])
        if trained == len(ids):
            return scores
        others = token_scores(rows[trained:].detach(), head, ids[trained:])
        return TokenScores(*map(torch.cat, zip(scores, others, strict=True)))

    def _masks(
        self, documents: Documents | None, ids: torch.Tensor | None
    ) -> dict[str, Documents] | dict[str, torch.Tensor]:
        """What each type of layer takes as its mask; transformers passes it through unseen.

        Args:
            documents: None when some are not in one piece.
            ids: their numbers; not looked at otherwise.
        """
        if documents is None:
            assert ids is not None
            window = self.config.sliding_window or ids.shape[1]
            return document_masks(ids, window, self._compute_dtype())
        if self.config._attn_implementation == SINK_ATTENTION:
            return dict.fromkeys(("full_attention", "sliding_attention"), documents)
        window = self.config.sliding_window or documents.length
        return dense_masks(documents, window, self._compute_dtype(), self.lm_head.weight.device)

    def _compute_dtype(self) -> torch.dtype:
        """The dtype of hidden states; packed models store their weights in another."""
        embedding = self.get_input_embeddings()
        if isinstance(embedding, StoredEmbedding):
            return embedding.compute_dtype
        return embedding.get_parameter("weight").dtype
