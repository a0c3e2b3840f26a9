"""Text that is spelled in Harmony: the ids of the renderer again, and every way to be malformed."""

from __future__ import annotations

from dataclasses import replace

import openai_harmony as oh
import pytest
from chats import assistant, chat, conversations, user
from harmony_oracle import harmony_encoding, oracle_messages, render_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, HarmonyText, Message, ToolCall, ToolSpec
from gptoss_ft.harmony.options import CONSTRAINS, TOOL_CALL_HEADERS, TURNS, RenderOptions
from gptoss_ft.harmony.render import IGNORE, Renderer, Row
from gptoss_ft.harmony.vocabulary import RETURN, packaged_vocabulary

__all__ = ["harmony_encoding"]

OPTIONS = RenderOptions(
    weights={"analysis": 0.25, "commentary": 0.5, "final": 1.0, "tool_call": 2.0}
)
VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, OPTIONS)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rows_of(text: str, renderer: Renderer = RENDERER) -> list[Row]:
    return renderer.render_harmony(HarmonyText(text), "chats.txt:7")


def problems_of(text: str) -> list[tuple[str, str]]:
    """What is wrong with a text, and at which offset."""
    with pytest.raises(DataError) as caught:
        rows_of(text)
    places = [
        problem.where.removeprefix("chats.txt:7 offset ") for problem in caught.value.problems
    ]
    return list(zip((p.what for p in caught.value.problems), places, strict=True))


def trained(row: Row) -> str:
    return VOCABULARY.decode([label for label in row.labels if label != IGNORE])


def unambiguous(conversation: Conversation) -> Conversation:
    """The chat without look-alikes, which a spelled text cannot tell from special tokens.

    Texts also cannot carry the weight of a message.
    """

    def clean(text: str) -> str:
        return text.replace("|", "/")

    messages = tuple(
        message._replace(
            content=clean(message.content),
            thinking=clean(message.thinking),
            tool_calls=tuple(
                replace(call, arguments=clean(call.arguments)) for call in message.tool_calls
            ),
            weight=1.0,
        )
        for message in conversation.messages
    )
    tools = tuple(replace(tool, description="", parameters=None) for tool in conversation.tools)
    return replace(conversation, messages=messages, tools=tools)


@many
@given(conversation=conversations(), turns=st.sampled_from(TURNS))
def test_what_the_oracle_spells_gives_the_rows_of_the_conversation(
    harmony_encoding: oh.HarmonyEncoding, conversation: Conversation, turns: str
) -> None:
    conversation = unambiguous(conversation)
    ids = render_ids(harmony_encoding, oracle_messages(conversation, OPTIONS))
    renderer = Renderer(VOCABULARY, replace(OPTIONS, turns=turns))
    assert rows_of(VOCABULARY.decode(ids), renderer) == renderer.render(conversation)


@pytest.mark.parametrize("constrain", CONSTRAINS)
@pytest.mark.parametrize("header", TOOL_CALL_HEADERS)
def test_a_row_spelled_out_gives_the_row_again(header: str, constrain: str) -> None:
    options = replace(OPTIONS, tool_call_header=header, constrain=constrain)
    conversation = Conversation(
        (
            Message("system", "Be brief."),
            user("a"),
            assistant("b"),
            user("c"),
            Message(
                "assistant",
                "let me see",
                "look",
                (ToolCall("f", '{"x": 1}'), ToolCall("python", "print(1)", builtin=True)),
            ),
            Message("tool", "1", name="f"),
            Message("tool", "2", name="python", builtin=True),
            assistant("d", "so"),
        ),
        (ToolSpec("f"),),
        "high",
        ("python",),
    )
    (row,) = Renderer(VOCABULARY, options).render(conversation)
    text = VOCABULARY.decode(row.input_ids)
    # The options of style are those of the text; the ones given here must not matter.
    assert rows_of(text) == [row]


def test_the_end_of_a_final_is_trained_as_return_wherever_and_however_it_is_spelled() -> None:
    spelled = (
        "<|start|>user<|message|>a<|end|>"
        "<|start|>assistant<|channel|>final<|message|>b{}"
        "<|start|>user<|message|>c<|end|>"
        "<|start|>assistant<|channel|>final<|message|>d{}"
    )
    pairs = [
        (first, last)
        for first in ("<|end|>", "<|return|>")
        for last in ("<|end|>", "<|return|>", "")
    ]
    for first, last in pairs:
        (row,) = rows_of(spelled.format(first, last))
        assert VOCABULARY.decode(row.input_ids) == spelled.format("<|end|>", "<|return|>")
        assert row.labels.count(RETURN) == 2
        assert trained(row) == (
            "<|channel|>final<|message|>b<|return|><|channel|>final<|message|>d<|return|>"
        )


def test_white_space_between_messages_is_no_part_of_them() -> None:
    text = VOCABULARY.decode(RENDERER.render(chat(user("a\n"), assistant("b ")))[0].input_ids)
    assert rows_of("\n" + text.replace("<|start|>assistant", " \n<|start|>assistant") + "\n") == (
        rows_of(text)
    )


def test_text_needs_no_system_message_and_users_may_have_names() -> None:
    text = (
        "<|start|>user:ana<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|end|>"
    )
    (row,) = rows_of(text)
    assert VOCABULARY.decode(row.input_ids) == text.removesuffix("<|end|>") + "<|return|>"


def test_an_action_that_was_cut_off_is_not_trained() -> None:
    (row,) = rows_of(
        "<|start|>assistant<|channel|>final<|message|>a<|end|>"
        "<|start|>user<|message|>b<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>let me"
    )
    assert trained(row) == "<|channel|>final<|message|>a<|return|>"


FINAL = "<|start|>assistant<|channel|>final<|message|>b<|return|>"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", [("the text does not begin with <|start|>", "0")]),
        ("Hello", [("the text does not begin with <|start|>", "0")]),
        (f"Hello{FINAL}", [("the text does not begin with <|start|>", "0")]),
        (
            "<|start|>user<|message|>a<|end|>",
            [("the text holds neither an answer nor a call to train", "0")],
        ),
        (f"<|start|>bob<|message|>a<|end|>{FINAL}", [("unknown role", "9")]),
        (f"<|start|><|message|>a<|end|>{FINAL}", [("a header that cannot be read", "9")]),
        (f"<|start|>user{FINAL}", [("a message without <|message|>", "9")]),
        (f"<|start|>user<|message|>a{FINAL}", [("a message that is not closed", "24")]),
        (
            f"<|start|>user<|message|>a<|channel|>b<|end|>{FINAL}",
            [("<|channel|> inside a message", "25")],
        ),
        (
            f"<|start|>user<|message|>a<|end|> so {FINAL}",
            [("text after the end of a message", "32")],
        ),
        (
            f"<|start|>user<|message|>a<|im_end|><|end|>{FINAL}",
            [("<|im_end|> is no special token of a message", "25")],
        ),
        (
            f"{FINAL}<|endoftext|>",
            [
                ("<|endoftext|> is no special token of a message", "56"),
                ("text after the end of a message", "56"),
            ],
        ),
        (
            f"<|start|>user<|message|>a<|call|>{FINAL}",
            [("a message of kind user that ends with <|call|>", "25")],
        ),
        (
            "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|end|>",
            [("a message of kind tool_call that ends with <|end|>", "72")],
        ),
        (
            f"<|start|>assistant<|message|>a<|end|>{FINAL}",
            [("a message of the assistant without a channel", "9")],
        ),
        (
            f"<|start|>assistant<|channel|>thoughts<|message|>a<|end|>{FINAL}",
            [("a message of the assistant without a channel", "9")],
        ),
        (
            f"<|start|>assistant<|constrain|>json<|channel|>final<|message|>a<|end|>{FINAL}",
            [("a header that cannot be read", "9")],
        ),
        (
            f"oh<|start|>bob<|message|>a<|start|>user<|message|>b<|foo|>{FINAL}",
            [
                ("<|foo|> is no special token of a message", "51"),
                ("the text does not begin with <|start|>", "0"),
                ("unknown role", "11"),
                ("a message that is not closed", "25"),
                ("a message that is not closed", "50"),
            ],
        ),
    ],
)
def test_malformed_text_is_refused_with_all_its_problems(
    text: str, problems: list[tuple[str, str]]
) -> None:
    assert problems_of(text) == problems


def test_a_problem_shows_the_text_and_how_to_mend_it() -> None:
    with pytest.raises(DataError) as caught:
        rows_of(f"<|start|>bob<|message|>a<|end|>{FINAL}")
    assert str(caught.value) == (
        "chats.txt:7 offset 9: unknown role\n"
        "    found: 'bob<|message|>a<|end|><|start|>assistant…'\n"
        "    fix:   write one of system, developer, user, assistant,"
        " or a tool's name and ` to=assistant`"
    )
