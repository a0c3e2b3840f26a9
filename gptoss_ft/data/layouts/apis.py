"""Files and logs of the APIs of language models: requests, their responses, files for tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, decoded, is_empty
from gptoss_ft.data.layouts.bodies import (
    PROMPTS,
    SYSTEMS,
    answer_of,
    request_columns,
    sample,
    system_text,
)
from gptoss_ft.data.layouts.layout import Layout
from gptoss_ft.data.layouts.nested import check_nested, is_hollow, opened, the_one, tool_list

REQUESTS = ("request", "request_body", "requestBody", "raw_request", "params", "body")
BATCHES = ("body", "params", "request")
RESPONSES = ("response", "response_body", "responseBody", "raw_response", "completion")
# What stands around a body that was sent by HTTP.
ENVELOPE = frozenset(("body", "method", "url", "headers", "status_code", "request_id", "status"))
DROP = "delete the row, or say 'data.on_bad=drop'"


def _column(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((name for name in names if not is_empty(row.get(name))), "")


def body_of(raw: Any) -> dict[str, Any]:
    """Returns the body of a request or response, without the HTTP around it."""
    body = opened(raw)
    inner = opened(body.get("body"))
    return inner if inner and body.keys() <= ENVELOPE else body


def _is_request(raw: Any) -> bool:
    return any(not is_empty(body_of(raw).get(name)) for name in PROMPTS)


def fits_pair(row: Mapping[str, Any]) -> bool:
    """Returns whether the row holds a request and the response to it."""
    request, response = _column(row, REQUESTS), _column(row, RESPONSES)
    return bool(request and response) and _is_request(row[request])


def convert_pair(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a request and the response to it, each an object or its JSON text."""
    request, response = _column(row, REQUESTS), _column(row, RESPONSES)
    columns = request_columns(body_of(row[request]), request, state)
    answer = body_of(row[response]) or row[response]
    return sample(columns, _answer(answer, response, row, state))


def _answer(raw: Any, key: str, row: Mapping[str, Any], state: RowState) -> list[Any]:
    """Reads the answer of a response; a request that failed has none."""
    failed = [row.get("error"), row.get("error_str"), opened(raw).get("error")]
    errors = [error for error in failed if not is_hollow(error)]
    if errors:
        state.refuse("the request failed", key, errors[0], DROP)
        return []
    return answer_of(raw, key, state)


def fits_request(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is one of a batch of requests, without its response."""
    name = _column(row, BATCHES)
    other = not row.keys().isdisjoint(("custom_id", "url", "method")) or name == "request"
    return bool(name) and other and not _column(row, RESPONSES) and _is_request(row[name])


def convert_request(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a prompt of a batch."""
    name = _column(row, BATCHES)
    return request_columns(body_of(row[name]), name, state)


def fits_answer(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is the result of a request in a batch, without the request."""
    return (
        "custom_id" in row
        and bool(_column(row, ("response", "result")))
        and not (_column(row, REQUESTS) or _column(row, PROMPTS))
    )


def refuse_answer(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Refuses an answer whose question stands in another file."""
    what = "the row holds an answer, and its question is in the batch's file of requests"
    mend = 'write both into one row: {"request": …, "response": …}, joined by `custom_id`'
    state.refuse(what, "custom_id", row["custom_id"], mend)
    return {}


def fits_stored(row: Mapping[str, Any]) -> bool:
    """Returns whether `choices`, or a response, stands beside the messages of the request."""
    if not _column(row, PROMPTS) or _column(row, REQUESTS):
        return False
    if isinstance(decoded(row.get("choices")), list):
        return True
    response = decoded(row.get("response"))
    is_object = isinstance(response, OBJECTS) and not is_hollow(response)
    return is_object or (isinstance(response, str) and _waits(row.get("messages")))


def _waits(raw: Any) -> bool:
    """Returns whether a list of messages ends without an answer."""
    messages = decoded(raw)
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, OBJECTS) and last.get("role") in ("user", "tool")


STORED = ("messages", "input", "prompt", "system", "tools", "functions", "instructions", "contents")


def convert_stored(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a request with its `choices` or its `response` as another column."""
    request = {name: row[name] for name in STORED if not is_empty(row.get(name))}
    parameters = opened(row.get("model_parameters"))  # LiteLLM
    if "tools" not in request and parameters.get("tools"):
        request["tools"] = parameters["tools"]
    columns = request_columns(request, "", state)
    if not is_empty(row.get("choices")):
        return sample(columns, _answer({"choices": row["choices"]}, "", row, state))
    return sample(columns, _answer(row["response"], "response", row, state))


_LOG = """
    inputBodyJson inputContentType inputTokenCount cacheReadInputTokenCount outputBodyJson
    cacheWriteInputTokenCount outputContentType outputTokenCount
"""
LOG_KEYS = frozenset(_LOG.split())


def fits_bedrock_log(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is one of Bedrock's logs of invocations."""
    bodies = (opened(row.get("input")), opened(row.get("output")))
    return "inputBodyJson" in bodies[0] and "outputBodyJson" in bodies[1]


def convert_bedrock_log(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads the bodies of a logged invocation."""
    for name in ("input", "output"):
        check_nested(opened(row[name]), LOG_KEYS, name, state)
    body = opened(row["input"])["inputBodyJson"]
    columns = request_columns(body, "input.inputBodyJson", state)
    answer = opened(row["output"])["outputBodyJson"]
    return sample(columns, _answer(answer, "output.outputBodyJson", row, state))


def fits_gemini(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has Gemini's `contents`."""
    contents = decoded(row.get("contents"))
    return isinstance(contents, list) and bool(contents) and "request" not in row


def convert_gemini(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a row of Vertex's files for tuning, a pair where it has two `completions`."""
    columns = _declared(row, state)
    completions = decoded(row.get("completions"))
    if is_empty(completions):
        return {"messages": decoded(row["contents"]), **columns}
    pairs = [opened(item) for item in completions] if isinstance(completions, list) else []
    sides = sorted((side for side in pairs if "score" in side), key=lambda side: -side["score"])
    if len(sides) != 2 or sides[0]["score"] == sides[1]["score"]:
        mend = "write one completion with score 1 and one with score 0"
        state.refuse("not a good and a bad completion", "completions", completions, mend)
        return {}
    chosen, rejected = ([side.get("completion")] for side in sides)
    return {"prompt": decoded(row["contents"]), "chosen": chosen, "rejected": rejected, **columns}


def fits_declared(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is of Bedrock's conversations, with tools or a system message."""
    return "messages" in row and any(
        row.get(n) is not None for n in ("schemaVersion", "toolConfig")
    )


def convert_declared(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a row of Bedrock's conversations."""
    return {"messages": row["messages"], **_declared(row, state)}


def _declared(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    name, tools = the_one(row, SYSTEMS, "", state), tool_list(row)
    system = {} if name is None else {"system": system_text(row[name], name, state)}
    return system | ({"tools": tools} if tools else {})


def fits_eval(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is a sample of OpenAI's evals."""
    return not is_empty(row.get("ideal")) and not is_empty(row.get("input"))


def convert_eval(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads a question and its ideal answer, the first of several."""
    ideal = decoded(row["ideal"])
    if isinstance(ideal, list):
        if len(ideal) > 1:
            state.note("samples with several ideal answers: the first is trained")
        ideal = ideal[0]
    columns = request_columns({"messages": row["input"]}, "input", state)
    return sample(columns, [{"role": "assistant", "content": ideal}])


_LOGGED = """
    error error_str status_code provider cost spend call_type cache_hit cache_key request_tags
    api_key end_user hidden_params response_time response_cost completionStartTime startTime
    endTime processed_time custom_id url method success requester_ip_address organization_id
    team_id
"""
_BEDROCK = """
    schemaType accountId identity region requestId operation modelId inferenceRegion errorCode
    schemaVersion requestMetadata input output
"""
_TUNED = """
    tools toolConfig tool_config generationConfig generation_config inferenceConfig safetySettings
    labels schemaVersion
"""
BEDROCK = frozenset(_BEDROCK.split())
PASSED = BEDROCK - {"input", "output"}
LOGGED = frozenset(_LOGGED.split()) - {"error", "error_str"}
TUNED = frozenset(_TUNED.split()) - {"tools", "toolConfig", "tool_config"}
CONVERSE = frozenset((*_TUNED.split(), *SYSTEMS, "messages"))
GEMINI = frozenset((*_TUNED.split(), *SYSTEMS, "contents", "completions"))


def _pair(row: Mapping[str, Any]) -> set[str]:
    return {_column(row, REQUESTS), _column(row, RESPONSES), *_LOGGED.split()}


def _request(row: Mapping[str, Any]) -> set[str]:
    return {_column(row, BATCHES), "custom_id", "url", "method"}


def _stored(row: Mapping[str, Any]) -> set[str]:
    answer = "choices" if not is_empty(row.get("choices")) else "response"
    return {answer, *STORED, "model_parameters", *_LOGGED.split()}


LAYOUTS = (
    Layout(
        "Bedrock invocation log",
        fits_bedrock_log,
        convert_bedrock_log,
        lambda row: BEDROCK,
        BEDROCK - {"input", "output"},
    ),
    Layout("API request and response", fits_pair, convert_pair, _pair, LOGGED),
    Layout("batch of API requests", fits_request, convert_request, _request, LOGGED),
    Layout("batch of API responses", fits_answer, refuse_answer, lambda row: [*row]),
    Layout("stored completion", fits_stored, convert_stored, _stored, LOGGED),
    Layout("Gemini contents", fits_gemini, convert_gemini, lambda row: GEMINI, TUNED),
    Layout("Bedrock conversation", fits_declared, convert_declared, lambda row: CONVERSE, TUNED),
    Layout("OpenAI evals sample", fits_eval, convert_eval, lambda row: ("input", "ideal")),
)
