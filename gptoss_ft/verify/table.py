"""A verification as a table to read."""

from __future__ import annotations

from gptoss_ft.verify.measure import Verification


def lines(result: Verification) -> list[str]:
    """Renders the result as a short table."""
    reloaded, tensors = result.reload, result.tensors
    difference = reloaded.difference
    logits = "keys are wrong" if difference is None else f"logits differ by {difference:.1e}"
    return [
        f"reload     {'ok' if reloaded.ok else 'FAILED'}: stock transformers, "
        f"{reloaded.layers} of {reloaded.all_layers} layers, {logits}",
        *(f"           {key}" for key in reloaded.wrong_keys),
        f"tensors    {sum(t.ok for t in tensors)} of {len(tensors)} as they should be",
        *(
            f"           wrong: {t.name} ({t.expected}, error {t.error:.3g})"
            for t in tensors
            if not t.ok
        ),
        "",
        f"{'':<11}{'KL to base + adapter':>22}{'same top-1':>12}",
        f"{'base':<11}{result.base.kl:>22.6f}{result.base.top1:>12.1%}",
        f"{'candidate':<11}{result.candidate.kl:>22.6f}{result.candidate.top1:>12.1%}",
        "",
        f"answers    {result.same_answers} of {result.answers} greedy answers are the same",
        f"kept       {result.kept:.1%} of the fine-tune on {result.positions} positions of "
        f"{result.rows} rows; {result.needed:.0%} needed: {'ok' if result.ok else 'NO'}",
    ]
