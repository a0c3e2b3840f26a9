"""Continuations of token prompts, in batches: for answers, verification and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.harmony.vocabulary import CALL, ENDOFTEXT, RETURN
from gptoss_ft.model.causal_lm import WeightedGptOss

# Whichever comes first ends an answer: a final message, a tool call, a document.
ENDS = (RETURN, CALL, ENDOFTEXT)


@torch.inference_mode()
def decode(
    model: WeightedGptOss | AdaptedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """Continues every prompt, all in one batch that is padded on the left.

    Args:
        model: with or without an adapter.
        prompts: token ids, at least one prompt of at least one token.
        max_new_tokens: a continuation is cut off there.
        temperature: 0 decodes greedily; above it, samples with torch's global generator.

    Returns:
        The new ids of each prompt, through the first of `ENDS` or up to `max_new_tokens`.
    """
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), ENDOFTEXT, device=model.device)
    attention_mask = torch.zeros_like(input_ids)
    for index, prompt in enumerate(prompts):
        input_ids[index, longest - len(prompt) :] = torch.tensor(prompt, device=model.device)
        attention_mask[index, longest - len(prompt) :] = 1
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    output: Any = model.generate(  # type: ignore[misc]  # transformers types its self as a protocol
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ENDS),
        pad_token_id=ENDOFTEXT,
        **sampling,
    )
    return [_through_end(ids) for ids in output[:, longest:].tolist()]


def _through_end(ids: list[int]) -> list[int]:
    """Drops what follows the first token that ends an answer."""
    ends = [ids.index(end) for end in ENDS if end in ids]
    return ids[: min(ends) + 1] if ends else ids
