"""Traces of applications: runs and datasets of LangSmith, Langfuse, Weave and Phoenix.

A row holds what went into a model and what came out of it. Only the calls of models are read: the
steps around them say the same once more, in a form of the application's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    PlacedItem,
    RowState,
    decoded,
    is_empty,
    shell_list,
)
from gptoss_ft.data.formats.dialects import translated
from gptoss_ft.data.formats.harmless import is_harmless
from gptoss_ft.data.layouts.advice import columns_argument
from gptoss_ft.data.layouts.bodies import (
    ANSWERS,
    ITEM_TYPES,
    PROMPTS,
    answer_of,
    request_columns,
    sample,
)
from gptoss_ft.data.layouts.layout import Layout
from gptoss_ft.data.layouts.nested import is_hollow, opened, tool_list

DROP = "delete the row, or say 'data.on_bad=drop'"
TOOLS = "tools taken from the settings of a run"
ECHO = "messages of the input that the output repeats not read again"
STEP = "the row is a step around the calls of models, which say the same themselves"
STEP_MEND = "export the calls of models only, or say 'data.on_bad=drop'"
# What went in, and what came out under any of several names.
LANGSMITH = ("inputs", ("outputs",))
WEAVE = ("inputs", ("output",))
LANGFUSE = ("input", ("expectedOutput", "expected_output", "expected", "output"))
_GIVEN = frozenset((LANGSMITH[0], LANGFUSE[0]))
Sides = tuple[str, tuple[str, ...]]
MODEL_CALLS = frozenset(("llm", "chat_model", "generation", "prompt"))
MODEL_TYPES = frozenset(("run_type", "span_kind", "type"))


def fits_trace(row: Mapping[str, Any], sides: Sides) -> bool:
    """Returns whether the row holds what went into a model, and what came out of it."""
    first, seconds = sides
    second = next((name for name in seconds if not is_empty(row.get(name))), None)
    if is_empty(row.get(first)) or "instruction" in row or "messages" in row:
        return False
    if second is None:
        return any(name in row for name in seconds) and not is_hollow(row.get("error"))
    given, got = decoded(row[first]), decoded(row[second])
    if isinstance(given, OBJECTS):
        return not isinstance(got, bool) and "preferred_output" not in row
    if isinstance(given, list):
        return _are_messages(given) and (isinstance(got, (*OBJECTS, str)) or _are_messages(got))
    # Texts alone are a question and an answer, which the names of columns tell.
    is_text = isinstance(given, str)
    return is_text and (isinstance(got, OBJECTS) or _is_marked(row, second))


def _is_marked(row: Mapping[str, Any], output: str) -> bool:
    return output.startswith("expected") or not row.keys().isdisjoint(("traceId", "trace_id"))


def _are_messages(value: Any) -> bool:
    """Returns whether a list holds messages, and no other items of the Responses API."""
    if not isinstance(value, list) or not value:
        return False
    if isinstance(value[0], list):
        return _are_messages(value[0])
    return all(isinstance(m, OBJECTS) and m.get("type") not in ITEM_TYPES for m in value)


def convert_trace(row: Mapping[str, Any], state: RowState, sides: Sides) -> dict[str, Any]:
    """Reads a run or an example."""
    first, seconds = sides
    given = [name for name in seconds if not is_empty(row.get(name)) and name not in state.ignore]
    if len(given) > 1:
        mend = f"say which is not: {shell_list('data.ignore', given[1:])}"
        state.refuse("several columns could be the answer", given[0], given, mend)
    if not _check_run(row, state) or len(given) != 1:
        return {}
    columns = _inputs(row[first], first, given[0], row, state)
    _add_tools(columns, row, state)
    answer = _outputs(row[given[0]], first, given[0], row, state)
    return sample(columns, _without_echo(answer, columns.get("messages"), state))


def _check_run(row: Mapping[str, Any], state: RowState) -> bool:
    """Refuses what is no call of a model, and what failed."""
    for name in MODEL_TYPES:
        kind = row.get(name)
        if isinstance(kind, str) and kind.strip().lower() not in MODEL_CALLS:
            state.refuse(STEP, name, kind, STEP_MEND)
            return False
    errors = {name: row.get(name) for name in ("error", "exception", "statusMessage")}
    if row.get("level") not in (None, "ERROR"):
        errors.pop("statusMessage")
    for name, error in errors.items():
        if not is_hollow(error):
            state.refuse("the run ended in an error", name, error, DROP)
            return False
    if row.get("status") == "ARCHIVED" and "datasetId" in row:
        mend = f"{DROP}; {shell_list('data.ignore', ['status'])} trains archived items too"
        state.refuse("the item of the dataset is archived", "status", "ARCHIVED", mend)
    _check_scores(row, state)
    return True


def _check_scores(row: Mapping[str, Any], state: RowState) -> None:
    """Refuses what users and judges said of the answer, be it bad."""
    scores = decoded(row.get("scores"))
    if isinstance(scores, list) and any(isinstance(score, OBJECTS) for score in scores):
        ignoring = shell_list("data.ignore", ["scores"])
        mend = f"keep the good rows; {ignoring} trains all answers alike, the bad ones too"
        state.refuse("`scores` rate the answer, and are not read", "scores", scores, mend)


def _inputs(
    raw: Any, first: str, second: str, row: Mapping[str, Any], state: RowState
) -> dict[str, Any]:
    """Reads what went in: a request, or the one text of it."""
    value = decoded(raw)
    if not isinstance(value, OBJECTS):
        return request_columns({"messages": value}, first, state)
    body = opened(value)
    if "lc" in body or "role" in body:
        return request_columns({"messages": [body]}, first, state)
    if any(name in body and not isinstance(body[name], str) for name in PROMPTS):
        return request_columns(body, first, state)
    if "op_name" in row:  # Weave traces every function; what models are asked is a request.
        state.refuse(STEP, first, [*body], STEP_MEND)
        return {}
    text = _only_text(body, first, second, row, state)
    return {"messages": [{"role": "user", "content": text}]} if text else {}


def _outputs(
    raw: Any, first: str, second: str, row: Mapping[str, Any], state: RowState
) -> list[Any]:
    """Reads what came out: a response, or the one text of it."""
    body = opened(raw)
    known = ("role", "lc", "tool_calls", "additional_kwargs")
    if not body or any(name in body for name in known):
        return answer_of(raw, second, state)
    if any(name in body and not isinstance(body[name], str) for name in ANSWERS):
        return answer_of(raw, second, state)
    text = _only_text(body, first, second, row, state)
    return [{"role": "assistant", "content": text}] if text else []


def _only_text(
    body: Mapping[str, Any], first: str, second: str, row: Mapping[str, Any], state: RowState
) -> str:
    """Returns the one text of an object; where there is more, the user says which.

    No name is harmless here: what an application is given may well be called `topic`.
    """
    here = first if body == opened(row[first]) else second
    left = _open(body, state)
    if len(left) == 1 and isinstance(text := next(iter(left.values())), str):
        return text
    paths = [_path(name, row[name], state) for name in (first, second)]
    argument = columns_argument({"prompt": paths[0], "completion": paths[1]})
    if not any(isinstance(value, str) for value in body.values()):
        state.refuse(f"`{here}` holds no text", here, body, DROP)
    else:
        mend = f"say which are the question and the answer: {argument}"
        state.refuse(f"`{here}` is not one text alone", here, [*body], mend)
    return ""


def _open(body: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    return {k: v for k, v in body.items() if k not in state.ignore and not is_hollow(v)}


def _path(column: str, raw: Any, state: RowState) -> str:
    texts = [name for name, value in _open(opened(raw), state).items() if isinstance(value, str)]
    texts = [name for name in texts if not is_harmless(name)] or texts
    if not texts:
        return column
    # All of what was given, for nothing may be lost to who follows the advice.
    many = len(texts) > 1 and column in _GIVEN
    return (
        r"\n\n".join(f"{{{column}.{name}}}" for name in texts) if many else f"{column}.{texts[0]}"
    )


def _add_tools(columns: dict[str, Any], row: Mapping[str, Any], state: RowState) -> None:
    """Adds the tools that LangSmith keeps among the settings of a run."""
    settings = opened(opened(row.get("extra")).get("invocation_params"))
    tools = tool_list({**settings, "tools": settings.get("tools")})
    if tools and "tools" not in columns and "messages" in columns:
        state.note(TOOLS)
        columns["tools"] = tools


def _without_echo(answer: list[Any], prompt: Any, state: RowState) -> list[Any]:
    """Drops the messages of the prompt where the output repeats them."""
    if not isinstance(prompt, list) or len(answer) <= len(prompt):
        return answer
    texts = [_gist(messages, state) for messages in (prompt, answer[: len(prompt)])]
    if texts[0] != texts[1]:
        return answer
    state.note(ECHO)
    return answer[len(prompt) :]


def _gist(messages: list[Any], state: RowState) -> list[Any]:
    """Returns who says what; problems are found when the messages are read."""
    items = [PlacedItem("", message) for message in messages]
    scratch = RowState(state.where, state.ignore)
    return [
        (item.get("role"), item.get("content") or None) if isinstance(item, OBJECTS) else item
        for _, item in translated(items, scratch)
    ]


_LANGSMITH = """
    id name run_type start_time end_time status error extra serialized manifest manifest_id events
    tags session_id session_name parent_run_id parent_run_ids trace_id dotted_order child_run_ids
    child_runs reference_example_id reference_dataset_id prompt_tokens completion_tokens
    total_tokens total_cost prompt_cost completion_cost first_token_time app_path is_root
    in_dataset share_token trace_tier trace_first_received_at ttl_seconds prompt_token_details
    completion_token_details inputs_s3_urls outputs_s3_urls s3_urls inputs_preview outputs_preview
    tenant_id dataset_id source_run_id created_at modified_at attachment_urls split
    messages_preview thread_id last_queued_at
"""
_LANGFUSE = """
    id traceId trace_id type name startTime endTime completionStartTime environment level
    statusMessage parentObservationId promptId promptName promptVersion model modelParameters
    internalModelId usageDetails costDetails totalCost inputCost outputCost inputUsage outputUsage
    totalUsage latency timeToFirstToken bookmarked public release sessionId userId tags version
    unit calculatedInputCost calculatedOutputCost calculatedTotalCost inputPrice outputPrice
    totalPrice promptTokens completionTokens totalTokens usage createdAt updatedAt projectId
    datasetId datasetName sourceTraceId sourceObservationId timestamp observations traceName
    htmlPath
"""
_WEAVE = """
    id project_id op_name display_name trace_id parent_id started_at ended_at attributes summary
    exception wb_user_id wb_run_id wb_run_step storage_size_bytes deleted_at thread_id turn_id
    dataset_name span_attributes root_span_id span_id _xact_id created tags is_root
"""


# Columns around a run that are read, or told by: its tools, its kind, its end.
READ_BESIDE = MODEL_TYPES | {"error", "exception", "statusMessage", "level", "op_name"}


def _trace(name: str, sides: Sides, passes: str) -> Layout:
    """Builds the layout of a program's rows from its names for what went in and came out."""
    reads = frozenset((sides[0], *sides[1], *passes.split()))
    fits, convert = partial(fits_trace, sides=sides), partial(convert_trace, sides=sides)
    passed = frozenset(passes.split()) - READ_BESIDE
    return Layout(name, fits, convert, lambda row: reads, passed)


LAYOUTS = (
    _trace("LangSmith run or example", LANGSMITH, _LANGSMITH),
    _trace("Weave call", WEAVE, _WEAVE),
    _trace("Langfuse observation or dataset item", LANGFUSE, _LANGFUSE),
)
