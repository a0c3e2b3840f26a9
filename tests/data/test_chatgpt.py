"""ChatGPT's export: the branch that is shown, thinking, calls, and what is hidden."""

from __future__ import annotations

from typing import Any

import pytest
from format_rows import WHERE, problems

from gptoss_ft.data.layouts.plan import Reading
from gptoss_ft.data.reading import ReadRow, read_row
from gptoss_ft.harmony.messages import Conversation, Message, ToolCall

QUESTION, HIGH = Message("user", "Tide?"), Message("assistant", "High.")


def node(role: str, content: Any, name: str = "", **keys: Any) -> dict[str, Any]:
    if isinstance(content, str):
        content = {"content_type": "text", "parts": [content]}
    author = {"role": role, "name": name or None, "metadata": {}}
    others = {"status": "finished_successfully", "weight": 1.0, "metadata": {}, "recipient": "all"}
    return {"id": "x", "author": author, "create_time": 1.0, "content": content} | others | keys


def exported(*messages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A conversation of one branch."""
    mapping: dict[str, Any] = {"0": {"id": "0", "message": None, "parent": None}}
    for i, message in enumerate(messages):
        mapping[str(i + 1)] = {"id": str(i + 1), "message": message, "parent": str(i)}
    return {"title": "Tide", "mapping": mapping, "current_node": str(len(messages))} | keys


def read(row: dict[str, Any], *ignore: str) -> ReadRow:
    return read_row(row, WHERE, Reading(ignore=frozenset(ignore)))


def messages_of(row: dict[str, Any], *ignore: str) -> list[Message]:
    example = read(row, *ignore).example
    assert isinstance(example, Conversation)
    return list(example.messages)


ASKED, ANSWERED = node("user", "Tide?"), node("assistant", "High.")
THOUGHTS = node(
    "assistant",
    {
        "content_type": "thoughts",
        "thoughts": [
            {"summary": "Moon", "content": "Look up.", "finished": True},
            {"summary": "Port", "content": "Faro.", "finished": True},
        ],
        "source_analysis_msg_id": "m",
    },
)
RECAP = node("assistant", {"content_type": "reasoning_recap", "content": "Thought for 8 seconds"})
CODE = node(
    "assistant",
    {"content_type": "code", "language": "unknown", "text": "1 + 1"},
    recipient="python",
)
RAN = node("tool", {"content_type": "execution_output", "text": "2"}, "python")
SEARCH = node("assistant", {"content_type": "code", "text": '{"q":"tide"}'}, recipient="web.run")
FOUND = node("tool", "High tide.", "web.run")
OLD_SEARCH = node("assistant", {"content_type": "code", "text": 'search("x")'}, recipient="browser")
HIDDEN = {"is_visually_hidden_from_conversation": True}
BROWSED = node("tool", {"content_type": "tether_quote", "text": "x", "url": "u"}, "browser")
INSTRUCTIONS = node(
    "user",
    {"content_type": "user_editable_context", "user_profile": "Sailor.", "user_instructions": ""},
    weight=0.0,
    metadata=HIDDEN,
)
CUT = node("assistant", "Hi", metadata={"finish_details": {"type": "max_tokens"}}, end_turn=False)
PYTHON = Message(
    "assistant", "Let me see.", "Look up.\n\nFaro.", (ToolCall("python", "1 + 1", builtin=True),)
)
BRANCHES = {
    "thoughts": (
        (ASKED, THOUGHTS, RECAP, ANSWERED),
        [QUESTION, HIGH._replace(thinking="Look up.\n\nFaro.")],
    ),
    "stopped thoughts": ((ASKED, THOUGHTS, ASKED, ANSWERED), [QUESTION, QUESTION, HIGH]),
    "code": (
        (ASKED, THOUGHTS, node("assistant", "Let me see."), CODE, RAN, ANSWERED),
        [QUESTION, PYTHON, Message("tool", "2", name="python", builtin=True), HIGH],
    ),
    "search": (
        (ASKED, SEARCH, FOUND, ANSWERED),
        [
            QUESTION,
            Message("assistant", tool_calls=(ToolCall("web.run", '{"q":"tide"}'),)),
            Message("tool", "High tide.", name="web.run"),
            HIGH,
        ],
    ),
    "empty system message": ((node("system", ""), ASKED, ANSWERED), [QUESTION, HIGH]),
    "hidden": (
        (ASKED, node("user", "Psst.", metadata=HIDDEN), node("assistant", "", weight=0), ANSWERED),
        [QUESTION, HIGH],
    ),
    "custom instructions": (
        (INSTRUCTIONS, ASKED, ANSWERED),
        [Message("system", "Sailor."), QUESTION, HIGH],
    ),
    "continued": ((ASKED, CUT, node("assistant", "gh.")), [QUESTION, HIGH]),
    "said aloud": (
        (
            node(
                "user",
                {
                    "content_type": "multimodal_text",
                    "parts": [{"content_type": "audio_transcription", "text": "Tide?"}],
                },
            ),
            ANSWERED,
        ),
        [QUESTION, HIGH],
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_becomes_messages(name: str) -> None:
    nodes, expected = BRANCHES[name]
    assert messages_of(exported(*nodes)) == expected


def test_the_branch_is_the_one_that_is_shown() -> None:
    row = exported(ASKED, ANSWERED)
    row["mapping"]["3"] = {"id": "3", "message": node("assistant", "Low."), "parent": "1"}
    assert messages_of(row) == [QUESTION, HIGH]
    assert messages_of(row | {"current_node": None})[-1].content == "Low."


def test_a_circle_is_refused() -> None:
    row = exported(ASKED, ANSWERED)
    row["mapping"]["0"]["parent"] = "2"
    assert "circle" in problems(row)[0][0]


NOTED = [
    ((ASKED, RECAP, ANSWERED), "Thought for"),
    ((ASKED, node("user", "Psst.", metadata=HIDDEN), ANSWERED), "hides"),
    ((INSTRUCTIONS, ASKED, ANSWERED), "custom instructions"),
    ((ASKED, CUT), "cut off"),
    ((ASKED, THOUGHTS, ASKED, ANSWERED), "nothing follows"),
    ((ASKED, node("assistant", "High. \ue200cite\ue202x\ue201")), "citations"),
    ((node("user", "Tide?", metadata={"attachments": [{"id": "f"}]}), ANSWERED), "files"),
]


@pytest.mark.parametrize(("nodes", "note"), NOTED)
def test_what_is_left_out_is_said(nodes: tuple[Any, ...], note: str) -> None:
    notes = read(exported(*nodes)).notes
    told = [line for line in notes if "nothing to train" not in line]
    assert [note in line for line in told] == [True]


IMAGE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}
MIXED = node("user", {"content_type": "multimodal_text", "parts": [IMAGE, "Tide?"]})
ADVISED = [
    ((MIXED, ANSWERED), "image_asset_pointer"),
    ((ASKED, OLD_SEARCH, BROWSED, ANSWERED), "browser"),
    ((ASKED, node("tool", "Files.", "myfiles_browser"), ANSWERED), "myfiles_browser"),
    ((ASKED, node("assistant", {"content_type": "hologram", "x": 1}), ANSWERED), "hologram"),
    ((ASKED, ANSWERED | {"remarks": "Wrong."}), "remarks"),
]


@pytest.mark.parametrize(("nodes", "name"), ADVISED)
def test_what_is_not_read_is_refused_until_ignored(nodes: tuple[Any, ...], name: str) -> None:
    found = problems(exported(*nodes))
    assert f"'data.ignore=[{name}]'" in found[0][2]
    assert messages_of(exported(*nodes), name) == [QUESTION, HIGH]
