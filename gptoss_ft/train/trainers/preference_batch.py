"""Weighted scores of a preference batch, and metrics by channel."""

from __future__ import annotations

import torch

from gptoss_ft.data.collate_pairs import Batch
from gptoss_ft.data.pairs import CHANNELS
from gptoss_ft.model.token_scores import TokenScores
from gptoss_ft.train.scores import by_completion, score_batch

TINY = torch.finfo(torch.float32).tiny


def completion_scores(
    model: torch.nn.Module, batch: Batch, router_logits: bool = False
) -> TokenScores:
    """Scores a batch of `data/collate_pairs.py`.

    Returns:
        `[completions, longest]` each, 0 behind the ends; tokens without weight are scored too.
    """
    scores = score_batch(model, batch, output_router_logits=router_logits)
    laid_out = TokenScores(*(by_completion(values, batch) for values in scores[:-1]))
    return laid_out._replace(aux_loss=scores.aux_loss)


def weighted(scores: TokenScores, weights: torch.Tensor) -> TokenScores:
    """Multiplies by the weights what TRL's losses sum over the tokens of a completion."""
    log_probs, squares = scores.log_probs * weights, scores.log_sum_sq_probs * weights
    return scores._replace(log_probs=log_probs, log_sum_sq_probs=squares)


def weighted_reference(batch: Batch) -> torch.Tensor:
    """Returns the reference's log-probabilities times the weights, `[completions, longest]`."""
    return torch.as_tensor(batch["ref_logps"] * batch["weights"])


def trl_mask(batch: Batch) -> torch.Tensor:
    """Returns TRL's `completion_mask`, int64 `[completions, 1 + longest]`: tokens with weight.

    Its first column stands for the prompt, which TRL takes off.
    """
    counted = (batch["weights"] != 0).long()
    return torch.cat([torch.zeros_like(counted[:, :1]), counted], dim=1)


def tokens(batch: Batch) -> torch.Tensor:
    """Returns a mask over all tokens that the model computes for a batch, which TRL counts."""
    kl = batch.get("kl")
    length = batch["documents"].length + (kl["documents"].length if kl else 0)
    return torch.ones(1, length, dtype=torch.int64, device=batch["weights"].device)


def by_channel(batch: Batch, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums values over the tokens of each channel, `[completions]`, and counts these.

    Args:
        batch: for its `channels`.
        values: `[completions, longest]`.

    Returns:
        `{channel}` and `{channel}/length` for all channels that a token may have.
    """
    found = {}
    for code, name in enumerate(CHANNELS[1:], start=1):
        inside = batch["channels"] == code
        found[name] = (values * inside).sum(1)
        found[f"{name}/length"] = inside.sum(1).to(values.dtype)
    return found


def channel_metrics(
    batch: Batch, values: torch.Tensor, name: str, chosen: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sums over the completions of each side.

    Args:
        batch: for its `channels`.
        values: `[completions, longest]`, of which `name` is the sum over a channel's tokens.
        name: log-ratios or log-probabilities.
        chosen: bool `[completions]`; the others are rejected.

    Returns:
        `{channel}/{name}/{side}` and `{channel}/length/{side}`, scalars.
    """
    found = {}
    for key, sums in by_channel(batch, values).items():
        channel, _, length = key.partition("/")
        for side, of in (("chosen", chosen), ("rejected", ~chosen)):
            found[f"{channel}/{length or name}/{side}"] = (sums * of).sum()
    return found


def finished_channels(means: dict[str, float], name: str) -> dict[str, float]:
    """Leaves out channels that no token had, and adds what chosen has over rejected."""
    means = dict(means)
    for channel in CHANNELS[1:]:
        keys = [
            f"{channel}/{what}/{side}"
            for what in ("length", name)
            for side in ("chosen", "rejected")
        ]
        if not any(means.get(key) for key in keys[:2]):
            for key in keys:
                means.pop(key, None)
        elif all(key in means for key in keys[2:]):
            means[f"{channel}/margins"] = means[keys[2]] - means[keys[3]]
    return means
