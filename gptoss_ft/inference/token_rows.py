"""A user's data file as token rows to run through models: for calibration and verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.rows import read_examples
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import Conversation, Document, Feedback, HarmonyText, Preference
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.segments import IGNORE, Row
from gptoss_ft.harmony.vocabulary import load_vocabulary

MAX_TOKENS = 4096


@dataclass(frozen=True)
class TokenRow:
    """One conversation or document, up to and with its last answer.

    Attributes:
        where: `file:line`.
        ids: what the model reads, at most `MAX_TOKENS`.
        scored: positions whose next token training would score.
    """

    where: str
    ids: tuple[int, ...]
    scored: tuple[int, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the last run of scored ones."""
        start = len(self.scored) - 1
        while start > 0 and self.scored[start - 1] == self.scored[start] - 1:
            start -= 1
        return self.ids[: self.scored[start] + 1]


def read_rows(
    model: Path, file: Path, count: int, render: RenderOptions | None = None, *, map: str = ""
) -> list[TokenRow]:
    """Reads the first `count` rows of a data file in any format, rendered as for training.

    Of a preference the chosen answer is taken; of a conversation that trains in several rows, the
    last one, which holds the longest history.

    Args:
        model: checkpoint folder with the tokenizer.
        file: the data.
        count: largest number of rows.
        render: identity, date and the like; None for the defaults of training.
        map: how the columns of the rows are read, as in `data.map`.

    Raises:
        DataError: the file cannot be read, a row is bad, or none of them has an answer.
    """
    renderer = Renderer(load_vocabulary(model), render or RenderOptions())
    problems: list[Problem] = []
    rows: list[TokenRow] = []
    for where, _, example, *_ in read_examples(SourceOptions(path=str(file), map=map), problems):
        found = _rendered(example, where, renderer)
        if found:
            labels = found[-1].labels[:MAX_TOKENS]
            scored = tuple(i - 1 for i, label in enumerate(labels) if i and label != IGNORE)
            rows.append(TokenRow(where, tuple(found[-1].input_ids[:MAX_TOKENS]), scored))
        if len(rows) == count:
            break
    if not rows and not problems:
        mend = "give conversations with assistant answers"
        problems.append(Problem("no row has anything that is trained", str(file), mend=mend))
    if problems:
        raise DataError(problems)
    return rows


def _rendered(example: object, where: str, renderer: Renderer) -> Sequence[Row]:
    match example:
        case Conversation():
            return renderer.render(example)
        case Preference():
            return [renderer.completion(example.prompt, example.chosen)]
        case Feedback():
            return [renderer.completion(example.prompt, example.completion)]
        case HarmonyText():
            return renderer.render_harmony(example, where)
        case Document():
            return renderer.render_document(example, MAX_TOKENS)
    return []
