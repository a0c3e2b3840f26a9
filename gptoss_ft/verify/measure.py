"""Measures how much of a fine-tune a merged checkpoint keeps, on rows that were not trained on.

    kept = 1 - KL(candidate ‖ base + adapter) / KL(base ‖ base + adapter)

over the positions that training would score: 1 is the fine-tune itself, 0 is the base. Models run
one after the other on memory-mapped files, layer by layer over all rows at once, so that the check
needs a few GB beside the system's file cache, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.combine import combine
from gptoss_ft.adapters.files import Adapter, open_adapter
from gptoss_ft.checkpoint.headers import Checkpoint, open_checkpoint
from gptoss_ft.errors import ConfigError, gather
from gptoss_ft.inference.decode import decode
from gptoss_ft.inference.token_rows import TokenRow, read_rows
from gptoss_ft.inference.tuned import tuned_model
from gptoss_ft.verify.divergence import Divergence, Outputs, compare, run
from gptoss_ft.verify.options import VerifyOptions
from gptoss_ft.verify.reload import Reload, reload
from gptoss_ft.verify.spot import SpotCheck, spot_check

# Below this the adapter does nothing that float32 could tell from noise.
NO_EFFECT = 1e-7


@dataclass(frozen=True)
class Verification:
    """The findings about a candidate.

    Attributes:
        reload: of the candidate by stock transformers.
        tensors: spot checks.
        base, candidate: divergence from base + adapter.
        rows, positions: what it was measured on.
        same_answers, answers: greedy answers of the candidate that equal those of base + adapter.
        needed: share of the fine-tune that passes.
    """

    reload: Reload
    tensors: tuple[SpotCheck, ...]
    base: Divergence
    candidate: Divergence
    rows: int
    positions: int
    same_answers: int
    answers: int
    needed: float

    @property
    def kept(self) -> float:
        """Share of the fine-tune that the candidate keeps; negative when worse than the base.

        Of an adapter that does nothing, all is kept or, if anything has changed, nothing.
        """
        if self.base.kl < NO_EFFECT:
            return 1.0 if self.candidate.kl < NO_EFFECT else 0.0
        return 1 - self.candidate.kl / self.base.kl

    @property
    def ok(self) -> bool:
        """True if the candidate passes."""
        return self.reload.ok and all(t.ok for t in self.tensors) and self.kept >= self.needed


@dataclass(frozen=True)
class _Inputs:
    base: Checkpoint
    candidate: Checkpoint
    adapters: tuple[tuple[Adapter, float], ...]
    expert_adapter: Adapter | None
    rows: list[TokenRow]


def verify(options: VerifyOptions) -> Verification:
    """Compares a candidate with base + adapter.

    Raises:
        GptOssFtError: settings, folders or rows that cannot be used; before weights are read.
    """
    problems = options.problems()
    if problems:
        raise ConfigError(problems)
    inputs = _open(options)
    reloaded = reload(inputs.candidate, inputs.rows)
    tensors = spot_check(inputs.base, inputs.adapters, inputs.candidate, options.spot_checks)
    base, _ = _run(inputs.base, (), inputs.rows, options, 0)
    tuned, wanted = _run(inputs.base, inputs.adapters, inputs.rows, options, options.answers)
    extra = ((inputs.expert_adapter, 1.0),) if inputs.expert_adapter else ()
    candidate, given = _run(inputs.candidate, extra, inputs.rows, options, options.answers)
    found = compare([base, candidate], tuned)
    return Verification(
        reload=reloaded,
        tensors=tuple(tensors),
        base=found[0],
        candidate=found[1],
        rows=len(inputs.rows),
        positions=len(tuned.hidden),
        same_answers=sum(a == b for a, b in zip(wanted, given, strict=True)),
        answers=len(wanted),
        needed=options.keep,
    )


def _open(options: VerifyOptions) -> _Inputs:
    base, candidate, expert_adapter, *adapters = gather(
        lambda: open_checkpoint(Path(options.base)),
        lambda: open_checkpoint(Path(options.candidate)),
        lambda: open_adapter(Path(options.expert_adapter)) if options.expert_adapter else None,
        *(partial(open_adapter, Path(name)) for name in options.adapters),
    )
    if any(update.is_experts for adapter in adapters for update in adapter.updates.values()):
        base.require_packed()
    fits = [(adapter, base) for adapter in adapters]
    if expert_adapter is not None:
        fits.append((expert_adapter, candidate.require_packed()))
    *_, rows = gather(
        *(partial(check_adapter, adapter, checkpoint) for adapter, checkpoint in fits),
        partial(read_rows, base.path, Path(options.prompts), options.rows, map=options.map),
    )
    weights = options.weights or [1.0] * len(adapters)
    weighted = tuple(zip(adapters, weights, strict=True))
    return _Inputs(base, candidate, weighted, expert_adapter, rows)


def _run(
    checkpoint: Checkpoint,
    adapters: Sequence[tuple[Adapter, float]],
    rows: Sequence[TokenRow],
    options: VerifyOptions,
    answers: int,
) -> tuple[Outputs, list[list[int]]]:
    """Returns what a model says about the scored positions, and its first greedy answers."""
    model = tuned_model(checkpoint, combine(adapters))
    outputs = run(model, rows)
    prompts = [row.prompt for row in rows[:answers]]
    # One at a time: an answer must not depend on which others are asked for.
    return outputs, [decode(model, [prompt], options.max_new_tokens)[0] for prompt in prompts]
