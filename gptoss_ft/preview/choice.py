"""`gptoss-ft preview`: examples as they will be trained, before anyone pays for a GPU."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from gptoss_ft.data.bad import BadRow, Report, count_bad, refused
from gptoss_ft.data.rows import ParsedRow
from gptoss_ft.data.summary import Counts, bad_lines
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import Vocabulary
from gptoss_ft.preview.html import write_html
from gptoss_ft.preview.options import PreviewOptions, row_slice
from gptoss_ft.preview.panels import PreviewRow, panels, preview_row
from gptoss_ft.preview.terminal import show_terminal

__all__ = ["PreviewRow", "preview", "preview_row", "show_terminal", "write_html"]

T = TypeVar("T")
FIRST_ROWS = slice(0, 10)
# A page of this many tokens is about 3 MB and still opens at once on a phone.
PAGE_TOKENS = 400_000
NOTHING = "no example to show"


def preview(
    examples: Iterable[ParsedRow],
    renderer: Renderer,
    vocabulary: Vocabulary,
    options: PreviewOptions,
    say: Callable[[str], None],
    *,
    title: str = "What is trained",
    summary: Sequence[str] = (),
    console: Console | None = None,
    dropped: Counts | None = None,
) -> list[PreviewRow]:
    """Shows the chosen examples in the terminal, and writes the page if one is asked for.

    The examples are read once, only as far as needed, and only the chosen ones are kept.

    Args:
        examples: where each stands (`file:line`), its format, and itself.
        renderer: with the options of the training.
        vocabulary: the renderer's.
        options: which ones to show, and where.
        say: takes lines of plain text for the user.
        title: of the page.
        summary: lines about the whole of the data, if anything is known about it.
        console: where to draw; standard output when None.
        dropped: counts the bad rows that are left out, while the examples are read; None refuses
            those that cannot be rendered.

    Returns:
        What was shown.

    Raises:
        DataError: chosen rows that cannot be rendered, all of them at once, or nothing to show.
        OSError: the page cannot be written.
    """
    found = _found(examples, renderer, options, dropped)
    rows = found[: options.limit]
    if not rows:
        raise DataError(_nothing(options))
    lines = [*summary, *(bad_lines(dropped.bad, dropped.first_bad) if dropped else ())]
    lines += _summary(rows, len(found) > len(rows), options, vocabulary)
    for line in column_lines(rows):
        say(line)
    if options.columns:
        return rows
    show_terminal(rows, vocabulary, console or Console())
    for line in lines:
        say(line)
    if options.html:
        path = Path(options.html)
        kept = _fitting(rows)
        if kept < len(rows):
            note = f"the page ends after {kept} of them, at {PAGE_TOKENS:,} tokens"
            say(note)
            lines.append(note)
        write_html(path, rows[:kept], vocabulary, lines, title)
        say(f"page written: {path}")
    return rows


def column_lines(rows: Sequence[PreviewRow]) -> list[str]:
    """Says how the columns of some rows were read, and what else is to be known of them."""
    columns = Counter(line for row in rows for line in row.columns)
    notes = sum((Counter(row.notes) for row in rows), Counter[str]())
    return [
        "columns:",
        *(f"  {line}{_in_some(count, len(rows))}" for line, count in columns.items()),
        *(f"note: {text} ({count:,} times)" for text, count in notes.items()),
    ]


def _in_some(count: int, rows: int) -> str:
    return "" if count == rows else f" (in {count:,} of {rows:,} rows)"


def _found(
    examples: Iterable[ParsedRow],
    renderer: Renderer,
    options: PreviewOptions,
    dropped: Counts | None,
) -> list[PreviewRow]:
    """Reads the examples to show, and one more if there are more; arguments as in `preview`."""
    bad: list[BadRow] = []
    found = list(islice(_selected(examples, renderer, options, bad.append), options.limit + 1))
    if bad and dropped is None:
        problems = [problem for row in bad for problem in row.problems]
        raise DataError(refused(problems, some_are_good=bool(found)))
    if dropped is not None:
        for row in bad:
            count_bad(dropped, row)
    return found


def _selected(
    examples: Iterable[ParsedRow],
    renderer: Renderer,
    options: PreviewOptions,
    report: Report,
) -> Iterator[PreviewRow]:
    """Yields the chosen examples, rendered; only `only` needs the others rendered as well."""

    def rendered(some: Iterable[ParsedRow]) -> Iterator[PreviewRow]:
        for where, format_name, example, notes, columns in some:
            try:
                row = preview_row(where, example, renderer, format_name)
                yield replace(row, columns=columns, notes=notes)
            except DataError as error:
                problems = (replace(one, where=one.where or where) for one in error.problems)
                report(BadRow(where, tuple(problems), {}))

    if not options.only:
        return rendered(_chosen(examples, lambda item: item[0], options))
    matching = (row for row in rendered(examples) if _matches(row, options.only))
    return _chosen(matching, lambda row: row.where, options)


def _chosen(items: Iterable[T], where: Callable[[T], str], options: PreviewOptions) -> Iterator[T]:
    """Yields the items that `rows`, `lines` or `random` names, in their order."""
    if options.lines:
        return (item for item in items if _line(where(item)) in options.lines)
    if options.random:
        return _drawn(items, options.random, options.seed)
    wanted = row_slice(options.rows) if options.rows else FIRST_ROWS
    if wanted is None:
        raise ValueError(f"not a range of rows: {options.rows!r}")
    return islice(items, wanted.start, wanted.stop, wanted.step)


def _line(where: str) -> int | None:
    number = where.rpartition(":")[2]
    return int(number) if number.isdecimal() else None


def _drawn(items: Iterable[T], count: int, seed: int) -> Iterator[T]:
    """Draws a sample without replacement from a stream of unknown length (Vitter's algorithm R)."""
    generator = random.Random(seed)
    kept: list[tuple[int, T]] = []
    for place, item in enumerate(items):
        if place < count:
            kept.append((place, item))
        elif (at := generator.randint(0, place)) < count:
            kept[at] = (place, item)
    return (item for _, item in sorted(kept, key=lambda pair: pair[0]))


def _matches(row: PreviewRow, only: str) -> bool:
    if only == "split":
        return row.kind == "sft" and len(row.rows) > 1
    if only == "bare":
        return any(one.bare_finals for one in row.rows)
    trained = {
        segment.channel
        for one in row.rows
        for segment in one.segments
        if any(weight > 0 for weight in one.loss_weights[segment.start : segment.stop])
    }
    return not trained if only == "untrained" else only in trained


def _nothing(options: PreviewOptions) -> Problem:
    names = ("rows", "lines", "random", "only")
    asked = [f"{name}={value}" for name in names if (value := getattr(options, name))]
    mend = "choose other rows" if asked else "write at least one example into the data"
    return Problem(NOTHING, "preview", " ".join(asked), mend)


def _summary(
    rows: list[PreviewRow], more: bool, options: PreviewOptions, vocabulary: Vocabulary
) -> list[str]:
    """Describes what is shown, not the whole of the data."""
    shown = [panel for row in rows for panel in panels(row, vocabulary)]
    tokens = sum(panel.tokens for panel in shown)
    channels = sum((panel.channels for panel in shown), Counter[str]())
    share = channels.total() / tokens if tokens else 0.0
    by_channel = ", ".join(f"{name} {count:,}" for name, count in channels.items())
    examples = f"{len(rows):,} example{'s' if len(rows) > 1 else ''} shown"
    lines = [f"{examples}{f', and there are more (limit={options.limit})' if more else ''}"]
    lines.append(
        f"{tokens:,} tokens, {channels.total():,} trained ({share:.0%})"
        + (f": {by_channel}" if by_channel else "")
    )
    missing = sorted(set(options.lines) - {_line(row.where) for row in rows})
    if missing and not more:
        lines.append(f"no example on line {', '.join(map(str, missing))}")
    return lines


def _fitting(rows: list[PreviewRow]) -> int:
    """Counts how many of the examples fit on a page, at least one."""
    tokens = 0
    for count, row in enumerate(rows):
        tokens += sum(len(one.input_ids) for one in row.rows)
        if tokens > PAGE_TOKENS and count:
            return count
    return len(rows)
