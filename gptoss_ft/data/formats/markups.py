"""Markups in which chat templates write a conversation as one text: a table.

Each says how a text in it begins, what opens a turn and what closes it. Tokens such as
`<|im_start|>` leave no doubt. Words such as `User:` do, so a text in one of those has to hold both
sides from its beginning on; `transcripts` also wants the turns to alternate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from gptoss_ft.data.formats.dialects.authors import ROLE_OF


class Markup(NamedTuple):
    """One markup.

    Attributes:
        name: for messages.
        opening: how a text in it begins, after tokens that begin any text; no groups in it.
        header: what opens a turn; its group names who speaks.
        end: what closes a turn; None where only the next header does.
        closed: whether every turn but the last has to be closed.
        strict: whether user and assistant have to alternate, for headers that text may hold too.
    """

    name: str
    opening: str
    header: re.Pattern[str]
    end: re.Pattern[str] | None = None
    closed: bool = False
    strict: bool = True


BAR = "\uff5c"  # what stands in the place of `|` in DeepSeek's tokens
# Tokens that begin and end any text.
BEGINNINGS = (
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    f"<{BAR}begin▁of▁sentence{BAR}>",
    "<BOS_TOKEN>",
    "[gMASK]",
    "<sop>",
)
FINISHES = (
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    f"<{BAR}end▁of▁sentence{BAR}>",
    "<|EOT|>",
)
# What closes an answer where the rest of the markup is not there.
ENDS = (
    *FINISHES,
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    "<extra_id_1>",
    "<eoh>",
    "<eoa>",
    "<eom>",
)
MORE = "more"
# Who speaks, by the name in the header: a part of the question before it is `MORE`, and "" opens a
# gap between turns.
SPEAKERS: Mapping[str, str] = MappingProxyType(
    {
        **ROLE_OF,
        "moss": "assistant",
        "instruction": "user",
        "question": "user",
        "prompt": "user",
        "input": MORE,
        "context": MORE,
        "response": "assistant",
        "output": "assistant",
        "answer": "assistant",
        "inst": "user",
        "/inst": "assistant",
        "system_prompt": "system",
        "/system_prompt": "",
        "tool_results": "tool",
        "/tool_results": "assistant",
    }
)
# The sentences that Alpaca's template begins with; they are the same in every row.
BOILERPLATE = re.compile(
    r"The conversation between human and AI assistant\.\s*\Z"
    r"|Below is an instruction that describes a task"
    r"(?:, paired with an input that provides further context)?\. "
    r"Write a response that appropriately completes the request\.\s*\Z"
)


def _any(*tokens: str) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))


def _tokens(name: str, opening: str, header: str, *ends: str) -> Markup:
    """Returns a markup of tokens whose turns are closed by one of `ends`."""
    return Markup(name, opening, re.compile(header), _any(*ends), closed=True, strict=False)


_ROLE_TAGS = "system|user|prompter|prompt|assistant|answer|model|bot|tool|observation"
_SAID = r"(?:\A|\n\s*)(Human|User|Assistant|AI|Bot|System):[ \t]*"
MARKUPS = (
    _tokens(
        "ChatML",
        r"<\|im_start\|>",
        r"<\|im_start\|>[ \t]*([^\n<]{0,60})(?:\n|<\|im_sep\|>|\Z)",
        "<|im_end|>",
    ),
    _tokens(
        "Kimi's markup",
        r"<\|im_(?:system|user|assistant)\|>",
        r"<\|im_(?:system|user|assistant)\|>([^\n<]{0,60})<\|im_middle\|>",
        "<|im_end|>",
    ),
    _tokens(
        "Llama 3's markup",
        r"<\|start_header_id\|>",
        r"<\|start_header_id\|>([^\n<]{0,60})<\|end_header_id\|>\n{0,2}",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
    ),
    _tokens(
        "Llama 4's markup",
        r"<\|header_start\|>",
        r"<\|header_start\|>([^\n<]{0,60})<\|header_end\|>\n{0,2}",
        "<|eot|>",
        "<|eom|>",
        "<|end_of_text|>",
    ),
    _tokens(
        "Gemma's markup",
        r"<start_of_turn>",
        r"<start_of_turn>([^\n<]{0,60})(?:\n|\Z)",
        "<end_of_turn>",
    ),
    _tokens(
        "Command R's markup",
        r"<\|START_OF_TURN_TOKEN\|>",
        r"<\|START_OF_TURN_TOKEN\|>\s*<\|([A-Z]{1,20})_TOKEN\|>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    _tokens(
        "Granite's markup",
        r"<\|start_of_role\|>",
        r"<\|start_of_role\|>([^\n<]{0,60})<\|end_of_role\|>",
        "<|end_of_text|>",
    ),
    _tokens(
        "OpenChat's markup",
        r"(?:GPT4 |Code )(?:Correct )?User:",
        r"(?:GPT4 |Code )(?:Correct )?(User|Assistant):[ \t]*",
        "<|end_of_turn|>",
    ),
    _tokens("MOSS's markup", r"\[Human\]:", r"\[(Human|MOSS)\]:[ \t]*", "<eoh>", "<eoa>"),
    Markup(
        "Baize's markup",
        r"(?:The conversation between human and AI assistant\.\s*)?\[\|Human\|\]",
        re.compile(r"\[\|(Human|AI)\|\][ \t]*"),
    ),
    Markup(
        "tags such as <|user|>",
        rf"<\|(?i:{_ROLE_TAGS})\|>",
        re.compile(rf"<\|((?i:{_ROLE_TAGS}))\|>:?\n?"),
        _any("<|end|>", "</s>", "<|endoftext|>", "<eoh>", "<eoa>"),
        strict=False,
    ),
    Markup(
        "DeepSeek's markup",
        f"(?:(?<=<{BAR}begin▁of▁sentence{BAR}>)(?s:.*?))?<{BAR}User{BAR}>",
        re.compile(f"<{BAR}(User|Assistant){BAR}>"),
        _any(f"<{BAR}end▁of▁sentence{BAR}>"),
    ),
    Markup(
        "EXAONE's markup",
        r"\[\|(?:system|user)\|\]",
        re.compile(r"\[\|(system|user|assistant)\|\]"),
        _any("[|endofturn|]"),
        strict=False,
    ),
    Markup(
        "Nemotron's markup",
        r"<extra_id_0>System",
        re.compile(r"<extra_id_[01]>(System|User|Assistant)(?:\n|\Z)"),
    ),
    Markup(
        "[INST]",
        r"\[(?:INST|SYSTEM_PROMPT)\]",
        re.compile(r"\[(/?(?:INST|SYSTEM_PROMPT|TOOL_RESULTS))\]\s*"),
        _any("</s>"),
    ),
    Markup(
        "`### Human:`",
        r"### ?(?:Human|User|System)\b ?:(?s:.*?)### ?(?:Assistant|Bot)\b ?:",
        re.compile(r"### ?(Human|User|Assistant|Bot|System) ?:\s*"),
    ),
    Markup(
        "Alpaca's template",
        r"(?:Below is an? [^#]{1,400}\n\s*)?### ?(?:Instruction|Question|System)\b ?:"
        r"(?s:.*?)\n### ?(?:Response|Answer|Output|Assistant)\b ?:",
        re.compile(
            r"(?:\A|(?<=\n))### ?(System|Instruction|Question|Input|Context|Response|Answer|Output"
            r"|Assistant) ?:\s*"
        ),
        re.compile(r"\n### End\b"),
    ),
    Markup(
        "Vicuna's markup",
        r"(?:A chat between a [^\n]{1,400}?\s)?(?:USER|SYSTEM):(?s:.*?)\sASSISTANT:",
        re.compile(r"(?:\A|(?<=\s)|(?<=>))(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*"),
        _any("</s>", "<|endoftext|>"),
    ),
    Markup(
        "`<human>:`",
        r"<(?:human|user|system)>:(?s:.*?)<(?:bot|assistant)>:",
        re.compile(r"<(human|user|bot|assistant|system)>:[ \t]*"),
    ),
    Markup(
        "`Human:` and `Assistant:`",
        r"Human:(?s:.*?)\n\nAssistant:",
        re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]*"),
    ),
    Markup(
        "`User:` and `Assistant:`",
        r"(?:Human|User|System):(?s:.*?)\n(?:Assistant|AI|Bot):",
        re.compile(_SAID),
    ),
)
