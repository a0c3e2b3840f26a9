"""Tags and keys in which datasets and programs keep thinking; `thinking` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

# Names of tags, in any case. The doubtful ones are words of visible answers too: they count as
# thinking where a wrapped answer follows, and a reflection where it follows other thinking.
_SURE = """
    think thinking thought thoughts reasoning scratchpad scratch_pad inner_monologue
    internal_monologue inner_thoughts inner_thought internal_thoughts chain_of_thought
    thought_process thinking_process reasoning_process thoughtprocess longcat_think seed:think
    antthinking antml:thinking
"""
_DOUBTFUL = "analysis reflection reason rationale cot planning"
_ANSWERS = "answer output solution response final_answer final_response final_output final"
_PIPED = "think thinking thought reasoning scratchpad inner_monologue"
_SPANNED = "thought thoughts thinking think reasoning"
_SPANNED_ANSWERS = "solution answer response"
_DETAILS = '<details type="reasoning">'


def _xml(names: str) -> dict[str, str]:
    return {f"<{name}>": f"</{name}>" for name in names.split()}


def _spanned(names: str) -> dict[str, str]:
    """Returns pairs such as `<|begin_of_thought|>` and `<|end_of_thought|>`."""
    words = (("begin_of", "end_of"), ("begin", "end"), ("start", "end"))
    return {f"<|{a}_{name}|>": f"<|{b}_{name}|>" for name in names.split() for a, b in words}


# Opening tag to closing tag, both in lower case.
SURE: Mapping[str, str] = MappingProxyType(
    _xml(_SURE)
    | _spanned(_SPANNED)
    | {f"<|{name}|>": f"<|/{name}|>" for name in _PIPED.split()}
    | {"<|inner_prefix|>": "<|inner_suffix|>"}
    | {f"[{name}]": f"[/{name}]" for name in ("think", "thinking")}
    | {f"◁{name}▷": f"◁/{name}▷" for name in ("think", "thinking")}
    # Open WebUI folds thinking away so.
    | {_DETAILS: "</details>"}
)
DOUBTFUL: Mapping[str, str] = MappingProxyType(_xml(_DOUBTFUL))
ANSWERS: Mapping[str, str] = MappingProxyType(_xml(_ANSWERS) | _spanned(_SPANNED_ANSWERS))

# Keys of messages and columns of rows that hold thinking, as `harmless.fold` writes them.
_KEYS = """
    thinking think thought thoughts reasoning reasoning_content reasoning_text reasoning_details
    analysis cot chain_of_thought rationale thinking_blocks thinking_content inner_thoughts
    inner_thought inner_monologue internal_monologue internal_thoughts scratchpad thinking_text
    thought_process thinking_process reasoning_process reasoning_trace thinking_trace
    think_content thought_content reasoningcontent chainofthought
"""
_COLUMNS = """
    complex_cot deepseek_reasoning deepseek_thinking_trajectory gemini_thinking_trajectory
    thinking_trajectory thinking_trajectories reasoning_trajectory r1_reasoning r1_thinking
    deepseek_thinking deepseek_cot long_cot r1_reasoning_content
"""
MESSAGE_KEYS = frozenset(_KEYS.split())
THINKING_KEYS = MESSAGE_KEYS | frozenset(_COLUMNS.split())


def plain_tag(tag: str) -> str:
    """Returns an opening tag in lower case and without attributes, as in the tables."""
    tag = tag.lower()
    if tag.startswith("<details"):
        return _DETAILS
    return tag if tag.startswith("<|") or not tag.startswith("<") else tag[:-1].split()[0] + ">"


def _any_of(tags: Mapping[str, str]) -> str:
    """Returns a pattern for opening tags; those that look like XML may have attributes."""
    patterns = []
    for tag in sorted(tags, key=len, reverse=True):
        if tag == _DETAILS:
            patterns.append(r'<details\s[^<>]*?type="reasoning"[^<>]*>')
        elif tag.startswith("<") and not tag.startswith("<|"):
            patterns.append(rf"{re.escape(tag[:-1])}(?:\s[^<>]*)?>")
        else:
            patterns.append(re.escape(tag))
    return "|".join(patterns)


OPENING = re.compile(rf"\s*(?P<tag>{_any_of({**SURE, **DOUBTFUL})})", re.IGNORECASE)
ANSWER = re.compile(rf"\s*(?P<tag>{_any_of(ANSWERS)})", re.IGNORECASE)
ANSWER_ANYWHERE = re.compile(_any_of(ANSWERS), re.IGNORECASE)
CLOSING = re.compile(
    "|".join(re.escape(closing) for closing in SURE.values() if closing != "</details>"),
    re.IGNORECASE,
)
# Four patterns that each begin with a character of their own, which `re` finds at once.
_XML_TAG = re.compile(
    rf"</?(?=[tTrRsSiIcClLaA])(?:{'|'.join(_SURE.split())})(?:\s[^<>]*)?>", re.IGNORECASE
)
# Words of those tags and how such tags end: a text of code has many a `<` and none of these.
_WORDS = (
    ("think", ("think>", "thinking>", "process>")),
    ("thought", ("thought>", "thoughts>", "process>")),
    ("reason", ("reasoning>", "process>")),
    ("scratchpad", ("scratchpad>",)),
    ("scratch_pad", ("scratch_pad>",)),
    ("monologue", ("monologue>",)),
)
_PIPED_TAG = re.compile(
    "|".join(re.escape(tag) for pair in SURE.items() for tag in pair if tag.startswith("<|")),
    re.IGNORECASE,
)
_SQUARE_TAG = re.compile(r"\[/?think(?:ing)?\]", re.IGNORECASE)
_POINTED_TAG = re.compile(r"◁/?think(?:ing)?▷", re.IGNORECASE)


def may_think(text: str) -> bool:
    """Returns whether there may be tags of thinking in a text; false for nearly all of them, and
    quick at that.
    """
    if "<" in text:
        if OPENING.match(text) or ("<|" in text and _PIPED_TAG.search(text)):
            return True
        low = text.lower()
        for word, endings in _WORDS:
            if word in low and any(e in low for e in endings) and _XML_TAG.search(text):
                return True
    if "[" in text and _SQUARE_TAG.search(text):
        return True
    return "◁" in text and _POINTED_TAG.search(text) is not None
