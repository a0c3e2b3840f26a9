"""A user's data file as token rows to run through models: for calibration and verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.rows import read_examples
from gptoss_ft.documents import documents_from_lengths
from gptoss_ft.errors import DataError, Problem
from gptoss_ft.harmony.messages import Conversation, Document, Feedback, HarmonyText, Preference
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.segments import IGNORE, Row
from gptoss_ft.harmony.vocabulary import load_vocabulary
from gptoss_ft.model.causal_lm import WeightedGptOss

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
        """What stands before the last run of scored tokens."""
        start = len(self.scored) - 1
        while start > 0 and self.scored[start - 1] == self.scored[start] - 1:
            start -= 1
        return self.ids[: self.scored[start] + 1]


@dataclass(frozen=True)
class Pack:
    """Rows one after the other as one sequence, each seeing only itself.

    Attributes:
        first: index of the first row.
        rows: the rows.
    """

    first: int
    rows: tuple[TokenRow, ...]

    @property
    def numbers(self) -> torch.Tensor:
        """Index of every token's row, int64 `[tokens]`."""
        lengths = torch.tensor([len(row.ids) for row in self.rows])
        return torch.arange(self.first, self.first + len(self.rows)).repeat_interleave(lengths)

    @property
    def scored(self) -> torch.Tensor:
        """Scored positions in the sequence, int64."""
        found, start = [], 0
        for row in self.rows:
            found += [start + position for position in row.scored]
            start += len(row.ids)
        return torch.tensor(found)


def read_rows(
    model: Path, file: Path, count: int, render: RenderOptions | None = None
) -> list[TokenRow]:
    """The first `count` rows of a data file in any format, rendered as for training.

    Of a preference the chosen answer is taken; of a conversation that trains in several rows, the
    last one, which holds the longest history.

    Args:
        model: checkpoint folder with the tokenizer.
        file: the data.
        count: largest number of rows.
        render: identity, date and the like; None for the defaults of training.

    Raises:
        DataError: the file cannot be read, a row is bad, or none of them has an answer.
    """
    renderer = Renderer(load_vocabulary(model), render or RenderOptions())
    problems: list[Problem] = []
    rows: list[TokenRow] = []
    for where, _, example in read_examples(SourceOptions(str(file)), problems):
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


def packs(rows: Sequence[TokenRow], tokens: int) -> Iterator[Pack]:
    """Rows in order, as many at a time as fit into `tokens`, at least one."""
    first, length = 0, 0
    for index, row in enumerate(rows):
        if index > first and length + len(row.ids) > tokens:
            yield Pack(first, tuple(rows[first:index]))
            first, length = index, 0
        length += len(row.ids)
    if first < len(rows):
        yield Pack(first, tuple(rows[first:]))


@torch.inference_mode()
def hidden_states(model: WeightedGptOss, pack: Pack) -> torch.Tensor:
    """What the head of the model sees, float32 `[tokens, hidden]`; each layer is read once."""
    ids = torch.tensor([[token for row in pack.rows for token in row.ids]])
    positions = torch.cat([torch.arange(len(row.ids)) for row in pack.rows])[None]
    documents = documents_from_lengths([[len(row.ids) for row in pack.rows]], ids.shape[1])
    masks = dict.fromkeys(("full_attention", "sliding_attention"), documents)
    return model.model(
        input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False
    ).last_hidden_state[0]
