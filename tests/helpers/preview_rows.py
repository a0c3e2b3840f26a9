"""A renderer, and rows of a preview, for the tests of previews."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from pages import examples

from gptoss_ft.harmony.messages import Conversation, Message
from gptoss_ft.harmony.options import RenderOptions
from gptoss_ft.harmony.render import Renderer
from gptoss_ft.harmony.vocabulary import packaged_vocabulary
from gptoss_ft.preview.choice import PreviewRow, preview_row
from gptoss_ft.preview.panels import Panel, panels

VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(
    VOCABULARY,
    RenderOptions(weights={"analysis": 0.25, "commentary": 0.5, "final": 1.0, "tool_call": 2.0}),
)
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str = "", thinking: str = "", weight: float = 1.0) -> Message:
    return Message("assistant", text, thinking, weight=weight)


def shown(*messages: Message) -> list[Panel]:
    return panels(preview_row("f:1", Conversation(messages), RENDERER, "chat"), VOCABULARY)


def text_of(panel: Panel) -> str:
    return "".join(piece.text for block in panel.blocks for piece in block.pieces)


def rows() -> list[PreviewRow]:
    return [preview_row(where, one, RENDERER, name) for where, name, one in examples()]
