"""The renderer against openai-harmony, the styles of tool calls, and what it costs."""

from __future__ import annotations

import time

import openai_harmony as oh
import pytest
from chats import assistant, chat, conversations, texts, user
from harmony_oracle import (
    harmony_encoding,
    message_ids,
    oracle_actions,
    oracle_messages,
    prompt_ids,
    shown,
    shown_by_the_library,
)
from hypothesis import HealthCheck, given, seed, settings

from gptoss_ft.harmony.messages import Conversation, Message, ToolCall, ToolSpec
from gptoss_ft.harmony.options import CONSTRAINS, TOOL_CALL_HEADERS, RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import (
    CALL,
    CONSTRAIN,
    FIRST_SPECIAL,
    RETURN,
    START,
    packaged_vocabulary,
)

__all__ = ["harmony_encoding"]

OPTIONS = RenderOptions(
    weights={"analysis": 0.25, "commentary": 0.5, "final": 1.0, "tool_call": 2.0}
)
VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, OPTIONS)
ASSISTANT = [START, *VOCABULARY.encode("assistant")]
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def spelled(ids: list[int]) -> str:
    return VOCABULARY.decode(ids)


# ---------------------------------------------------------------- against openai-harmony


def check_against_the_oracle(encoding: oh.HarmonyEncoding, conversation: Conversation) -> None:
    """Prompt and target of every action are openai-harmony's, and the targets parse back."""
    messages = oracle_messages(conversation, OPTIONS)
    spelling = message_ids(encoding, messages)
    kept = [messages[i] for i in shown(messages)]
    assert RENDERER.prompt(conversation) == prompt_ids(encoding, kept)
    expected = oracle_actions(messages)
    for action, (prompt, target) in zip(RENDERER.actions(conversation), expected, strict=True):
        assert action.prompt_ids == joined(spelling, prompt) + ASSISTANT
        whole = joined(spelling, prompt + target)
        if messages[target[-1]].channel == "final":
            whole[-1] = RETURN
        assert action.prompt_ids + action.target_ids == whole
        assert action.target_ids[-1] in (RETURN, CALL)
        parsed = encoding.parse_messages_from_completion_tokens(
            action.target_ids, oh.Role.ASSISTANT
        )
        assert [m.to_dict() for m in parsed] == [messages[i].to_dict() for i in target]
        before = messages[: target[0]]
        if is_the_second_turn(before):
            assert action.prompt_ids == shown_by_the_library(encoding, before)


def is_the_second_turn(history: list[oh.Message]) -> bool:
    """Whether one final stands in the history, and nothing of the assistant after it.

    There openai-harmony's own dropping of analysis is the format's; in later turns it keeps
    analysis of earlier ones: see `rows`.
    """
    spoken = [message.channel for message in history if message.author.role == oh.Role.ASSISTANT]
    return spoken.count("final") == 1 and spoken[-1] == "final"


@settings(many, max_examples=1000)
@given(conversation=conversations())
def test_ids_equal_the_oracle_and_targets_parse_back(
    harmony_encoding: oh.HarmonyEncoding, conversation: Conversation
) -> None:
    check_against_the_oracle(harmony_encoding, conversation)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(25))
def test_ids_equal_the_oracle_on_many_more(harmony_encoding: oh.HarmonyEncoding, part: int) -> None:
    """50,000 cases; in parts with seeds of their own, because a run remembers all its cases."""

    @seed(part)
    @settings(many, max_examples=2000, database=None)
    @given(conversation=conversations())
    def check(conversation: Conversation) -> None:
        check_against_the_oracle(harmony_encoding, conversation)

    check()


def joined(spelling: list[list[int]], places: list[int]) -> list[int]:
    return [token for place in places for token in spelling[place]]


@many
@given(text=texts)
def test_content_never_yields_a_special_id(text: str) -> None:
    tools = (ToolSpec("f", text, {"type": "object", "description": text}),)
    conversation = Conversation(
        (
            Message("system", text),
            user(text),
            Message("assistant", text, text, (ToolCall("f", text),)),
            Message("tool", text, name="f"),
            assistant(text, text),
        ),
        tools,
    )
    (row,) = RENDERER.render(conversation)
    for segment in row.segments:
        ids = row.input_ids[segment.start : segment.stop]
        specials = [i for i in ids if i >= FIRST_SPECIAL]
        if segment.part == "content":
            assert specials == []
        elif segment.part == "end":
            assert len(ids) == len(specials) == 1
    assert row.input_ids.count(START) == 9
    assert row.input_ids.count(CONSTRAIN) == 1


# ---------------------------------------------------------------- style of tool calls

CALLING = chat(
    user("a"),
    Message(
        "assistant",
        tool_calls=(
            ToolCall("f", '{"x": 1}'),
            ToolCall("python", "print(1)", builtin=True),
            ToolCall("browser.search", '{"query": "x"}', builtin=True),
        ),
    ),
)


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        (
            {},
            (
                " to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
                " to=python<|channel|>analysis code<|message|>",
                " to=browser.search<|channel|>analysis code<|message|>",
            ),
        ),
        (
            {"tool_call_header": "channel"},
            (
                "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
                "<|channel|>analysis to=python code<|message|>",
                "<|channel|>analysis to=browser.search code<|message|>",
            ),
        ),
        (
            {"tool_call_header": "channel", "constrain": "text"},
            (
                "<|channel|>commentary to=functions.f json<|message|>",
                "<|channel|>analysis to=python code<|message|>",
                "<|channel|>analysis to=browser.search code<|message|>",
            ),
        ),
        (
            {"constrain": "none"},
            (
                " to=functions.f<|channel|>commentary<|message|>",
                " to=python<|channel|>analysis code<|message|>",
                " to=browser.search<|channel|>analysis code<|message|>",
            ),
        ),
    ],
)
def test_headers_of_calls(options: dict[str, str], targets: tuple[str, ...]) -> None:
    actions = Renderer(VOCABULARY, RenderOptions(**options)).actions(CALLING)
    assert tuple(spelled(a.target_ids).split("<|message|>")[0] for a in actions) == tuple(
        target.removesuffix("<|message|>") for target in targets
    )


@pytest.mark.parametrize("constrain", CONSTRAINS)
@pytest.mark.parametrize("header", TOOL_CALL_HEADERS)
def test_every_style_parses_back(
    harmony_encoding: oh.HarmonyEncoding, header: str, constrain: str
) -> None:
    options = RenderOptions(tool_call_header=header, constrain=constrain)
    renderer = Renderer(VOCABULARY, options)

    @settings(many, max_examples=40)
    @given(conversation=conversations())
    def check(conversation: Conversation) -> None:
        messages = oracle_messages(conversation, options)
        spelling = message_ids(harmony_encoding, messages)
        pairs = zip(renderer.actions(conversation), oracle_actions(messages), strict=True)
        for action, (prompt, target) in pairs:
            parsed = harmony_encoding.parse_messages_from_completion_tokens(
                action.target_ids, oh.Role.ASSISTANT
            )
            assert [m.to_dict() for m in parsed] == [messages[i].to_dict() for i in target]
            if header == "role":  # openai-harmony itself writes only this one
                whole = joined(spelling, prompt + target)
                assert (action.prompt_ids + action.target_ids)[:-1] == whole[:-1]

    check()


def test_options_name_every_value_out_of_range() -> None:
    options = RenderOptions(
        effort="max",
        turns="some",
        tool_call_header="front",
        constrain="yes",
        date="today",
        weights={"analisys": 1.0, "final": -1.0},
    )
    problems = options.problems("data.render")
    assert [problem.where for problem in problems] == [
        "data.render.effort",
        "data.render.turns",
        "data.render.tool_call_header",
        "data.render.constrain",
        "data.render.date",
        "data.render.weights.analisys",
        "data.render.weights.final",
    ]
    assert problems[5].mend.startswith("did you mean analysis? write one of ")
    assert RenderOptions().problems("data.render") == []


# ---------------------------------------------------------------- cost


def test_one_long_run_of_a_letter_costs_no_more_than_linear() -> None:
    """CPU time; a quadratic encoder would take 100 times as long for 10 times the text."""
    short, long = (min(cpu_seconds("a" * n) for _ in range(3)) for n in (10_000, 100_000))
    assert long < 40 * short


def cpu_seconds(text: str) -> float:
    conversation = chat(user(text), assistant(text))
    start = time.process_time()
    RENDERER.render(conversation)
    return time.process_time() - start
