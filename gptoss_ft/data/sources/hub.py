"""Rows of a dataset on the Hub, streamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.sources.card import subset_problem
from gptoss_ft.data.sources.splits import choose_splits, others_note
from gptoss_ft.errors import DataError, Problem


def hub_rows(source: SourceOptions) -> tuple[Iterable[Mapping[str, Any]], list[str]]:
    """Streams the rows of a Hub dataset; loading scripts are never run.

    Returns:
        the rows, and notes on the splits that are not read.

    Raises:
        DataError: it cannot be read, or a subset or split has to be chosen.
    """
    import datasets

    try:
        found = datasets.load_dataset(source.path, source.subset or None, streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(_problem(source, error)) from error
    splits = {str(name): rows for name, rows in found.items()}
    chosen = choose_splits(list(splits), source.split, source.path)
    rows = chain.from_iterable(splits[name] for name in chosen)
    return rows, others_note(splits, chosen)


def _problem(source: SourceOptions, error: Exception) -> Problem:
    names = _subsets(source.path) if isinstance(error, ValueError) else []
    if len(names) > 1 and source.subset not in names:
        return subset_problem(names, source.subset, source.path)
    mend = "check the name, the subset and your access, or download it and give the folder"
    where = f"{source.path} (subset {source.subset})" if source.subset else source.path
    return Problem("the Hub dataset cannot be read", where, str(error), mend)


def _subsets(path: str) -> list[str]:
    import datasets

    try:
        return list(datasets.get_dataset_config_names(path))
    except (OSError, ValueError):
        return []
