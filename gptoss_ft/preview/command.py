"""`gptoss-ft preview`: data files shown as they will be trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gptoss_ft.context import Context, Outcome
from gptoss_ft.data.bad import BadRow, Report, count_bad, refused
from gptoss_ft.data.rows import ParsedRow, read_rows
from gptoss_ft.data.summary import Counts
from gptoss_ft.errors import ConfigError, DataError, GptOssFtError, Problem
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import load_vocabulary, packaged_vocabulary
from gptoss_ft.preview.choice import NOTHING, preview
from gptoss_ft.preview.options import PreviewCommand


def run(options: PreviewCommand, context: Context) -> Outcome:
    """Shows the chosen rows of every source.

    Bad rows among those that were read are refused in the end, or counted where they are to be left
    out.

    Raises:
        GptOssFtError: settings out of range, bad rows, or none that is good.
    """
    if problems := options.problems():
        raise ConfigError(problems)
    folder = Path(options.tokenizer) if options.tokenizer else None
    vocabulary = load_vocabulary(folder) if folder else packaged_vocabulary()
    renderer = Renderer(vocabulary, options.data.render)
    bad, dropped = list[BadRow](), Counts() if options.data.on_bad == "drop" else None
    examples = _examples(options, _report(bad, dropped))
    names = ", ".join(source.path for source in options.data.training_sources)
    try:
        preview(examples, renderer, vocabulary, options, context.say, title=names, dropped=dropped)
    except GptOssFtError as error:
        # Where every row is bad, that there is none to show goes without saying.
        others = [problem for problem in error.problems if not (bad and problem.what == NOTHING)]
        raise DataError([*_problems(bad), *others]) from error
    if bad and dropped is None:
        raise DataError(refused(_problems(bad), some_are_good=True))
    return Outcome()


def _examples(options: PreviewCommand, report: Report) -> Iterator[ParsedRow]:
    for source in options.data.training_sources:
        yield from read_rows(source, report, options.hub)


def _report(bad: list[BadRow], dropped: Counts | None) -> Report:
    """Returns what is called for each bad row: it keeps all of them, or the first of each cause
    where they are counted as left out.
    """

    def report(row: BadRow) -> None:
        if dropped is None or row.cause not in dropped.bad:
            bad.append(row)
        if dropped is not None:
            count_bad(dropped, row)

    return report


def _problems(bad: list[BadRow]) -> list[Problem]:
    return [problem for row in bad for problem in row.problems]
