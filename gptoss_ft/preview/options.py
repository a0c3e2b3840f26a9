"""Settings of a preview."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_ft.data.options import DataOptions
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.options import CHANNELS
from gptoss_ft.validation import (
    choice_field,
    dotted,
    field_problems,
    number_field,
    path_field,
    text_field,
)

_SLICE = re.compile(r"(\d*):(\d*)(?::(\d*))?|(\d+)")


@dataclass
class PreviewOptions:
    """The examples to show, and the place to show them.

    Attributes:
        rows: examples by their place in the data, from 0, as START:STOP, START:STOP:STEP or one
            number; empty for the first ten.
        lines: or those on these lines of their files.
        random: or so many, drawn at random.
        seed: of the drawing.
        only: of all examples, choose among those that train this channel (analysis, commentary,
            final, tool_call), that train a final without analysis (bare), that make several rows
            (split), or of which nothing is trained (untrained); empty for all.
        limit: no more examples than this are shown.
        columns: say only how the columns of these examples are read.
        html: file to write the page to, or empty.
    """

    rows: str = text_field()
    lines: list[int] = field(default_factory=list)
    random: int = number_field(0, least=0)
    seed: int = 0
    only: str = choice_field("", ("", *CHANNELS, "bare", "split", "untrained"))
    limit: int = number_field(100, least=1)
    columns: bool = False
    html: str = path_field()

    def problems(self, key: str = "") -> list[Problem]:
        """Returns values out of range and contradictions."""
        found = field_problems(self, key)
        if self.rows and row_slice(self.rows) is None:
            where, mend = dotted(key, "rows"), "write START:STOP, such as 0:10, or one number"
            found.append(Problem("not a range of rows", where, repr(self.rows), mend))
        if any(line < 1 for line in self.lines):
            where, mend = dotted(key, "lines"), "write line numbers from 1, such as [3,17]"
            found.append(Problem("not line numbers", where, str(self.lines), mend))
        chosen = [name for name in ("rows", "lines", "random") if getattr(self, name)]
        if len(chosen) > 1:
            where = ", ".join(dotted(key, name) for name in chosen)
            found.append(Problem("rows chosen in two ways", where, mend=f"keep {chosen[0]} only"))
        return found + (_page_problems(Path(self.html), dotted(key, "html")) if self.html else [])


@dataclass
class PreviewCommand(PreviewOptions):
    """The data to preview, and which part of it.

    Attributes:
        tokenizer: checkpoint folder whose tokenizer is used; empty for the packaged one, which is
            that of the released models.
        hub: whether the network may be used to read a dataset from the Hub.
        data: where the data is and how it is rendered, as in training.
    """

    tokenizer: str = path_field()
    hub: bool = False
    data: DataOptions = field(default_factory=DataOptions)

    def problems(self, key: str = "") -> list[Problem]:
        """Returns what is wrong with the choice of rows and with the data's settings."""
        return [*super().problems(key), *self.data.problems(dotted(key, "data"))]


def _page_problems(page: Path, where: str) -> list[Problem]:
    """Returns what is in the way of a file at `page`."""
    mend = "name a file, such as preview.html"
    if page.is_dir():
        return [Problem("not a file", where, f"{page} is a folder", mend)]
    above = next((parent for parent in page.parents if parent.exists()), page)
    if above.is_file():
        return [Problem("not a path of a file", where, f"{above} is not a folder", mend)]
    return []


def row_slice(text: str) -> slice | None:
    """Returns the rows that a text such as `0:10` names; None if it cannot be read forwards."""
    match = _SLICE.fullmatch(text.strip())
    if match is None:
        return None
    start, stop, step, single = (int(part) if part else None for part in match.groups())
    if single is not None:
        return slice(single, single + 1)
    return None if step == 0 else slice(start, stop, step)
