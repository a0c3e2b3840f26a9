"""Decoding in batches equals stock transformers on each prompt alone, and stops where it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stock import load_stock

from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.harmony.vocabulary import CALL, ENDOFTEXT, RETURN, load_vocabulary
from gptoss_ft.inference.decode import decode
from gptoss_ft.model.load import load_model

TOKENS = 6


@pytest.mark.parametrize("end", [RETURN, CALL, ENDOFTEXT])
def test_a_batch_equals_stock_transformers_prompt_by_prompt(
    tiny_checkpoint: Path, end: int
) -> None:
    """One prompt of the batch ends at once, the other goes on; both models have the same head."""
    model, stock = load_model(open_checkpoint(tiny_checkpoint)), load_stock(tiny_checkpoint)
    encode = load_vocabulary(tiny_checkpoint).encode
    prompts = [list(encode(text)) for text in ("Hello", "A longer prompt than the other one")]
    with torch.no_grad():
        hidden = stock.model(torch.tensor([prompts[0]])).last_hidden_state[0, -1]
        row = (2 * stock.lm_head(hidden).max() / hidden.square().sum() * hidden).bfloat16()
        for head in (model.lm_head, stock.lm_head):
            head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
            head.weight[end] = row
    together = decode(model, prompts, TOKENS)
    for prompt, ids in zip(prompts, together, strict=True):
        output = stock.generate(
            torch.tensor([prompt]),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=[RETURN, CALL, ENDOFTEXT],
        )
        assert ids == output[0, len(prompt) :].tolist()
        assert decode(model, [prompt], TOKENS) == [ids]
    assert together[0] == [end]
    assert len(together[1]) == TOKENS
