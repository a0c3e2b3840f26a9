"""The other formats: how rows of each become examples, how they are told apart, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from trl.data_utils import maybe_extract_prompt

from gptoss_ft.errors import DataError
from gptoss_ft.harmony.formats import FORMATS, KINDS, detect, parse
from gptoss_ft.harmony.messages import (
    Conversation,
    Document,
    Example,
    Feedback,
    HarmonyText,
    Message,
    Preference,
    ToolCall,
    ToolSpec,
)

WHERE = "rows.jsonl:7"
SAMPLES = Path(__file__).parents[1] / "data" / "formats"
FILES = sorted(SAMPLES.glob("*.jsonl"))

USER = {"role": "user", "content": "How warm?"}
ANSWER = {"role": "assistant", "content": "Warm."}
COLD = {"role": "assistant", "content": "Cold."}
ASKED, WARM, CHILLY = (
    Message("user", "How warm?"),
    Message("assistant", "Warm."),
    Message("assistant", "Cold."),
)
FUNCTION = {"name": "warmth", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
SPEC = ToolSpec("warmth", "", {"type": "object"})
CALLING = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "warmth", "arguments": "{}"}}],
}
BROKEN = {
    "role": "assistant",
    "tool_calls": [{"id": "c1", "function": {"name": "warmth", "arguments": "{city"}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "31"}
CALLED = Message("assistant", tool_calls=(ToolCall("warmth", "{}", "c1"),))
GOT = Message("tool", "31", name="warmth")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def problems(row: dict[str, Any], name: str | None = None) -> list[tuple[str, str, str]]:
    """What, where (without the line) and mend of every problem."""
    with pytest.raises(DataError) as caught:
        parse(row, WHERE, name)
    found = caught.value.problems
    assert all(p.where.startswith(WHERE) for p in found)
    return [(p.what, p.where.removeprefix(WHERE).strip(), p.mend) for p in found]


def prompt_of(*messages: Message, **keys: Any) -> Conversation:
    return Conversation(messages, **keys)


def turns(*pairs: tuple[str, Any], **keys: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in pairs], **keys}


# --- the bundled files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_row_of_a_bundled_file_is_detected_and_read(path: Path) -> None:
    rows = rows_of(path)
    assert 4 <= len(rows) <= 6
    for row in rows:
        assert detect(row) == ("text" if path.stem == "harmony" else path.stem)
        assert parse(row, WHERE, path.stem)


def test_there_is_a_bundled_file_of_every_format() -> None:
    assert {path.stem for path in FILES} == set(FORMATS)


def test_the_csv_file_says_what_the_jsonl_file_says() -> None:
    with (SAMPLES / "alpaca.csv").open(encoding="utf-8", newline="") as file:
        read = [parse(row, WHERE) for row in csv.DictReader(file)]
    rows = rows_of(SAMPLES / "alpaca.jsonl")[: len(read)]
    assert read == [parse(row, WHERE) for row in rows] and read


def in_arrow(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows in groups that Arrow can hold in one table, read back from there."""
    groups: list[list[dict[str, Any]]] = []
    for row in rows:
        for group in groups:
            try:
                pa.array([*group, row])
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                continue
            group.append(row)
            break
        else:
            groups.append([row])
    return [pa.array(group).to_pylist() for group in groups]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rows_read_the_same_through_arrow_which_fills_in_nulls(path: Path) -> None:
    rows = rows_of(path)
    read = [row for group in in_arrow(rows) for row in group]
    assert len(read) == len(rows)
    if path.stem in ("chat", "responses"):
        assert '": null' in json.dumps(read)
    examples = [parse(row, WHERE, path.stem) for row in read]
    for row in rows:
        assert parse(row, WHERE, path.stem) in examples
        examples.remove(parse(row, WHERE, path.stem))


# --- mappings


CONVERSATION = Conversation((ASKED, WARM))
PAIR = Preference(Conversation((ASKED,)), (WARM,), (CHILLY,))
OBSERVED = Message("assistant", tool_calls=(ToolCall("warmth", '{"city":"Rome"}'),))
MAPPINGS: list[tuple[str, dict[str, Any], Example]] = [
    ("chat", {"messages": json.dumps([USER, ANSWER])}, CONVERSATION),
    (
        "openai_preference",
        {
            "input": {"messages": [USER], "tools": [TOOL]},
            "preferred_output": [CALLING, RESULT, ANSWER],
            "non_preferred_output": [BROKEN],
            "reasoning_effort": "low",
        },
        Preference(
            prompt_of(ASKED, tools=(SPEC,), effort="low"),
            (CALLED, GOT, WARM),
            (Message("assistant", tool_calls=(ToolCall("warmth", "{city", "c1"),)),),
        ),
    ),
    ("prompt_completion", {"prompt": "How warm?", "completion": "Warm."}, CONVERSATION),
    ("prompt_completion", {"prompt": [USER], "completion": "Warm."}, CONVERSATION),
    ("prompt_completion", {"prompt": "How warm?", "completion": [ANSWER]}, CONVERSATION),
    (
        "prompt_completion",
        {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])},
        CONVERSATION,
    ),
    (
        "prompt_completion",
        {"prompt": "How warm?", "completion": '[{"city": "Rome"}]'},
        Conversation((ASKED, Message("assistant", '[{"city": "Rome"}]'))),
    ),
    (
        "prompt_completion",
        {
            "prompt": [USER, COLD | {"weight": 1}, USER, BROKEN, RESULT],
            "completion": [ANSWER],
            "tools": json.dumps([TOOL]),
            "chat_template_kwargs": {"reasoning_effort": "high", "builtin_tools": ["python"]},
        },
        Conversation(
            (
                ASKED,
                Message("assistant", "Cold.", weight=0.0),
                ASKED,
                Message("assistant", "", "", (ToolCall("warmth", "{city", "c1"),), weight=0.0),
                GOT,
                WARM,
            ),
            (SPEC,),
            "high",
            ("python",),
        ),
    ),
    ("trl_preference", {"prompt": "How warm?", "chosen": "Warm.", "rejected": "Cold."}, PAIR),
    ("trl_preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [COLD]}, PAIR),
    ("trl_preference", {"chosen": [USER, ANSWER], "rejected": [USER, COLD]}, PAIR),
    (
        "trl_preference",
        {"prompt": "How warm?", "chosen": [USER, ANSWER], "rejected": [USER, COLD]},
        PAIR,
    ),
    ("trl_preference", {"prompt": "How warm?", "chosen": [ANSWER], "rejected": [COLD]}, PAIR),
    (
        "trl_preference",
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        Preference(Conversation((ASKED,)), (WARM,), (WARM,)),
    ),
    (
        "trl_preference",
        # The run is one action from its thinking on; the round before the result is the prompt's.
        {
            "chosen": [USER, CALLING, RESULT, {"role": "assistant", "thinking": "31"}, ANSWER],
            "rejected": [USER, CALLING, RESULT, {"role": "assistant", "thinking": "31"}, COLD],
        },
        Preference(
            prompt_of(ASKED, Message("assistant", tool_calls=CALLED.tool_calls, weight=0.0), GOT),
            (Message("assistant", thinking="31"), WARM),
            (Message("assistant", thinking="31"), CHILLY),
        ),
    ),
    (
        "trl_preference",
        # Results that differ belong to the calls they answer, and so does the whole round.
        {
            "chosen": [USER, CALLING, RESULT, ANSWER],
            "rejected": [USER, CALLING, RESULT | {"content": "3"}, COLD],
        },
        Preference(
            prompt_of(ASKED),
            (CALLED, GOT, WARM),
            (CALLED, Message("tool", "3", name="warmth"), CHILLY),
        ),
    ),
    (
        "kto",
        {"prompt": "How warm?", "completion": "Warm.", "label": True},
        Feedback(Conversation((ASKED,)), (WARM,), True),
    ),
    (
        "kto",
        {"prompt": [USER], "completion": [BROKEN], "label": "False"},
        Feedback(
            Conversation((ASKED,)),
            (Message("assistant", tool_calls=(ToolCall("warmth", "{city", "c1"),)),),
            False,
        ),
    ),
    ("alpaca", {"instruction": "How warm?", "output": "Warm."}, CONVERSATION),
    (
        "alpaca",
        {
            "instruction": "Translate.",
            "input": "Morno.",
            "output": "<think>\nmorno: warm\n</think>\n\nWarm.",
            "system": "Be brief.",
            "history": [["How warm?", "Warm."]],
        },
        Conversation(
            (
                Message("system", "Be brief."),
                ASKED,
                WARM,
                Message("user", "Translate.\n\nMorno."),
                Message("assistant", "Warm.", "morno: warm"),
            )
        ),
    ),
    ("sharegpt", turns(("human", "How warm?"), ("gpt", "Warm.")), CONVERSATION),
    ("sharegpt", {"conversations": json.dumps([USER, ANSWER])}, CONVERSATION),
    (
        "sharegpt",
        turns(
            ("human", "How warm?"),
            ("gpt", "<think>ask</think>Looking."),
            ("function_call", '{"name": "warmth", "arguments": {"city": "Rome"}}'),
            ("observation", "31"),
            ("gpt", "Warm."),
            tools=json.dumps([FUNCTION]),
            system="Be brief.",
        ),
        Conversation(
            (
                Message("system", "Be brief."),
                ASKED,
                Message("assistant", "Looking.", "ask", OBSERVED.tool_calls),
                GOT,
                WARM,
            ),
            (SPEC,),
        ),
    ),
    (
        "sharegpt",
        turns(
            ("human", "How warm?"),
            (
                "function_call",
                [{"function": {"name": "wind", "arguments": "{}"}}, FUNCTION | {"arguments": {}}],
            ),
            ("tool", "calm"),
            ("tool", "31"),
            ("gpt", "Warm."),
        ),
        Conversation(
            (
                ASKED,
                Message("assistant", tool_calls=(ToolCall("wind", "{}"), ToolCall("warmth", "{}"))),
                Message("tool", "calm", name="wind"),
                GOT,
                WARM,
            )
        ),
    ),
    ("responses", {"items": [USER, ANSWER]}, CONVERSATION),
    (
        "responses",
        {
            "instructions": "Be brief.",
            "input": "How warm?",
            "output": [
                {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"},
                {
                    "type": "reasoning",
                    "summary": [
                        {"type": "summary_text", "text": "Ask."},
                        {"type": "summary_text", "text": "Then say."},
                    ],
                },
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Looking.", "annotations": []}],
                },
                {"type": "function_call", "call_id": "c1", "name": "warmth", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "31"},
                {
                    "type": "reasoning",
                    "summary": [{"type": "summary_text", "text": "short"}],
                    "content": [{"type": "reasoning_text", "text": "31 is warm"}],
                },
                ANSWER | {"type": "message"},
            ],
            "tools": [{"type": "function", **FUNCTION}, {"type": "code_interpreter"}],
            "reasoning": {"effort": "low", "summary": None},
        },
        Conversation(
            (
                Message("developer", "Be brief."),
                ASKED,
                Message("assistant", "Looking.", "Ask.\n\nThen say.", CALLED.tool_calls),
                GOT,
                Message("assistant", "Warm.", "31 is warm"),
            ),
            (SPEC,),
            "low",
            ("python",),
        ),
    ),
    (
        "responses",
        {
            "input": [
                USER | {"content": [{"type": "input_text", "text": "How warm?"}]},
                {"type": "function_call", "call_id": "c1", "name": "warmth", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "wind", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c2", "output": "calm"},
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_text", "text": "31"}],
                },
                ANSWER | {"weight": 0.5},
            ]
        },
        Conversation(
            (
                ASKED,
                Message(
                    "assistant",
                    tool_calls=(ToolCall("warmth", "{}", "c1"), ToolCall("wind", "{}", "c2")),
                ),
                Message("tool", "calm", name="wind"),
                GOT,
                Message("assistant", "Warm.", weight=0.5),
            )
        ),
    ),
    ("text", {"text": "A page.\n"}, Document("A page.\n")),
    ("text", {"text": "<|start|> is a special token."}, Document("<|start|> is a special token.")),
]


@pytest.mark.parametrize(("name", "row", "example"), MAPPINGS)
def test_a_row_becomes_the_example(name: str, row: dict[str, Any], example: Example) -> None:
    assert detect(row) == name
    assert parse(row, WHERE) == parse(row, WHERE, name) == example
    filled = row | {"note": 1, "tols": None, "messages": row.get("messages")}
    assert parse(filled, WHERE) == example


def test_harmony_is_read_only_when_it_is_named() -> None:
    text = (
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    )
    assert parse({"text": text}, WHERE, "harmony") == HarmonyText(text)
    ((what, where, mend),) = problems({"text": text})
    assert "in Harmony" in what and where == "text" and "data.format=harmony" in mend


def test_kinds_say_what_a_format_trains() -> None:
    kinds = {Preference: "preference", Feedback: "kto"}
    for name, row, example in MAPPINGS:
        assert KINDS[name] == kinds.get(type(example), "sft"), row
    assert tuple(KINDS) == FORMATS


def test_prompts_need_no_answer_when_asked() -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [USER]},
        {"prompt": "How warm?", "completion": None},
        {"instruction": "How warm?", "output": ""},
        turns(("human", "How warm?")),
        {"input": "How warm?"},
    ]
    names = ("chat", "prompt_completion", "alpaca", "sharegpt", "responses")
    for name, row in zip(names, rows, strict=True):
        assert parse(row, WHERE, name, needs_answer=False) == Conversation((ASKED,))
        assert problems(row, name)


def test_the_implicit_prompt_is_trls() -> None:
    """Where only the last answers differ, TRL finds the same prompt."""
    row: dict[str, Any]
    for row in rows_of(SAMPLES / "trl_preference.jsonl"):
        if "prompt" in row:
            continue
        read = parse(row, WHERE)
        assert isinstance(read, Preference)
        theirs = maybe_extract_prompt(row)
        assert [m.content for m in read.prompt.messages] == [m["content"] for m in theirs["prompt"]]
        assert [m.content for m in read.chosen] == [m["content"] for m in theirs["chosen"]]
        assert [m.content for m in read.rejected] == [m["content"] for m in theirs["rejected"]]


# --- chat: builtin tools, inline thinking, nulls


def calling(name: str, arguments: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "c1", "function": {"name": name, "arguments": arguments}}],
    }


@pytest.mark.parametrize(
    "arguments",
    ["print(1)", {"code": "print(1)"}, '{"code": "print(1)"}', {"code": "print(1)", "n": None}],
)
def test_python_is_called_with_code(arguments: Any) -> None:
    row = {"messages": [USER, calling("python", arguments), RESULT, ANSWER]}
    read = parse(row | {"builtin_tools": ["python"]}, WHERE)
    assert isinstance(read, Conversation) and read.builtin_tools == ("python",)
    assert read.messages[1].tool_calls == (ToolCall("python", "print(1)", "c1", builtin=True),)
    assert read.messages[2] == Message("tool", "31", name="python", builtin=True)


@pytest.mark.parametrize("by", ["tool_call_id", "name"])
def test_browser_calls_keep_their_recipient(by: str) -> None:
    arguments = {"query": "warm", "topn": None}
    result = {"role": "tool", by: {"tool_call_id": "c1", "name": "browser.search"}[by]}
    messages = [USER, calling("browser.search", arguments), result | {"content": "31"}, ANSWER]
    read = parse({"messages": messages, "tools": [{"type": "web_search"}]}, WHERE)
    assert isinstance(read, Conversation) and read.builtin_tools == ("browser",)
    call = ToolCall("browser.search", '{"query":"warm"}', "c1", builtin=True)
    assert read.messages[1].tool_calls == (call,)
    assert read.messages[2] == Message("tool", "31", name="browser.search", builtin=True)


def test_builtin_tools_come_in_one_order() -> None:
    row = {"messages": [USER, ANSWER], "tools": [{"type": "python"}], "builtin_tools": ["browser"]}
    read = parse(row, WHERE)
    assert isinstance(read, Conversation) and read.builtin_tools == ("browser", "python")


def test_a_function_may_be_called_python_where_the_builtin_tool_is_not_declared() -> None:
    tool = {"type": "function", "function": {"name": "python"}}
    row = {"messages": [USER, calling("python", "{}"), RESULT, ANSWER], "tools": [tool]}
    read = parse(row, WHERE)
    assert isinstance(read, Conversation)
    assert read.messages[1].tool_calls == (ToolCall("python", "{}", "c1"),)
    qualified = {"messages": [USER, calling("functions.python", "{}")], "builtin_tools": ["python"]}
    read = parse(qualified, WHERE)
    assert isinstance(read, Conversation) and not read.messages[1].tool_calls[0].builtin


def test_thinking_at_the_start_of_the_content_is_split_off() -> None:
    content = "\n<think>\n31 is\nwarm\n</think>\n\nWarm. </think>"
    read = parse({"messages": [USER, {"role": "assistant", "content": content}]}, WHERE)
    assert isinstance(read, Conversation)
    assert read.messages[1] == Message("assistant", "Warm. </think>", "31 is\nwarm")
    inside = "The tag <think>a</think> opens it."
    read = parse({"messages": [USER, {"role": "assistant", "content": inside}]}, WHERE)
    assert isinstance(read, Conversation) and read.messages[1] == Message("assistant", inside)


def test_nulls_that_arrow_filled_into_schemas_are_left_out() -> None:
    def tool(properties: dict[str, Any]) -> dict[str, Any]:
        function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
        return {"type": "function", "function": function}

    def read(properties: dict[str, Any]) -> Any:
        example = parse({"messages": [USER, ANSWER], "tools": [tool(properties)]}, WHERE)
        assert isinstance(example, Conversation) and example.tools[0].parameters is not None
        return example.tools[0].parameters["properties"]

    meant = {"a": {"type": "string", "default": None, "enum": ["x", None]}}
    assert read(meant) == meant
    filled = {"a": {"type": "string", "default": None, "enum": None}, "b": None}
    assert read(filled) == {"a": {"type": "string"}}


# --- detection


def test_the_table_of_detection_holds_for_bare_columns() -> None:
    found = {
        columns: detect({column: "x" for column in columns.split()})
        for columns in (
            "messages",
            "input preferred_output non_preferred_output",
            "prompt completion",
            "prompt completion label",
            "chosen rejected",
            "prompt chosen rejected",
            "instruction output",
            "instruction input output",
            "conversations",
            "items",
            "text",
            "messages text",
            "instruction output text",
            "messages prompt",
            "messages chosen rejected",
            "messages conversations",
            "input",
            "input output",
            "prompt",
            "chosen",
            "",
        )
    }
    assert found == {
        "messages": "chat",
        "input preferred_output non_preferred_output": "openai_preference",
        "prompt completion": "prompt_completion",
        "prompt completion label": "kto",
        "chosen rejected": "trl_preference",
        "prompt chosen rejected": "trl_preference",
        "instruction output": "alpaca",
        "instruction input output": "alpaca",
        "conversations": "sharegpt",
        "items": "responses",
        "text": "text",
        "messages text": "chat",
        "instruction output text": "alpaca",
        "messages prompt": "chat",
        "messages chosen rejected": None,
        "messages conversations": None,
        "input": None,
        "input output": None,
        "prompt": None,
        "chosen": None,
        "": None,
    }
    assert detect({"input": [], "output": "x"}) == detect({"output": []}) == "responses"
    assert detect({"instruction": "a", "input": "[1]", "output": "b"}) == "alpaca"


def test_columns_that_are_null_do_not_count() -> None:
    row = dict.fromkeys(("messages", "chosen", "rejected", "label", "text")) | {
        "prompt": "a",
        "completion": "b",
    }
    assert detect(row) == "prompt_completion"


def test_a_row_that_fits_no_format_names_them_all_and_the_nearest() -> None:
    ((what, _, mend),) = problems({"prompt": "a", "chosn": "b", "rejected": "c"})
    assert what == "the row fits no format"
    assert mend.startswith("nearest is trl_preference: rename `chosn` to `chosen`. ")
    assert all(name in mend for name in FORMATS if name != "harmony")
    mends = {
        "mesages": "nearest is chat: rename `mesages` to `messages`",
        "prompt": "nearest is prompt_completion: add `completion`",
        "zzz": "rename the columns to those of a format",
    }
    for column, advice in mends.items():
        assert problems({column: "a"})[0][2].startswith(advice)
    assert problems({})[0][0] == "the row fits no format"


def test_a_row_that_fits_two_formats_asks_which() -> None:
    row = {"messages": [USER, ANSWER], "chosen": "a", "rejected": "b", "prompt": "c"}
    ((what, _, mend),) = problems(row)
    assert what == "the row fits several formats: chat, trl_preference"
    assert mend == "say which one with data.format: chat or trl_preference"
    assert parse(row, WHERE, "chat") == CONVERSATION
