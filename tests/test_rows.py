"""The meaning of labels and weights: actions, rows, documents, completions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from chats import assistant, chat, conversations, user
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_ft.errors import DataError
from gptoss_ft.harmony.messages import Conversation, Document, Message
from gptoss_ft.harmony.options import CHANNELS, RenderOptions
from gptoss_ft.harmony.render import IGNORE, Action, Renderer, Row, Segment
from gptoss_ft.harmony.vocabulary import (
    CALL,
    CHANNEL,
    END,
    ENDOFTEXT,
    FIRST_SPECIAL,
    RETURN,
    START,
    packaged_vocabulary,
)

OPTIONS = RenderOptions(
    weights={"analysis": 0.25, "commentary": 0.5, "final": 1.0, "tool_call": 2.0}
)
VOCABULARY = packaged_vocabulary()
RENDERER = Renderer(VOCABULARY, OPTIONS)
EVEN = Renderer(VOCABULARY, replace(OPTIONS, weights={}))  # every channel weighs 1
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def spelled(ids: list[int]) -> str:
    return VOCABULARY.decode(ids)


def trained(row: Row) -> str:
    return spelled([label for label in row.labels if label != IGNORE])


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


# ---------------------------------------------------------------- documents and completions


def test_every_token_of_a_document_is_trained() -> None:
    text = "Olá <|end|> 🙂\n<|start|>user"
    (row,) = RENDERER.render_document(Document(text))
    assert row.input_ids == row.labels == [*VOCABULARY.encode(text), ENDOFTEXT]
    assert all(token < FIRST_SPECIAL for token in row.input_ids[:-1])
    assert row.loss_weights == [1.0] * len(row.labels)
    assert row.segments == [
        Segment("text", "content", 0, len(row.labels) - 1, 1.0),
        Segment("text", "end", len(row.labels) - 1, len(row.labels), 1.0),
    ]
    assert (row.finals, row.bare_finals) == (0, 0)


@settings(many, max_examples=100)
@given(conversation=conversations(), data=st.data())
def test_a_completion_trains_its_actions_and_nothing_of_the_prompt(
    conversation: Conversation, data: st.DataObject
) -> None:
    messages = conversation.messages
    finals = [i for i, m in enumerate(messages) if m.role == "assistant" and is_final(m)]
    stop = data.draw(st.sampled_from(finals)) + 1
    asked = max(i for i in range(stop) if messages[i].role == "user") + 1
    prompt = replace(conversation, messages=messages[:asked])
    row = EVEN.completion(prompt, messages[asked:stop])
    shared = EVEN.prompt(prompt)
    assert row.input_ids[: len(shared)] == shared
    assert set(row.labels[: len(shared)]) == {IGNORE}
    whole = replace(conversation, messages=messages[:stop])
    mine = [a for a in EVEN.actions(whole) if a.prompt_ids[: len(shared)] == shared]
    mine = [a for a in mine if len(a.prompt_ids) >= len(shared)]
    assert mine and all(_holds(row, action) for action in mine)
    assert sum(row.loss_weights) == pytest.approx(sum(sum(a.target_weights) for a in mine))


def is_final(message: Message) -> bool:
    return bool(message.content) and not message.tool_calls


def test_completions_of_one_prompt_share_exactly_the_prompt() -> None:
    prompt = Conversation((Message("system", "s"), user("a"), assistant("b", "why b"), user("c")))
    rows = [
        RENDERER.completion(prompt, (assistant("d", "why d"),)),
        RENDERER.completion(prompt, (assistant("let me see", "", 1.0, "f"),)),
        RENDERER.completion(prompt, (assistant("e"), user("and?"), assistant("f", "why f"))),
    ]
    shared = RENDERER.prompt(prompt)
    assert spelled(shared).endswith("c<|end|><|start|>assistant")
    assert [spelled(row.input_ids[len(shared) :]) for row in rows] == [
        "<|channel|>analysis<|message|>why d<|end|>"
        "<|start|>assistant<|channel|>final<|message|>d<|return|>",
        "<|channel|>commentary<|message|>let me see<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}"
        "<|call|>",
        "<|channel|>final<|message|>e<|end|><|start|>user<|message|>and?<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>why f<|end|>"
        "<|start|>assistant<|channel|>final<|message|>f<|return|>",
    ]
    assert all(set(row.labels[: len(shared)]) == {IGNORE} for row in rows)
    assert trained(rows[2]).startswith("<|channel|>final<|message|>e<|return|><|channel|>analysis")


def test_in_a_completion_the_closing_token_weighs_what_its_channel_does() -> None:
    (row,) = RENDERER.completions(chat(user("a")), [(assistant("b", "why b", 0.5),)])
    weights = OPTIONS.weights
    expected = [
        weight * 0.5 if how else 0.0
        for channel, weight, how in (
            (segment.channel, weights.get(segment.channel, 1.0), segment.weight > 0)
            for segment in row.segments
            for _ in range(segment.start, segment.stop)
        )
    ]
    assert row.loss_weights == expected
    quiet = Renderer(VOCABULARY, replace(OPTIONS, weights={"analysis": 0.0}))
    (row,) = quiet.completions(chat(user("a")), [(assistant("b", "why b"),)])
    assert trained(row) == "<|start|>assistant<|channel|>final<|message|>b<|return|>"


def test_a_prompt_that_ends_in_the_assistants_words_is_not_trained() -> None:
    prompt = chat(user("a"), Message("assistant", thinking="so far"))
    row = RENDERER.completion(prompt, (assistant("b", "and on"),))
    assert trained(row) == (
        "<|channel|>analysis<|message|>and on<|end|>"
        "<|start|>assistant<|channel|>final<|message|>b<|return|>"
    )
    assert row.input_ids[: len(RENDERER.prompt(prompt))] == RENDERER.prompt(prompt)


def test_a_completion_without_an_action_is_refused() -> None:
    with pytest.raises(DataError, match="neither an answer nor a tool call"):
        RENDERER.completion(chat(user("a")), (Message("assistant", thinking="hm"),))
