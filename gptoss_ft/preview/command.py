"""`gptoss-ft preview`: data files shown as they will be trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gptoss_ft.context import Context, Outcome
from gptoss_ft.data.rows import ParsedRow, read_examples
from gptoss_ft.errors import ConfigError, DataError, GptOssFtError, Problem
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import load_vocabulary, packaged_vocabulary
from gptoss_ft.preview.choice import preview
from gptoss_ft.preview.options import PreviewCommand


def run(options: PreviewCommand, context: Context) -> Outcome:
    """Shows the chosen rows of every source.

    Raises:
        GptOssFtError: settings out of range, or every bad row among those that were read.
    """
    if problems := options.problems():
        raise ConfigError(problems)
    folder = Path(options.tokenizer) if options.tokenizer else None
    vocabulary = load_vocabulary(folder) if folder else packaged_vocabulary()
    renderer = Renderer(vocabulary, options.data.render)
    bad: list[Problem] = []
    names = ", ".join(source.path for source in options.data.training_sources)
    try:
        preview(_examples(options, bad), renderer, vocabulary, options, context.say, title=names)
    except GptOssFtError as error:
        raise DataError([*bad, *error.problems]) from error
    if bad:
        raise DataError(bad)
    return Outcome()


def _examples(options: PreviewCommand, bad: list[Problem]) -> Iterator[ParsedRow]:
    for source in options.data.training_sources:
        yield from read_examples(source, bad, options.hub)
