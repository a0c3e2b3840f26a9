"""The model's own form, read and written back: its tokens are openai-harmony's."""

from __future__ import annotations

import json

import openai_harmony as oh
import pytest
from harmony_oracle import (
    harmony_encoding,
    message_ids,
    oracle_actions,
    prompt_ids,
    shown,
    system_message,
)
from native_chats import Generator

from gptoss_ft.data.reading import parse
from gptoss_ft.harmony.messages import Conversation
from gptoss_ft.harmony.native import to_dict
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import RETURN, packaged_vocabulary

__all__ = ["harmony_encoding"]

OPTIONS = RenderOptions()
VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, OPTIONS)


def read(row: dict[str, object]) -> Conversation:
    example = parse(row, "rows.jsonl:1")
    assert isinstance(example, Conversation)
    return example


@pytest.mark.parametrize("seed", range(200))
def test_conversations_of_openai_harmony_render_as_it_renders_them(
    harmony_encoding: oh.HarmonyEncoding, seed: int
) -> None:
    check(harmony_encoding, seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(9))
def test_many_more_of_them(harmony_encoding: oh.HarmonyEncoding, part: int) -> None:
    """With the quick ones 2,000."""
    for seed in range(200 + 200 * part, 400 + 200 * part):
        check(harmony_encoding, seed)


def check(encoding: oh.HarmonyEncoding, seed: int) -> None:
    """Compares every prompt and target with what openai-harmony renders of the same messages."""
    conversation = Generator(seed).conversation()
    example = read(conversation.to_dict())
    messages = list(conversation.messages)
    if messages[0].author.role != oh.Role.SYSTEM:
        messages.insert(0, system_message(OPTIONS, None))
    spelling = message_ids(encoding, messages)
    assert RENDERER.prompt(example) == prompt_ids(encoding, [messages[i] for i in shown(messages)])
    actions = RENDERER.actions(example)
    for action, (prompt, target) in zip(actions, oracle_actions(messages), strict=True):
        whole = [token for i in (*prompt, *target) for token in spelling[i]]
        if messages[target[-1]].channel == "final":
            whole[-1] = RETURN
        assert action.prompt_ids + action.target_ids == whole
    check_back(example)


def check_back(example: Conversation) -> None:
    """Written and read again it is the same, and openai-harmony reads what is written."""
    written = json.loads(json.dumps(to_dict(example)))
    assert read(written) == example
    assert oh.Conversation.from_json(json.dumps(written)).messages
