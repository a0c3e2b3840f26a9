"""Supervised fine-tuning's row of the table of methods: conversations, and how they are batched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import datasets

from gptoss_ft.adapters.model import AdaptedModel
from gptoss_ft.context import Say
from gptoss_ft.data.collate import Collator
from gptoss_ft.data.dataset import PreparedData, prepare
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.vocabulary import Vocabulary
from gptoss_ft.train.methods import Method
from gptoss_ft.train.settings import trainer_problems

if TYPE_CHECKING:
    from gptoss_ft.train.options import TrainOptions
    from gptoss_ft.train.prepare import PreparedRun


def problems(options: TrainOptions, method: Method) -> list[Problem]:
    """Lists trainer settings that are refused, and settings of other methods."""
    found = trainer_problems(options, method)
    if options.preference is not None:
        what = "supervised fine-tuning has no settings of preferences"
        mend = "leave preference out, or name another method"
        found.append(Problem(what, "preference.method", repr(options.preference.method), mend))
    return found


def conversations(
    options: TrainOptions, vocabulary: Vocabulary, model: Path | None
) -> PreparedData:
    """Returns the rendered conversations; see `dataset.prepare` for arguments and errors."""
    return prepare(options.data, vocabulary, model, options.hub)


def conversation_datasets(
    run: PreparedRun, model: AdaptedModel, say: Say
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Returns the rendered rows to train and to validate on, as they are."""
    data: PreparedData = run.rendered
    return data.train, data.validation


def collator(options: TrainOptions) -> Collator:
    """Returns the collator of conversations."""
    return Collator()
