"""`gptoss-ft preview`: data files shown as they will be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_ft.data.options import DataOptions
from gptoss_ft.data.rows import ParsedRow, read_examples
from gptoss_ft.errors import ConfigError, DataError, GptOssFtError, Problem
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import load_vocabulary, packaged_vocabulary
from gptoss_ft.preview.choice import PreviewOptions, preview


@dataclass
class PreviewCommand(PreviewOptions):
    """What to preview, and which part of it.

    Attributes:
        tokenizer: checkpoint folder whose tokenizer is used; empty for the packaged one, which is
            that of the released models.
        hub: whether the network may be used to read a dataset from the Hub.
        data: where the data is and how it is rendered, as in training.
    """

    tokenizer: str = ""
    hub: bool = False
    data: DataOptions = field(default_factory=DataOptions)


def run_preview(options: PreviewCommand, say: Callable[[str], None] = print) -> None:
    """Shows the chosen rows of every source.

    Raises:
        GptOssFtError: settings out of range, or every bad row among those that were read.
    """
    if problems := [*options.problems(""), *options.data.problems("data")]:
        raise ConfigError(problems)
    folder = Path(options.tokenizer) if options.tokenizer else None
    vocabulary = load_vocabulary(folder) if folder else packaged_vocabulary()
    renderer = Renderer(vocabulary, options.data.render)
    bad: list[Problem] = []
    names = ", ".join(source.path for source in options.data.training_sources)
    try:
        preview(_examples(options, bad), renderer, vocabulary, options, say, title=names)
    except GptOssFtError as error:
        raise DataError([*bad, *error.problems]) from error
    if bad:
        raise DataError(bad)


def _examples(options: PreviewCommand, bad: list[Problem]) -> Iterator[ParsedRow]:
    for source in options.data.training_sources:
        yield from read_examples(source, bad, options.hub)
