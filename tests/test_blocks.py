"""The system and developer blocks against openai-harmony: tools, builtin tools, lines."""

from __future__ import annotations

import itertools
import subprocess
import sys

import openai_harmony as oh
import pytest
from chats import chat, parameters, texts, user
from harmony_oracle import developer_message, harmony_encoding, render_ids, system_message
from hypothesis import HealthCheck, example, given, settings

from gptoss_ft.harmony.blocks import functions_text, system_text
from gptoss_ft.harmony.messages import BUILTIN_TOOLS, Conversation, Message, ToolSpec
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import MESSAGE, packaged_vocabulary

__all__ = ["harmony_encoding"]

OPTIONS = RenderOptions()
VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, OPTIONS)
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def spelled(ids: list[int]) -> str:
    return VOCABULARY.decode(ids)


# ---------------------------------------------------------------- functions


@many
@example(schema=None, description="a\r\n\nb\r\r\nc\r")
@example(schema=None, description="\r\n")
@given(schema=parameters, description=texts)
def test_tool_block_equals_the_oracle(
    harmony_encoding: oh.HarmonyEncoding, schema: dict | None, description: str
) -> None:
    tools = (ToolSpec("first", description, schema), ToolSpec("second", "", schema))
    ids = render_ids(harmony_encoding, [developer_message("", tools)])
    assert functions_text(tools) == spelled(ids[3:-1])


def test_tool_block_of_a_schema_with_everything(harmony_encoding: oh.HarmonyEncoding) -> None:
    place = {
        "type": "object",
        "description": "Where\nto look",
        "properties": {"lat": {"type": "number", "default": 1e-5}, "tags": {"type": "array"}},
        "required": ["lat"],
    }
    one = {"type": "integer", "description": "one"}
    schema = {
        "type": "object",
        "properties": {
            "place": place,
            "places": {"type": "array", "items": place, "description": "Several\nof them"},
            "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C", "nullable": True},
            "size": {"oneOf": [one, place], "default": 3},
            "same": {"description": "one", "oneOf": [one, one | {"type": "string"}]},
            "later": {"description": "two", "oneOf": [one, {"description": "two"}]},
            "units": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            "big": {"type": "number", "default": 1e22, "title": "Big", "examples": ["x", 3]},
            "free": {"default": {"a": [1.0, None, "ç\u0001"]}},
        },
        "required": ["place", "size"],
    }
    tools = (ToolSpec("look_up", "Looks things up.\r\n\r\nSlowly.", schema), ToolSpec("ping"))
    ids = render_ids(harmony_encoding, [developer_message("Be brief.)", tools)])
    conversation = Conversation((Message("system", "Be brief.)"), user("Hi")), tools)
    prompt = RENDERER.prompt(conversation)
    assert spelled(ids) in spelled(prompt)
    at = next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)
    assert at > 0


# ---------------------------------------------------------------- builtin tools


@pytest.mark.parametrize("functions", [False, True])
@pytest.mark.parametrize(
    "builtin", [names for n in range(3) for names in itertools.permutations(BUILTIN_TOOLS, n)]
)
def test_builtin_tools_are_declared_as_the_oracle_does(
    harmony_encoding: oh.HarmonyEncoding, builtin: tuple[str, ...], functions: bool
) -> None:
    tools = (ToolSpec("f"),) if functions else ()
    messages = [system_message(OPTIONS, "low", builtin)]
    messages += [developer_message("", tools)] if functions else []
    conversation = Conversation((), tools, "low", builtin)
    assert RENDERER.prompt(conversation)[:-2] == render_ids(harmony_encoding, messages)


def test_rendering_needs_no_openai_harmony() -> None:
    code = (
        "import sys; sys.modules['openai_harmony'] = None;"
        "from gptoss_ft.harmony.blocks import system_text;"
        "from gptoss_ft.harmony.options import RenderOptions;"
        "print(system_text(RenderOptions(), 'low', True, ('browser', 'python')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "## browser" in done.stdout and "## python" in done.stdout


# ---------------------------------------------------------------- lines and instructions


def test_instructions_run_together_and_later_ones_are_kept_in_place() -> None:
    text = spelled(
        RENDERER.prompt(
            chat(
                Message("system", "one"),
                Message("developer", "two"),
                user("a"),
                Message("system", "three"),
                user("b"),
            )
        )
    )
    assert text.endswith(
        "<|start|>developer<|message|># Instructions\n\none\n\ntwo<|end|>"
        "<|start|>user<|message|>a<|end|>"
        "<|start|>developer<|message|># Instructions\n\nthree<|end|>"
        "<|start|>user<|message|>b<|end|><|start|>assistant"
    )


def test_empty_system_lines_are_left_out(harmony_encoding: oh.HarmonyEncoding) -> None:
    content = oh.SystemContent.new().with_model_identity("Me")
    content.knowledge_cutoff = None
    message = oh.Message.from_role_and_content(oh.Role.SYSTEM, content)
    ids = render_ids(harmony_encoding, [message])
    options = RenderOptions(identity="Me", knowledge_cutoff="", date="")
    assert system_text(options, "medium", False) == spelled(ids[ids.index(MESSAGE) + 1 : -1])


def test_the_effort_of_a_row_goes_before_that_of_the_options() -> None:
    conversation = Conversation((user("a"),), effort="high")
    assert "Reasoning: high" in spelled(RENDERER.prompt(conversation))
    assert "Reasoning: medium" in spelled(RENDERER.prompt(chat(user("a"))))
