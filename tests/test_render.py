"""The renderer against openai-harmony, and the meaning of labels and weights."""

from __future__ import annotations

import openai_harmony as oh
import pytest
from chats import conversations, parameters, texts
from harmony_oracle import (
    developer_message,
    drop_old_analysis,
    harmony_encoding,
    oracle_actions,
    oracle_messages,
    prompt_ids,
    render_ids,
)
from hypothesis import HealthCheck, given, settings

from gptoss_ft.harmony.messages import Conversation, Message, ToolCall, ToolSpec
from gptoss_ft.harmony.options import CHANNELS, RenderOptions
from gptoss_ft.harmony.render import IGNORE, Action, Renderer, Row, system_text
from gptoss_ft.harmony.tools import tools_text
from gptoss_ft.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    RETURN,
    START,
    packaged_vocabulary,
)

__all__ = ["harmony_encoding"]

OPTIONS = RenderOptions(
    weights={"analysis": 0.25, "commentary": 0.5, "final": 1.0, "tool_call": 2.0}
)
VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, OPTIONS)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def chat(*messages: Message) -> Conversation:
    return Conversation(messages)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str = "", thinking: str = "", weight: float = 1.0, *calls: str) -> Message:
    made = tuple(ToolCall(name, "{}") for name in calls)
    return Message("assistant", text, thinking, made, weight=weight)


def spelled(ids: list[int]) -> str:
    return VOCABULARY.decode(ids)


def trained(row: Row) -> str:
    return spelled([label for label in row.labels if label != IGNORE])


# ---------------------------------------------------------------- against openai-harmony


@many
@given(conversation=conversations())
def test_ids_equal_the_oracle_and_targets_parse_back(
    harmony_encoding: oh.HarmonyEncoding, conversation: Conversation
) -> None:
    messages = oracle_messages(conversation, OPTIONS)
    kept = drop_old_analysis(messages)
    assert RENDERER.prompt(conversation) == prompt_ids(harmony_encoding, kept)
    expected = oracle_actions(messages)
    for action, (prompt, target) in zip(RENDERER.actions(conversation), expected, strict=True):
        assert action.prompt_ids == prompt_ids(harmony_encoding, prompt)
        whole = render_ids(harmony_encoding, prompt + target)
        if target[-1].channel == "final":
            whole[-1] = RETURN
        assert action.prompt_ids + action.target_ids == whole
        assert action.target_ids[-1] in (RETURN, CALL)
        parsed = harmony_encoding.parse_messages_from_completion_tokens(
            action.target_ids, oh.Role.ASSISTANT
        )
        assert [message.to_dict() for message in parsed] == [m.to_dict() for m in target]


@many
@given(schema=parameters, description=texts)
def test_tool_block_equals_the_oracle(
    harmony_encoding: oh.HarmonyEncoding, schema: dict | None, description: str
) -> None:
    tools = (ToolSpec("first", description, schema), ToolSpec("second", "", schema))
    ids = render_ids(harmony_encoding, [developer_message("", tools)])
    assert tools_text(tools) == spelled(ids[3:-1])


def test_tool_block_of_a_schema_with_everything(harmony_encoding: oh.HarmonyEncoding) -> None:
    place = {
        "type": "object",
        "description": "Where\nto look",
        "properties": {"lat": {"type": "number", "default": 1e-5}, "tags": {"type": "array"}},
        "required": ["lat"],
    }
    one = {"type": "integer", "description": "one"}
    schema = {
        "type": "object",
        "properties": {
            "place": place,
            "places": {"type": "array", "items": place, "description": "Several\nof them"},
            "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C", "nullable": True},
            "size": {"oneOf": [one, place], "default": 3},
            "same": {"description": "one", "oneOf": [one, one | {"type": "string"}]},
            "later": {"description": "two", "oneOf": [one, {"description": "two"}]},
            "units": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            "big": {"type": "number", "default": 1e22, "title": "Big", "examples": ["x", 3]},
            "free": {"default": {"a": [1.0, None, "ç\u0001"]}},
        },
        "required": ["place", "size"],
    }
    tools = (ToolSpec("look_up", "Looks things up.\r\n\r\nSlowly.", schema), ToolSpec("ping"))
    ids = render_ids(harmony_encoding, [developer_message("Be brief.)", tools)])
    conversation = Conversation((Message("system", "Be brief.)"), user("Hi")), tools)
    prompt = RENDERER.prompt(conversation)
    assert spelled(ids) in spelled(prompt)
    at = next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)
    assert at > 0


@many
@given(text=texts)
def test_content_never_yields_a_special_id(text: str) -> None:
    tools = (ToolSpec("f", text, {"type": "object", "description": text}),)
    conversation = Conversation(
        (
            Message("system", text),
            user(text),
            Message("assistant", text, text, (ToolCall("f", text),)),
            Message("tool", text, name="f"),
            assistant(text, text),
        ),
        tools,
    )
    (row,) = RENDERER.render(conversation)
    for segment in row.segments:
        ids = row.input_ids[segment.start : segment.stop]
        specials = [i for i in ids if i >= FIRST_SPECIAL]
        if segment.part == "content":
            assert specials == []
        elif segment.part == "end":
            assert len(ids) == len(specials) == 1
    assert row.input_ids.count(START) == 9
    assert row.input_ids.count(CONSTRAIN) == 1


# ---------------------------------------------------------------- what is trained


@many
@given(conversation=conversations())
def test_rows_cover_the_actions_exactly(conversation: Conversation) -> None:
    """Every trained action is found once in the rows, after the prefix it sees at inference."""
    actions = [action for action in RENDERER.actions(conversation) if any(action.target_weights)]
    rows = RENDERER.render(conversation)
    found = []
    for row in rows:
        assert len(row.input_ids) == len(row.labels) == len(row.loss_weights)
        assert [s.start for s in row.segments] == [0, *(s.stop for s in row.segments[:-1])]
        assert row.segments[-1].stop == len(row.input_ids)
        assert any(weight > 0 for weight in row.loss_weights)
        found += [action for action in actions if _holds(row, action)]
        weighed = sum(sum(action.target_weights) for action in actions if _holds(row, action))
        assert sum(row.loss_weights) == pytest.approx(weighed)
        for label, weight in zip(row.labels, row.loss_weights, strict=True):
            assert (label == IGNORE) == (weight == 0)
    assert sorted(map(id, found)) == sorted(map(id, actions))
    # Actions share rows wherever they can: no row's history contains another row whole.
    shown = [[*row.input_ids[:-1], CALL if row.input_ids[-1] == CALL else END] for row in rows]
    for i, ids in enumerate(shown):
        assert not any(other[: len(ids)] == ids for other in shown[i + 1 :])


def _holds(row: Row, action: Action) -> bool:
    """Whether the row trains the action: its prompt as input, its target as labels and weights."""
    at, stop = len(action.prompt_ids), len(action.prompt_ids) + len(action.target_ids)
    wanted = [
        target if weight > 0 else IGNORE
        for target, weight in zip(action.target_ids, action.target_weights, strict=True)
    ]
    return (
        row.input_ids[:at] == action.prompt_ids
        and row.input_ids[at : stop - 1] == action.target_ids[:-1]
        and row.labels[at:stop] == wanted
        and row.loss_weights[at:stop] == action.target_weights
    )


def test_a_final_inside_a_row_is_read_as_end_and_trained_as_return() -> None:
    (row,) = RENDERER.render(chat(user("a"), assistant("b"), user("c"), assistant("d")))
    ends = [i for i, label in enumerate(row.labels) if label == RETURN]
    assert [row.input_ids[i] for i in ends] == [END, RETURN]
    assert ends[-1] == len(row.labels) - 1
    assert trained(row) == (
        "<|channel|>final<|message|>b<|return|><|channel|>final<|message|>d<|return|>"
    )


def test_analysis_before_an_earlier_final_is_dropped_and_splits_the_rows() -> None:
    first, second = RENDERER.render(
        chat(user("a"), assistant("b", "why b"), user("c"), assistant("d", "why d"))
    )
    assert "why b" in trained(first) and first.input_ids[-1] == RETURN
    assert "why b" not in spelled(second.input_ids)
    assert trained(second) == (
        "<|channel|>analysis<|message|>why d<|end|>"
        "<|start|>assistant<|channel|>final<|message|>d<|return|>"
    )


def test_a_tool_loop_is_one_row_and_keeps_the_analysis_before_its_calls() -> None:
    (row,) = RENDERER.render(
        chat(
            user("a"),
            assistant("let me see", "look", 1.0, "f", "g"),
            Message("tool", "1", name="f"),
            Message("tool", "2", name="g"),
            assistant("b", "so"),
        )
    )
    assert trained(row) == (
        "<|channel|>analysis<|message|>look<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>let me see<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}"
        "<|call|>"
        " to=functions.g<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
        "<|channel|>analysis<|message|>so<|end|>"
        "<|start|>assistant<|channel|>final<|message|>b<|return|>"
    )
    assert (row.finals, row.bare_finals) == (1, 0)


def test_the_first_start_of_an_action_is_never_trained() -> None:
    (row,) = RENDERER.render(chat(user("a"), assistant("b", "why")))
    starts = [i for i, token in enumerate(row.input_ids) if token == START]
    assert [row.labels[i] for i in starts] == [IGNORE, IGNORE, IGNORE, START]
    assert row.labels[starts[2] : starts[2] + 3] == [IGNORE, IGNORE, CHANNEL]


def test_weights_of_channels_and_messages_multiply_and_ends_keep_the_message_weight() -> None:
    (row,) = RENDERER.render(chat(user("a"), assistant("b", "why", 0.5, "f")))
    by_part = {(s.channel, s.part): s.weight for s in row.segments if s.weight}
    assert by_part == {
        ("analysis", "header"): 0.125,
        ("analysis", "content"): 0.125,
        ("analysis", "end"): 0.5,
        ("commentary", "header"): 0.25,
        ("commentary", "content"): 0.25,
        ("commentary", "end"): 0.5,
        ("tool_call", "header"): 1.0,
        ("tool_call", "content"): 1.0,
        ("tool_call", "end"): 0.5,
    }
    for segment in row.segments:
        weights = set(row.loss_weights[segment.start : segment.stop])
        assert weights <= {segment.weight}


def test_a_channel_of_weight_0_still_trains_its_end() -> None:
    weights = dict.fromkeys(CHANNELS, 1.0) | {"analysis": 0.0}
    renderer = Renderer(VOCABULARY, RenderOptions(weights=weights))
    (row,) = renderer.render(chat(user("a"), assistant("b", "why")))
    assert trained(row) == "<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>"


def test_a_message_of_weight_0_is_history_only() -> None:
    (row,) = RENDERER.render(chat(user("a"), assistant("b", "", 0.0), user("c"), assistant("d")))
    assert trained(row) == "<|channel|>final<|message|>d<|return|>"
    (row,) = RENDERER.render(chat(user("a"), assistant("b"), user("c"), assistant("d", "", 0.0)))
    assert spelled(row.input_ids).endswith("<|channel|>final<|message|>b<|return|>")
    assert RENDERER.render(chat(user("a"), assistant("b", "why", 0.0))) == []


def test_turns_last_trains_everything_after_the_last_question() -> None:
    renderer = Renderer(VOCABULARY, RenderOptions(turns="last"))
    conversation = chat(
        user("a"),
        assistant("b", "why b"),
        user("c"),
        assistant("", "look", 1.0, "f"),
        Message("tool", "1", name="f"),
        assistant("d", "why d"),
    )
    (row,) = renderer.render(conversation)
    assert trained(row).count("<|channel|>") == 4
    assert "why b" not in spelled(row.input_ids) and "look" in trained(row)
    assert len(renderer.actions(conversation)) == 2


def test_bare_finals_are_counted() -> None:
    (row,) = RENDERER.render(chat(user("a"), assistant("b"), user("c"), assistant("d", "why")))
    assert (row.finals, row.bare_finals) == (2, 1)


# ---------------------------------------------------------------- system and developer blocks


def test_instructions_run_together_and_later_ones_are_kept_in_place() -> None:
    text = spelled(
        RENDERER.prompt(
            chat(
                Message("system", "one"),
                Message("developer", "two"),
                user("a"),
                Message("system", "three"),
                user("b"),
            )
        )
    )
    assert text.endswith(
        "<|start|>developer<|message|># Instructions\n\none\n\ntwo<|end|>"
        "<|start|>user<|message|>a<|end|>"
        "<|start|>developer<|message|># Instructions\n\nthree<|end|>"
        "<|start|>user<|message|>b<|end|><|start|>assistant"
    )


def test_empty_system_lines_are_left_out(harmony_encoding: oh.HarmonyEncoding) -> None:
    content = oh.SystemContent.new().with_model_identity("Me")
    content.knowledge_cutoff = None
    message = oh.Message.from_role_and_content(oh.Role.SYSTEM, content)
    ids = render_ids(harmony_encoding, [message])
    options = RenderOptions(identity="Me", knowledge_cutoff="", date="")
    assert system_text(options, "medium", False) == spelled(ids[ids.index(MESSAGE) + 1 : -1])


def test_the_effort_of_a_row_goes_before_that_of_the_options() -> None:
    conversation = Conversation((user("a"),), effort="high")
    assert "Reasoning: high" in spelled(RENDERER.prompt(conversation))
    assert "Reasoning: medium" in spelled(RENDERER.prompt(chat(user("a"))))


def test_options_name_every_value_out_of_range() -> None:
    options = RenderOptions(
        effort="max", turns="some", date="today", weights={"analisys": 1.0, "final": -1.0}
    )
    problems = options.problems("data.render")
    assert [problem.where for problem in problems] == [
        "data.render.effort",
        "data.render.turns",
        "data.render.date",
        "data.render.weights.analisys",
        "data.render.weights.final",
    ]
    assert problems[3].mend == "did you mean analysis?"
    assert RenderOptions().problems("data.render") == []
