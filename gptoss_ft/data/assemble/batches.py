"""Requests and results of an API's batch, two files of one folder, joined by `custom_id`.

OpenAI's chat completions, responses and completions, and what servers with the same API write; and
Anthropic's message batches.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_ft.data.assemble.parts import AssembledRow, Joined, Part, broken
from gptoss_ft.data.formats.common import decoded
from gptoss_ft.errors import DataError, Problem

ID = "custom_id"
REQUESTS, RESULTS = ("body", "params"), ("response", "result", "error")
FAILED = "requests of a batch without an answer, left out"
FIRST = "answers of a batch that hold several choices, of which the first is trained"
CUT = "answers of a batch that were cut off at a limit of tokens"
CUT_REASONS = ("length", "max_tokens")


def fits(row: Mapping[str, Any]) -> bool:
    """Returns whether a row is a request of a batch, or a result."""
    return ID in row and any(key in row for key in (*REQUESTS, *RESULTS))


def join(parts: Sequence[Part]) -> Iterator[Joined]:
    """Puts each result after its request.

    Raises:
        DataError: there are requests only, or results only.
    """
    requests, results = _by_id(parts, REQUESTS), _by_id(parts, RESULTS)
    if not (requests and results):
        raise DataError(_one_sided(parts, "results" if results else "requests"))
    for key, asked in requests.items():
        if len(asked) > 1:
            yield broken(asked, _twice(asked, "request"))
        else:
            yield _exchange(asked[0], results.get(key, []))
    for key, lost in results.items():
        if key not in requests:
            mend = "add the file with its request to the folder, or delete the row"
            what = f"no request of the source has the `{ID}` of this result"
            yield broken(lost, [Problem(what, p.where, repr(key), mend) for p in lost])


def _by_id(parts: Sequence[Part], keys: Sequence[str]) -> dict[Any, list[Part]]:
    found: dict[Any, list[Part]] = {}
    for part in parts:
        if any(part.row.get(key) for key in keys):
            found.setdefault(part.row[ID], []).append(part)
    return found


def _one_sided(parts: Sequence[Part], have: str) -> Problem:
    lack = "requests" if have == "results" else "results"
    path = parts[0].path
    folder = shlex.quote(f"data.path={Path(path).parent}")
    mend = (
        f"put the file with the {lack} beside it, in a folder that holds nothing else, and give "
        f"the folder: {folder}"
    )
    return Problem(f"these are the {have} of a batch, without the {lack}", path, "", mend)


def _twice(parts: Sequence[Part], what: str) -> list[Problem]:
    mend = "keep one of them; give the files of each batch a folder of their own, and data.sources"
    said = f"a {what} with this `{ID}` stands at {parts[0].where} already"
    return [Problem(said, part.where, repr(part.row[ID]), mend) for part in parts[1:]]


def _exchange(request: Part, results: list[Part]) -> Joined:
    """Joins a request and its results: one has succeeded as a rule, others failed before it."""
    answered = [part for part in results if _answer(part.row) is not None]
    if len(answered) > 1:
        return broken([request, *answered], _twice(answered, "result"))
    if not answered:
        return Joined(request, None, Counter({FAILED: 1}))
    answer = _answer(answered[0].row)
    body = next(decoded(request.row[key]) for key in REQUESTS if request.row.get(key))
    if not isinstance(body, Mapping):
        problem = Problem("the request has no body", request.where, repr(body), "write an object")
        return broken([request], [problem])
    row, notes = _joined(body, answer or {})
    if not row:
        what = "a result of this kind is no conversation"
        mend = "delete the request, or bring batches of chat completions, responses or messages"
        return broken([request], [Problem(what, answered[0].where, repr(list(answer or {})), mend)])
    return Joined(request, AssembledRow(row), notes)


def _answer(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns what the API answered; None if the request failed."""
    response, result = decoded(row.get("response")), decoded(row.get("result"))
    if isinstance(result, Mapping):
        message = result.get("message") if result.get("type") == "succeeded" else None
        return message if isinstance(message, Mapping) else None
    if not isinstance(response, Mapping) or response.get("status_code") not in (None, 200):
        return None
    body = decoded(response.get("body"))
    return body if isinstance(body, Mapping) and not body.get("error") else None


def _joined(
    body: Mapping[str, Any], answer: Mapping[str, Any]
) -> tuple[dict[str, Any], Counter[str]]:
    """Returns a row in the format of the API; empty for results that are no conversation."""
    choices = [choice for choice in answer.get("choices") or [] if isinstance(choice, Mapping)]
    first = choices[0] if choices else {}
    ended = first.get("finish_reason") or answer.get("stop_reason")
    notes = +Counter({FIRST: int(len(choices) > 1), CUT: int(ended in CUT_REASONS)})
    messages = body.get("messages")
    if isinstance(messages, list) and isinstance(first.get("message"), Mapping):
        return {**body, "messages": [*messages, first["message"]]}, notes
    if isinstance(messages, list) and answer.get("role") == "assistant":
        said = {key: answer[key] for key in ("role", "content") if key in answer}
        return {**body, "messages": [*messages, said]}, notes
    if body.get("input") is not None and isinstance(answer.get("output"), list):
        notes[CUT] += int(answer.get("status") == "incomplete")
        return {**body, "output": answer["output"]}, +notes
    if isinstance(body.get("prompt"), str) and isinstance(first.get("text"), str):
        return {**body, "completion": first["text"]}, notes
    return {}, notes
