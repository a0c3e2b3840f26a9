"""Columns by the names that public datasets and other toolkits give them.

A name counts without regard to case, hyphens and blanks. Aliases are read without a word only where
a row leaves no doubt: one column that can be the prompt and one that can be the completion. Nothing
here goes by likeness of spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gptoss_ft.data.formats.ratings import SCORE_COLUMNS
from gptoss_ft.data.formats.thinking_names import THINKING_KEYS

# The columns that the formats read, and that `data.columns` may name.
CANONICAL = (
    "messages",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "chosen",
    "rejected",
    "label",
    "text",
    "system",
    "thinking",
    "tools",
    "builtin_tools",
    "reasoning_effort",
    "score_chosen",
    "score_rejected",
)
# A whole conversation in one column.
CONVERSATIONS = (
    "messages",
    "conversations",
    "conversation",
    "trajectory",
    "dialogue",
    "dialog",
    "chat",
    "message_list",
    "conversation_history",
)
# One side of a question and its answer.
PROMPTS = (
    "prompt",
    "instruction",
    "question",
    "problem",
    "query",
    "input",
    "inputs",
    "user",
    "user_prompt",
    "user_message",
    "human",
    "input_text",
    "prompt_text",
    "user_input",
    "text_input",
)
COMPLETIONS = (
    "completion",
    "output",
    "answer",
    "response",
    "solution",
    "target",
    "targets",
    "outputs",
    "assistant",
    "assistant_response",
    "model_response",
    "llm_response",
    "generated_solution",
    "generated_answer",
    "output_text",
    "reply",
    "final",
    "bot",
)
# Stands before the question as a paragraph of its own.
CONTEXTS = ("context", "passage", "background", "article", "paragraph")
SYSTEMS = (
    "system",
    "system_prompt",
    "system_message",
    "system_instruction",
    "system_instructions",
    "developer",
    "developer_message",
    "instructions",
    "custom_instruction",
    "custom_instructions",
)
TOOLS = ("tools", "functions", "function_description", "tool_list", "available_tools")
# Thinking beside an answer.
THINKING = tuple(sorted(THINKING_KEYS))
# Columns that a conversation beside them was made from; they are named as not read.
BESIDE_CONVERSATION = (
    "prompt",
    "question",
    "problem",
    "query",
    "answer",
    "solution",
    "generations",
)
# Beside a text they say who said it, or what was asked; beside messages, who used the API.
SPEAKERS = ("user",)
# Answers that others were checked against; likewise.
CHECKED_AGAINST = (
    "expected_answer",
    "final_answer",
    "ground_truth",
    "ground_truth_answer",
    "ground_truth_solution",
    "reference_answer",
    "gold_answer",
)
# Pairs that can be nothing else once somebody says so; named in advice, never taken by themselves.
LIKELY_PAIRS = (
    ("article", "abstract"),
    ("article", "highlights"),
    ("article", "summary"),
    ("content", "summary"),
    ("post", "summary"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("text", "label"),
    ("source", "target"),
    ("title", "text"),
    ("premise", "hypothesis"),
    ("problem", "deepseek_solution"),
    ("question", "deepseek_attempt"),
    ("context", "response"),
)
# Beside a conversation, what the assistant is told before it; named in advice, never taken.
LIKELY_SYSTEMS = (
    "instruction",
    "meta_instruction",
    "context",
    "preamble",
    "prefix",
    "persona",
    "scenario",
    "policy",
)
# A thinking mode, not a text: `reasoning: on`.
SWITCHES = frozenset(("on", "off", "true", "false", "yes", "no"))

# Scores that chosen and rejected were told apart by.
SCORES = MappingProxyType(
    {
        "score_chosen": tuple(chosen for chosen, _ in SCORE_COLUMNS),
        "score_rejected": tuple(rejected for _, rejected in SCORE_COLUMNS),
    }
)
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"system": SYSTEMS, "thinking": THINKING, "tools": TOOLS}
)
