"""The names under which the readers of chats were found before there were several formats."""

from gptoss_ft.harmony.formats.chat import parse_openai_chat
from gptoss_ft.harmony.formats.common import quote

__all__ = ["parse_openai_chat", "quote"]
