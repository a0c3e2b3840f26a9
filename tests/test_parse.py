"""Generated ids to messages, against openai-harmony's parser, and on broken output."""

from __future__ import annotations

import openai_harmony as oh
import pytest
from chats import conversations
from harmony_oracle import harmony_encoding
from hypothesis import HealthCheck, given, settings

from gptoss_ft.harmony.options import TOOL_CALL_HEADERS, RenderOptions
from gptoss_ft.harmony.parse import ParsedMessage, parse_completion
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import SPECIAL_NAMES, packaged_vocabulary

__all__ = ["harmony_encoding"]

VOCABULARY = packaged_vocabulary()
RENDERERS = [
    Renderer(VOCABULARY, RenderOptions(tool_call_header=header)) for header in TOOL_CALL_HEADERS
]
RENDERER = RENDERERS[0]
IDS = {name: token_id for token_id, name in SPECIAL_NAMES.items()}


def ids_of(spelled: str) -> list[int]:
    """Ids of a text in which special-token names stand for the special tokens."""
    ids: list[int] = []
    while spelled:
        name = next((n for n in IDS if spelled.startswith(n)), None)
        if name:
            ids.append(IDS[name])
            spelled = spelled[len(name) :]
        else:
            starts = [at for n in IDS if (at := spelled.find(n)) >= 0]
            stop = min(starts, default=len(spelled))
            ids += VOCABULARY.encode(spelled[:stop])
            spelled = spelled[stop:]
    return ids


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=conversations())
def test_whole_answers_parse_as_openai_harmony_parses_them(
    harmony_encoding: oh.HarmonyEncoding, conversation
) -> None:
    for action in (action for renderer in RENDERERS for action in renderer.actions(conversation)):
        expected = harmony_encoding.parse_messages_from_completion_tokens(
            action.target_ids, oh.Role.ASSISTANT
        )
        parsed = parse_completion(action.target_ids, VOCABULARY)
        assert [(m.channel, m.recipient, m.text) for m in parsed] == [
            (m.channel, m.recipient or "", m.content[0].text) for m in expected
        ]
        assert [m.content_type for m in parsed] == [
            (m.content_type or "").removeprefix("<|constrain|>") for m in expected
        ]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=conversations())
def test_a_truncated_answer_shows_the_beginning_of_the_whole(conversation) -> None:
    action = RENDERER.actions(conversation)[0]
    whole = parse_completion(action.target_ids, VOCABULARY)
    for stop in range(0, len(action.target_ids), 3):
        cut = parse_completion(action.target_ids[:stop], VOCABULARY)
        assert len(cut) <= len(whole)
        assert cut[:-1] == whole[: len(cut) - 1] or not cut


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("", []),
        ("<|channel|>final<|message|>", [("final", "", "", "")]),
        ("<|channel|>final<|message|>Hi", [("final", "", "", "Hi")]),
        ("<|channel|>final<|message|>Hi<|endoftext|>", [("final", "", "", "Hi")]),
        ("<|channel|>ana", [("ana", "", "", "")]),
        ("<|channel|>", [("", "", "", "")]),
        ("no header at all", [("", "", "", "no header at all")]),
        ("<|message|>Hi<|return|>", [("", "", "", "Hi")]),
        ("<|channel|>analysis<|message|>a<|end|><|start|>", [("analysis", "", "", "a")]),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant", [("analysis", "", "", "a")]),
        (
            "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b",
            [("analysis", "", "", "a"), ("final", "", "", "b")],
        ),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            [("commentary", "functions.f", "json", "{}")],
        ),
        (
            " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
            [("commentary", "functions.f", "json", "{}")],
        ),
        (
            " to=python<|channel|>analysis code<|message|>print(1)<|call|>",
            [("analysis", "python", "code", "print(1)")],
        ),
        (
            "<|channel|>analysis to=browser.search code<|message|>{}<|call|>",
            [("analysis", "browser.search", "code", "{}")],
        ),
        (
            " to=functions.f<|channel|>commentary<|constrain|>json<|message|>{",
            [("commentary", "functions.f", "json", "{")],
        ),
        ("<|channel|>final<|message|>a<|channel|>b", [("final", "", "", "a<|channel|>b")]),
    ],
)
def test_broken_and_unusual_answers(spelled: str, expected: list[tuple[str, ...]]) -> None:
    assert parse_completion(ids_of(spelled), VOCABULARY) == [ParsedMessage(*e) for e in expected]


def test_text_cut_inside_a_character_shows_a_replacement() -> None:
    ids = ids_of("<|channel|>final<|message|>👩")
    (message,) = parse_completion(ids[:-1], VOCABULARY)
    assert message.text == "\ufffd"
