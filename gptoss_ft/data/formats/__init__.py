"""Every data format that is read, and the parser that makes a row of it an `Example`.

One module per format or close family. A parser sees the columns under the format's names;
`data/layouts` tells the formats apart and finds the columns. ShareGPT's rows are chats whose
messages are written in a dialect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from gptoss_ft.data.formats.alpaca import parse_alpaca
from gptoss_ft.data.formats.chat import parse_openai_chat
from gptoss_ft.data.formats.completions import parse_kto, parse_prompt_completion
from gptoss_ft.data.formats.preference import parse_openai_preference, parse_trl_preference
from gptoss_ft.data.formats.responses import parse_responses
from gptoss_ft.data.formats.segments import parse_segments
from gptoss_ft.data.formats.text import parse_harmony, parse_text
from gptoss_ft.harmony.messages import Example

__all__ = ["FORMATS", "KINDS", "PARSERS"]

PARSERS: Mapping[str, Callable[..., Example]] = MappingProxyType(
    {
        "chat": parse_openai_chat,
        "openai_preference": parse_openai_preference,
        "prompt_completion": parse_prompt_completion,
        "trl_preference": parse_trl_preference,
        "kto": parse_kto,
        "alpaca": parse_alpaca,
        "sharegpt": parse_openai_chat,
        "responses": parse_responses,
        "text": parse_text,
        "segments": parse_segments,
        "harmony": parse_harmony,
    }
)
_PAIRS = MappingProxyType(
    {"openai_preference": "preference", "trl_preference": "preference", "kto": "kto"}
)
FORMATS = tuple(PARSERS)
# What each format trains: sft, preference or kto.
KINDS: Mapping[str, str] = MappingProxyType({name: _PAIRS.get(name, "sft") for name in FORMATS})
