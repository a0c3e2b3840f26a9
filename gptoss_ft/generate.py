"""Answers of a model, with or without an adapter, shown by channel and compared with references."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.adapters.model import AdaptedModel, load_adapter
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.checkpoint.locate import locate_checkpoint
from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.rows import read_examples
from gptoss_ft.errors import ConfigError, DataError, Problem, gather
from gptoss_ft.files import whole_file
from gptoss_ft.harmony.messages import Conversation, Message, Preference
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.parse import ParsedMessage, parse_completion
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import CALL, ENDOFTEXT, RETURN, Vocabulary, load_vocabulary
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.load import load_model


@dataclass
class GenerateOptions:
    """What to ask which model.

    Attributes:
        model: checkpoint folder, packed or dense, or a Hub id with `hub=true`.
        adapter: adapter folder, or empty.
        prompt: one user message.
        file: conversations in any format, asked instead of a prompt: each one's last answer is
            generated anew from the true history before it, and compared with the one in the file.
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

    model: str = ""
    adapter: str = ""
    prompt: str = ""
    file: str = ""
    against: str = "chosen"
    system: str = ""
    effort: str = "medium"
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 8
    out: str = ""
    min_exact: float = 0.0
    max_exact: float = 1.0
    hub: bool = False
    render: RenderOptions = field(default_factory=RenderOptions)

    def problems(self) -> list[Problem]:
        """Missing and contradicting settings, values out of range."""
        found = replace(self.render, effort=self.effort).problems("render")
        if not self.model:
            found.append(Problem("no model", "model", mend="say model=DIR"))
        if bool(self.prompt) == bool(self.file):
            found.append(
                Problem(
                    "give exactly one of prompt and file",
                    "prompt, file",
                    f"prompt={self.prompt!r}, file={self.file!r}",
                    'say prompt="TEXT" for one question, or file=F for a file of conversations',
                )
            )
        if self.system and self.file:
            found.append(
                Problem(
                    "goes with prompt only",
                    "system",
                    mend="put the instructions into the file's rows",
                )
            )
        if self.against not in ("chosen", "rejected"):
            mend = "write chosen or rejected"
            found.append(Problem("unknown choice", "against", repr(self.against), mend))
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                found.append(Problem("must be at least 1", name, str(getattr(self, name))))
        if self.temperature < 0:
            found.append(Problem("must not be negative", "temperature", str(self.temperature)))
        for name in ("min_exact", "max_exact"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(Problem("must be between 0 and 1", name, str(getattr(self, name))))
        return found


@dataclass(frozen=True)
class Question:
    """What the model is asked.

    Attributes:
        where: `file:line`, or `prompt`.
        text: the last user message, for people.
        prompt_ids: ids through `<|start|>assistant`.
        reference: the final text that the file holds for this answer, or None.
    """

    where: str
    text: str
    prompt_ids: list[int]
    reference: str | None


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        question: what it was asked.
        messages: its messages by channel, in order.
        ids: the tokens it sampled.
    """

    question: Question
    messages: list[ParsedMessage]
    ids: list[int]

    @property
    def final(self) -> str:
        """Text of the final channel; empty when the answer has none."""
        return "".join(message.text for message in self.messages if message.channel == "final")

    @property
    def exact(self) -> bool | None:
        """Whether the final text is the file's; None without a reference."""
        return None if self.question.reference is None else self.final == self.question.reference


def generate(options: GenerateOptions, say: Callable[[str], None] = print) -> int:
    """Answers and shows them; returns the exit code, 1 when `min_exact` or `max_exact` is not met.

    Raises:
        GptOssFtError: as `answers` does.
    """
    found = []
    for answer in answers(options):
        found.append(answer)
        say(_shown(answer))
    if options.out:
        _write_answers(Path(options.out), found)
    return _verdict(found, options, say)


def answers(
    options: GenerateOptions, model: WeightedGptOss | AdaptedModel | None = None
) -> Iterator[Answer]:
    """Yields an answer to each question.

    Args:
        options: what to ask which model.
        model: that model, with its adapter, where it is loaded already.

    Raises:
        GptOssFtError: settings, model, adapter or file that cannot be used; before weights are
            loaded.
    """
    problems = options.problems()
    if problems:
        raise ConfigError(problems)
    checkpoint, adapter = gather(
        lambda: open_checkpoint(locate_checkpoint(options.model, options.hub, "model")),
        lambda: open_adapter(Path(options.adapter)) if options.adapter else None,
    )
    if adapter is not None:
        check_adapter(adapter, checkpoint.require_packed())
    vocabulary = load_vocabulary(checkpoint.path)
    renderer = Renderer(vocabulary, replace(options.render, effort=options.effort))
    questions = list(_questions(options, renderer))

    if model is None:
        base = load_model(checkpoint)
        model = base if adapter is None else load_adapter(base, adapter)
    torch.manual_seed(options.seed)
    batches = range(0, len(questions), options.batch_size)
    for start in tqdm(batches, unit="batch", disable=None, leave=False):
        batch = questions[start : start + options.batch_size]
        yield from answer_batch(model, batch, vocabulary, options)


def _questions(options: GenerateOptions, renderer: Renderer) -> Iterator[Question]:
    if options.prompt:
        system = (Message("system", options.system),) if options.system else ()
        conversation = Conversation((*system, Message("user", options.prompt)))
        yield Question("prompt", options.prompt, renderer.prompt(conversation), None)
        return
    problems: list[Problem] = []
    for where, _, example in read_examples(
        SourceOptions(options.file), problems, needs_answer=False
    ):
        if isinstance(example, Preference):
            answer = example.chosen if options.against == "chosen" else example.rejected
            prompt = example.prompt
            conversation = replace(prompt, messages=(*prompt.messages, *answer))
        elif isinstance(example, Conversation):
            conversation = example
        else:
            mend = "give rows of conversations or preference pairs"
            problems.append(Problem("this row is not a conversation", where, mend=mend))
            continue
        asked = next((m.content for m in reversed(conversation.messages) if m.role == "user"), "")
        if conversation.messages[-1].role != "assistant":
            yield Question(where, asked, renderer.prompt(conversation), None)
            continue
        action = renderer.actions(conversation)[-1]
        last = conversation.messages[-1]
        yield Question(where, asked, action.prompt_ids, None if last.tool_calls else last.content)
    if problems:
        raise DataError(problems)


@torch.inference_mode()
def answer_batch(
    model: WeightedGptOss | AdaptedModel,
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    options: GenerateOptions,
) -> Iterator[Answer]:
    """Generates answers to several prompts at once, padded on the left."""
    longest = max(len(question.prompt_ids) for question in questions)
    input_ids = torch.full((len(questions), longest), ENDOFTEXT, device=model.device)
    attention_mask = torch.zeros_like(input_ids)
    for index, question in enumerate(questions):
        ids = torch.tensor(question.prompt_ids, device=model.device)
        input_ids[index, longest - len(ids) :] = ids
        attention_mask[index, longest - len(ids) :] = 1
    sampling: dict[str, Any] = {"do_sample": False}
    if options.temperature > 0:
        sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0}
    output = model.generate(  # type: ignore[misc]  # transformers types its self as a protocol
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=options.max_new_tokens,
        eos_token_id=[RETURN, CALL, ENDOFTEXT],
        pad_token_id=ENDOFTEXT,
        **sampling,
    )
    for question, ids in zip(questions, output[:, longest:].tolist(), strict=True):
        ends = [ids.index(end) for end in (RETURN, CALL, ENDOFTEXT) if end in ids]
        sampled = ids[: min(ends) + 1] if ends else ids
        yield Answer(question, parse_completion(sampled, vocabulary), sampled)


def _shown(answer: Answer) -> str:
    lines = [f"{answer.question.where}  {answer.question.text}"]
    for message in answer.messages:
        to = f" to {message.recipient}" if message.recipient else ""
        lines.append(f"  {(message.channel or 'no channel') + to}: {message.text}")
    if answer.exact is not None:
        lines.append(
            "  = the file's answer" if answer.exact else f"  ≠ {answer.question.reference}"
        )
    return "\n".join(lines)


def _write_answers(path: Path, answers: Sequence[Answer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for answer in answers:
            row = {
                "where": answer.question.where,
                "prompt": answer.question.text,
                "messages": [asdict(message) for message in answer.messages],
                "final": answer.final,
                "reference": answer.question.reference,
                "exact": answer.exact,
                "ids": answer.ids,
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _verdict(
    answers: Sequence[Answer], options: GenerateOptions, say: Callable[[str], None]
) -> int:
    compared = [answer for answer in answers if answer.exact is not None]
    if not compared:
        return 0
    exact = sum(bool(answer.exact) for answer in compared)
    share = exact / len(compared)
    say(f"{exact} of {len(compared)} finals equal the file's ({share:.1%})")
    return 0 if options.min_exact <= share <= options.max_exact else 1
