"""The jinja template written beside checkpoints, for tools that format chats through the tokenizer.

It covers plain chats: one leading run of system or developer messages, user and assistant messages,
`thinking` on assistant messages. It refuses tools, because a template cannot write them as exactly
as the renderer does. Like every template it turns special-token text inside content into special
tokens; training data never goes through it.

Optional variables: `model_identity`, `knowledge_cutoff`, `current_date`, `reasoning_effort`.
"""

from __future__ import annotations

CHAT_TEMPLATE = """\
{%- if tools %}
  {{- raise_exception("this template reads plain chats; render tools with gptoss-ft") }}
{%- endif %}
{{- "<|start|>system<|message|>" ~ (model_identity
      or "You are ChatGPT, a large language model trained by OpenAI.") }}
{{- "\\nKnowledge cutoff: " ~ (knowledge_cutoff or "2024-06") }}
{{- "\\nCurrent date: " ~ (current_date or "2025-06-28") }}
{{- "\\n\\nReasoning: " ~ (reasoning_effort or "medium") }}
{{- "\\n\\n# Valid channels: analysis, commentary, final." }}
{{- " Channel must be included for every message.<|end|>" }}
{%- set ns = namespace(instructions="") %}
{%- for message in messages %}
  {%- set text = message.content or "" %}
  {%- if message.role in ["system", "developer"] %}
    {%- if not loop.first and loop.previtem.role not in ["system", "developer"] %}
      {{- raise_exception("this template reads system messages only at the start") }}
    {%- endif %}
    {%- if text %}
      {%- set ns.instructions = ns.instructions ~ ("\\n\\n" if ns.instructions else "") ~ text %}
    {%- endif %}
    {%- if ns.instructions and (loop.last or loop.nextitem.role not in ["system", "developer"]) %}
      {{- "<|start|>developer<|message|># Instructions\\n\\n" ~ ns.instructions ~ "<|end|>" }}
    {%- endif %}
  {%- elif message.role == "user" %}
    {{- "<|start|>user<|message|>" ~ text ~ "<|end|>" }}
  {%- elif message.role == "assistant" and not message.tool_calls %}
    {%- set answered = loop.last and not add_generation_prompt %}
    {%- set thinking = message.thinking or message.reasoning_content %}
    {%- if answered and thinking %}
      {{- "<|start|>assistant<|channel|>analysis<|message|>" ~ thinking ~ "<|end|>" }}
    {%- endif %}
    {{- "<|start|>assistant<|channel|>final<|message|>" ~ text }}
    {{- "<|return|>" if answered else "<|end|>" }}
  {%- else %}
    {{- raise_exception("this template reads plain chats; found role " ~ message.role) }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- "<|start|>assistant" }}
{%- endif %}
"""
