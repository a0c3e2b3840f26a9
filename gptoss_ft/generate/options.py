"""Settings of `generate`: the model and the questions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gptoss_ft.data.layouts.maps import map_problems
from gptoss_ft.errors import Problem
from gptoss_ft.harmony.messages import EFFORTS
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.validation import (
    choice_field,
    dotted,
    field_problems,
    number_field,
    path_field,
    text_field,
)


@dataclass
class GenerateOptions:
    """The model, the questions and the decoding.

    Attributes:
        model: checkpoint folder, packed or dense, or a Hub id with `hub=true`.
        adapter: adapter folder, or empty.
        prompt: one user message.
        file: conversations in any format, asked instead of a prompt: each one's last answer is
            generated anew from the true history before it, and compared with the one in the file.
        map: how the columns of `file` are read, as in `data.map`.
        against: which completion a preference pair is a conversation with: chosen or rejected.
        system: instructions for the prompt, as a developer message.
        effort: reasoning effort where a conversation names none: low, medium or high.
        max_new_tokens: an answer is cut off there.
        temperature: 0 decodes greedily.
        seed: of sampling.
        batch_size: conversations that are answered together.
        out: JSONL file for the answers, or empty.
        min_exact, max_exact: with `file`, exit code 1 when the share of answers whose final text
            equals the file's lies outside.
        hub: whether the network may be used to fetch a model by its Hub id.
        render: identity, knowledge cutoff and date of the system message; as in training.
    """

    model: str = path_field()
    adapter: str = path_field()
    prompt: str = text_field()
    file: str = path_field()
    map: str = path_field()
    against: str = choice_field("chosen", ("chosen", "rejected"))
    system: str = text_field()
    effort: str = choice_field("medium", EFFORTS, "unknown effort")
    max_new_tokens: int = number_field(512, least=1)
    temperature: float = number_field(0.0, least=0)
    seed: int = 0
    batch_size: int = number_field(8, least=1)
    out: str = path_field()
    min_exact: float = number_field(0.0, least=0, most=1)
    max_exact: float = number_field(1.0, least=0, most=1)
    hub: bool = False
    render: RenderOptions = field(default_factory=RenderOptions)

    def problems(self, key: str = "") -> list[Problem]:
        """Returns missing and contradicting settings, and values out of range."""
        # The effort of `render` is not asked: `effort` stands in its place.
        render = replace(self.render, effort=EFFORTS[0])
        found = [*render.problems(dotted(key, "render")), *field_problems(self, key)]
        found += map_problems(self.map, dotted(key, "map"))
        if not self.model:
            found.append(Problem("no model", dotted(key, "model"), mend="say model=DIR"))
        if bool(self.prompt) == bool(self.file):
            found.append(
                Problem(
                    "give exactly one of prompt and file",
                    f"{dotted(key, 'prompt')}, {dotted(key, 'file')}",
                    f"prompt={self.prompt!r}, file={self.file!r}",
                    'say prompt="TEXT" for one question, or file=F for a file of conversations',
                )
            )
        if self.map and not self.file:
            mend = "say file=FILE, or leave it out"
            found.append(
                Problem("only a file is read by a map", dotted(key, "map"), self.map, mend)
            )
        if self.system and self.file:
            mend = "put the instructions into the file's rows"
            found.append(Problem("goes with prompt only", dotted(key, "system"), mend=mend))
        return found
