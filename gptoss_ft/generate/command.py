"""Answers of a model, with or without an adapter, shown by channel and compared with references."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from gptoss_ft.adapters.check import check_adapter
from gptoss_ft.adapters.files import open_adapter
from gptoss_ft.adapters.model import AdaptedModel, load_adapter
from gptoss_ft.checkpoint.headers import open_checkpoint
from gptoss_ft.checkpoint.locate import locate_checkpoint
from gptoss_ft.context import Context, Outcome, Say
from gptoss_ft.data.options import SourceOptions
from gptoss_ft.data.rows import read_examples
from gptoss_ft.errors import ConfigError, DataError, Problem, gather
from gptoss_ft.files import atomic_file
from gptoss_ft.generate.options import GenerateOptions
from gptoss_ft.harmony.messages import Conversation, Message, Preference
from gptoss_ft.harmony.parse import ParsedMessage, parse_completion
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import Vocabulary, load_vocabulary
from gptoss_ft.inference.decode import decode
from gptoss_ft.model.causal_lm import WeightedGptOss
from gptoss_ft.model.load import load_model


@dataclass(frozen=True)
class Question:
    """A question to the model.

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
    """The model's answer.

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
        """True if the final text is the file's; None without a reference."""
        return None if self.question.reference is None else self.final == self.question.reference


def run(options: GenerateOptions, context: Context) -> Outcome:
    """Answers the questions; exit code 1 when `min_exact` or `max_exact` is not met.

    Raises:
        GptOssFtError: settings, model, adapter or file that cannot be used.
    """
    found = generate(options, context.say)
    return Outcome(_verdict(found, options, context.say))


def generate(options: GenerateOptions, say: Say = print) -> list[Answer]:
    """Answers, shows each answer as it comes, and writes them where asked.

    Raises:
        GptOssFtError: settings, model, adapter or file that cannot be used.
    """
    found = []
    for answer in answers(options):
        found.append(answer)
        say(_shown(answer))
    if options.out:
        _write_answers(Path(options.out), found)
    return found


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
    for where, _, example, *_ in read_examples(
        SourceOptions(path=options.file, map=options.map), problems, needs_answer=False
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


def answer_batch(
    model: WeightedGptOss | AdaptedModel,
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    options: GenerateOptions,
) -> Iterator[Answer]:
    """Generates answers to several prompts at once."""
    prompts = [question.prompt_ids for question in questions]
    sampled = decode(model, prompts, options.max_new_tokens, options.temperature)
    for question, ids in zip(questions, sampled, strict=True):
        yield Answer(question, parse_completion(ids, vocabulary), ids)


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
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
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


def _verdict(answers: Sequence[Answer], options: GenerateOptions, say: Say) -> int:
    compared = [answer for answer in answers if answer.exact is not None]
    if not compared:
        return 0
    exact = sum(bool(answer.exact) for answer in compared)
    share = exact / len(compared)
    say(f"{exact} of {len(compared)} finals equal the file's ({share:.1%})")
    return 0 if options.min_exact <= share <= options.max_exact else 1
