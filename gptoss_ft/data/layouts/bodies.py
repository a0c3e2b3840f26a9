"""Requests to the APIs of language models and the responses to them, as logs and traces keep them.

A request becomes the columns of a prompt; a response becomes what the assistant said. Only the
answer is to be trained: earlier answers in the request have rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded, is_empty, note_harmless
from gptoss_ft.data.formats.dialects.block_parts import read_block
from gptoss_ft.data.layouts.nested import check_nested, is_hollow, opened, the_one, tool_list

PROMPTS = ("messages", "contents", "input", "prompt")
SYSTEMS = ("system", "systemInstruction", "system_instruction", "instructions")
_REQUEST = """
    messages contents input prompt system systemInstruction system_instruction instructions tools
    functions toolConfig tool_config reasoning_effort reasoning chat_template_kwargs builtin_tools
    schemaVersion
"""
# Settings of a request: how to sample, whom to bill.
_SETTINGS = """
    generationConfig generation_config inferenceConfig additionalModelRequestFields
    performanceConfig guardrailConfig safetySettings safety_settings cachedContent labels
    max_output_tokens best_of verbosity modalities safety_identifier prompt_cache_key
    prompt_cache_retention truncation include background previous_response_id text extra_body
    extra_headers timeout thinking anthropic_version anthropic_beta betas container
    web_search_options function_call toolChoice include_reasoning models route transforms plugins
    min_p top_a repetition_penalty safe_prompt random_seed keep_alive options format think
    api_base base_url custom_llm_provider self max_retries stop_token_ids skip_special_tokens
    response_model
"""
SETTINGS = frozenset(_SETTINGS.split())
REQUEST = frozenset((_REQUEST + _SETTINGS).split())
# Where a response keeps the answer, in the order in which they are looked for.
ANSWERS = (
    "choices",
    "candidates",
    "generations",
    "output",
    "message",
    "messages",
    "content",
    "text",
)
_RESPONSE = """
    role type tool_calls function_call reasoning reasoning_content reasoning_details thinking
    refusal name llm_output usageMetadata modelVersion promptFeedback responseId metrics
    additionalModelResponseFields trace stopReason done done_reason total_duration load_duration
    prompt_eval_count prompt_eval_duration eval_count eval_duration context run incomplete_details
    max_output_tokens prompt_filter_results _request_id tool_call_id additional_kwargs tools
    response_metadata usage_metadata invalid_tool_calls lc kwargs instructions background
    truncation previous_response_id max_tool_calls prompt_cache_key safety_identifier tool_usage
    billing
"""
RESPONSE = frozenset((*ANSWERS, *_RESPONSE.split()))
_CHOICE = """
    message text content type finishReason native_finish_reason generation_info matched_stop
    content_filter_results content_filter_result token_ids prompt_token_ids prompt_logprobs delta
    safetyRatings avgLogprobs citationMetadata groundingMetadata tokenCount logprobsResult
    urlContextMetadata finishMessage provider_specific_fields error
"""
CHOICE = frozenset(_CHOICE.split())
CUT = "answers cut off at the limit of tokens: they are trained as they stand"
FILTERED = "answers that a content filter stopped: they are trained as they stand"
FINISHES = MappingProxyType(
    {
        **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens"), CUT),
        **dict.fromkeys(("content_filter", "safety", "recitation", "blocklist"), FILTERED),
        **dict.fromkeys(
            ("content_filtered", "guardrail_intervened", "prohibited_content"), FILTERED
        ),
    }
)
# What a response that is itself a message says.
SPOKEN = (
    "role", "content", "text", "tool_calls", "function_call", "name", "additional_kwargs",
    "reasoning", "reasoning_content", "reasoning_details", "thinking", "refusal",
)  # fmt: skip
ITEM_TYPES = ("message", "reasoning", "function_call", "function_call_output")


def request_columns(raw: Any, key: str, state: RowState) -> dict[str, Any]:
    """Reads a request.

    Args:
        raw: the body of the request, an object or its JSON text.
        key: where it stands, for problems.
        state: of the row.

    Returns:
        `messages`, and `system`, `tools`, `reasoning_effort` and `chat_template_kwargs` where
        there are any; of a request to the Responses API `input` and `instructions` in their stead.
    """
    body = opened(raw)
    check_nested(body, REQUEST, key, state)
    for name in SETTINGS.intersection(body):
        if not is_hollow(body[name]):
            note_harmless(name, body[name], "requests", state)
    columns: dict[str, Any] = {}
    system = the_one(body, SYSTEMS, key, state)
    if system is not None:
        columns["system"] = system_text(body[system], f"{key}.{system}", state)
    prompt = the_one(body, PROMPTS, key, state)
    if prompt is None:
        mend = "delete the row, or say 'data.on_bad=drop'"
        state.refuse("the request holds no messages", key, [*body], mend)
    elif prompt == "input" and not _is_langchain(body["input"]):
        columns["input"] = body["input"]
        if "system" in columns:
            columns["instructions"] = columns.pop("system")
    else:
        columns["messages"] = message_list(body[prompt], f"{key}.{prompt}", columns, state)
    tools = tool_list(body)
    if tools:
        columns["tools"] = [*columns.get("tools", ()), *tools]
    columns |= _settings(body)
    return columns


def _is_langchain(raw: Any) -> bool:
    """Returns whether a list holds messages as LangChain stores them, in either form."""
    items = decoded(raw)
    return isinstance(items, list) and all(
        isinstance(item, OBJECTS) and ("lc" in item or isinstance(item.get("data"), OBJECTS))
        for item in items
    )


def _settings(body: Mapping[str, Any]) -> dict[str, Any]:
    names = ("chat_template_kwargs", "builtin_tools", "reasoning_effort")
    settings = {name: body[name] for name in names if not is_empty(body.get(name))}
    effort = opened(body.get("reasoning")).get("effort")
    if effort is not None:
        settings.setdefault("reasoning_effort", effort)
    return settings


def system_text(raw: Any, key: str, state: RowState) -> str:
    """Reads a system message: a text, a list of text parts, or Gemini's object of parts."""
    raw = decoded(raw)
    if isinstance(raw, OBJECTS):
        raw = raw.get("parts", [raw])
    blocks = raw if isinstance(raw, list) else [raw]
    parts = [
        part for i, block in enumerate(blocks) for part in read_block(block, f"{key}[{i}]", state)
    ]
    return "\n\n".join(part.value for part in parts if part.kind == "text")


def message_list(raw: Any, key: str, columns: dict[str, Any], state: RowState) -> Any:
    """Reads the messages of a request; a text is what the user says.

    LangChain calls models with a list of conversations, of which traces hold one; Langfuse keeps
    the tools among the messages, and they go into `columns`.
    """
    raw = decoded(raw)
    if isinstance(raw, str):
        return [{"role": "user", "content": raw}]
    if isinstance(raw, OBJECTS):
        raw = [raw]
    if isinstance(raw, list) and raw and all(isinstance(item, list) for item in raw):
        if len(raw) > 1:
            mend = "write a row for each of them"
            state.refuse("the request holds several conversations", key, len(raw), mend)
        raw = raw[0]
    if not isinstance(raw, list):
        return raw
    texts = [{"role": "user", "content": m} if isinstance(m, str) else m for m in raw]
    tools = [message["content"] for message in texts if _is_tool(message)]
    if tools:
        columns["tools"] = tools
    return [message for message in texts if not _is_tool(message)]


def _is_tool(message: Any) -> bool:
    content = message.get("content") if isinstance(message, OBJECTS) else None
    return isinstance(content, OBJECTS) and content.get("type") == "function"


def answer_of(raw: Any, key: str, state: RowState) -> list[Any]:
    """Reads a response as the messages or the Responses items that it holds; the first of several.

    Empty when there is none, which has been refused.
    """
    raw = decoded(raw)
    if isinstance(raw, str) and raw.strip():
        return [{"role": "assistant", "content": raw}]
    if isinstance(raw, list) and raw and all(isinstance(item, OBJECTS) for item in raw):
        return raw
    body = opened(raw)
    if _is_langchain([body]):
        return [body]
    check_nested(body, RESPONSE, key, state)
    _note_finish(body, state)
    if isinstance(body.get("text"), OBJECTS):  # A setting of the Responses API.
        del body["text"]
    name = the_one(body, ANSWERS, key, state)
    if name is None and not (body.get("tool_calls") or body.get("function_call")):
        mend = "delete the row, or say 'data.on_bad=drop'"
        state.refuse("the response holds no answer", key, raw, mend)
        return []
    _note_rest(body, name, key, state)
    if name is not None and name in READERS:
        return list(READERS[name](body[name], f"{key}.{name}", state))
    return [{"role": "assistant", **_spoken(body)}]


def _note_rest(body: Mapping[str, Any], name: str | None, key: str, state: RowState) -> None:
    """Notes what a response holds beside the answer."""
    read = (name,) if name in READERS else (*SPOKEN, "type")
    for other, value in body.items():
        if other in RESPONSE and other not in read and not is_hollow(value):
            state.note(f"key `{other}` of responses not read: the answer stands beside it")
    if (
        name not in READERS
        and "content" in body
        and body.get("text") not in (None, "", body["content"])
    ):
        what = "`content` and `text` are both given and differ"
        state.refuse(what, f"{key}.text", body["text"], "keep one of them")


def _spoken(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a response says that is itself a message."""
    said = {name: body[name] for name in SPOKEN if name in body}
    if body.get("type") in ("ai", "AIMessage", "AIMessageChunk"):
        said["role"] = "assistant"
    if "content" in said:
        said.pop("text", None)
    return said


def _first(raw: Any, key: str, state: RowState) -> dict[str, Any]:
    """Takes the first of several answers."""
    choices = decoded(raw)
    if not isinstance(choices, list) or not choices:
        return opened(choices)
    if len(choices) > 1:
        state.note("requests with several answers: the first is trained")
    if isinstance(choices[0], list):
        return _first(choices[0], key, state)
    first = opened(choices[0])
    check_nested(first, CHOICE, f"{key}[0]", state)
    _note_finish(first, state)
    return first


def _choice(raw: Any, key: str, state: RowState) -> list[Any]:
    """Reads OpenAI's `choices`, and LangChain's `generations`."""
    choice = _first(raw, key, state)
    message = choice.get("message", choice.get("text"))
    for name in CHOICE.intersection(choice) - {"type", "index"}:
        if choice[name] is not message and not is_hollow(choice[name]):
            state.note(f"key `{name}` of choices not read: the answer stands beside it")
    if isinstance(message, OBJECTS):
        kept = opened(message)
        if not (kept.keys() & {"role", "lc", "data"} or kept.get("type") in ("ai", "AIMessage")):
            kept["role"] = "assistant"
        return [kept]
    return answer_of(message, key, state)


def _candidate(raw: Any, key: str, state: RowState) -> list[Any]:
    """Reads Gemini's `candidates`."""
    content = opened(_first(raw, key, state).get("content"))
    if not content.get("parts"):
        mend = "delete the row, or say 'data.on_bad=drop'"
        state.refuse("the response holds no answer", key, raw, mend)
        return []
    return [{"role": "model", **content}]


def _messages(raw: Any, key: str, state: RowState) -> list[Any]:
    messages = message_list(raw, key, {}, state)
    return messages if isinstance(messages, list) else []


READERS = MappingProxyType(
    {
        "choices": _choice,
        "generations": _choice,
        "candidates": _candidate,
        "messages": _messages,
        "output": answer_of,
        "message": answer_of,
    }
)


def _note_finish(choice: Mapping[str, Any], state: RowState) -> None:
    for name in ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason"):
        reason = choice.get(name)
        note = FINISHES.get(reason.lower()) if isinstance(reason, str) else None
        if note is not None:
            state.note(note)


def sample(columns: Mapping[str, Any], answer: list[Any]) -> dict[str, Any]:
    """Puts a request and the answer to it together, in the columns of a format."""
    if "input" in columns:
        return {**columns, "output": answer}
    rest = {name: value for name, value in columns.items() if name != "messages"}
    return {"prompt": columns.get("messages"), "completion": answer, **rest}
