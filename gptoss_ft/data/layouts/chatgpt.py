"""ChatGPT's export, `conversations.json`: a tree of messages, of which one branch is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import OBJECTS, RowState, is_empty, note_harmless, shell_list
from gptoss_ft.data.layouts.layout import Layout
from gptoss_ft.data.layouts.nested import check_nested, is_hollow, opened

HIDDEN = "messages that ChatGPT hides left out"
RECAPS = "notes such as `Thought for 8 seconds` left out"
CONTEXTS = "custom instructions and memories of ChatGPT read as system messages"
FILES = "messages with files, which the export does not hold"
CUT = "answers that were stopped or cut off: they are trained as they stand"
MARKS = "answers with ChatGPT's marks of citations in the text"
OTHERS = "messages of branches that are not shown left out"
UNANSWERED = "thinking that nothing follows left out"
_MESSAGE = """
    id author create_time update_time content status end_turn weight metadata recipient channel
"""
MESSAGE_KEYS = frozenset(_MESSAGE.split())
NODE_KEYS = frozenset(("id", "message", "parent", "children"))
AUTHOR_KEYS = frozenset(("role", "name", "metadata"))
CONTEXT_KEYS = ("user_profile", "user_instructions", "model_set_context")
# The text of each kind of content, by its key; `parts` and `thoughts` are lists.
TEXT_OF = MappingProxyType(
    {
        "text": ("parts",),
        "multimodal_text": ("parts",),
        "code": ("text",),
        "execution_output": ("text",),
        "thoughts": ("thoughts",),
        "reasoning_recap": ("content",),
        "user_editable_context": CONTEXT_KEYS,
        "model_editable_context": CONTEXT_KEYS,
        "tether_quote": ("text",),
        "tether_browsing_display": ("result",),
        "system_error": ("text",),
    }
)
# Beside the text: where it is from, and how it is shown.
_BESIDE = """
    content_type language response_format_name source_analysis_msg_id url domain title summary
    assets tether_id name repository repo_summary structured_context
"""
BESIDE = frozenset(_BESIDE.split())
EVERYBODY = "all"


def fits(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is one of ChatGPT's conversations."""
    mapping = row.get("mapping")
    return isinstance(mapping, (*OBJECTS, str)) and bool(opened(mapping))


def convert(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads the branch that ends in `current_node`, or in the last leaf."""
    nodes = opened(row["mapping"])
    path = branch(
        {name: str(opened(node).get("parent")) for name, node in nodes.items()},
        str(row.get("current_node")),
        "mapping",
        state,
    )
    reader = _Branch(state)
    if len(path) < len(nodes):
        state.note(OTHERS)
    for name in path:
        node = opened(nodes[name])
        check_nested(node, NODE_KEYS, f"mapping.{name}", state)
        message = opened(node.get("message"))
        if message:
            reader.read(message, f"mapping.{name}.message")
    messages = reader.ended()
    called = {
        call["function"]["name"] for message in messages for call in message.get("tool_calls", ())
    }
    builtin = {"builtin_tools": ["python"]} if "python" in called else {}
    return {"messages": messages, **builtin}


def branch(parents: Mapping[str, Any], leaf: Any, key: str, state: RowState) -> list[str]:
    """Returns the way from the root of a tree to a leaf, the last one where none is named.

    Args:
        parents: of every node; one that is not there itself is above the root.
        leaf: the node to end in.
        key: where the tree stands, for problems.
        state: of the row.
    """
    if leaf not in parents:
        inner = set(parents.values())
        leaves = [name for name in parents if name not in inner]
        leaf = leaves[-1] if leaves else None
    path: list[str] = []
    while leaf in parents and leaf not in path:
        path.append(leaf)
        leaf = parents[leaf]
    if leaf in parents or not path:
        state.refuse("the tree of messages goes round in a circle", key, mend="delete the row")
    return path[::-1]


class _Branch:
    """Collects the messages of one branch."""

    def __init__(self, state: RowState) -> None:
        self.state = state
        self.messages: list[dict[str, Any]] = []
        self.thinking: list[str] = []
        self.cut = False

    def read(self, message: Mapping[str, Any], key: str) -> None:
        """Reads one message."""
        state = self.state
        check_nested(message, MESSAGE_KEYS, key, state)
        check_nested(opened(message.get("author")), AUTHOR_KEYS, f"{key}.author", state)
        author, metadata = opened(message.get("author")), opened(message.get("metadata"))
        role, name = author.get("role"), str(author.get("name") or "")
        content = opened(message.get("content"))
        if not (is_hollow(metadata) and is_hollow(author.get("metadata"))):
            note_harmless("metadata", metadata, "exports", state)
        kind = content.get("content_type")
        recipient = str(message.get("recipient") or EVERYBODY)
        if {recipient, name} & state.ignore:
            state.note("calls of tools left out with their results, as data.ignore says")
            return
        if kind == "reasoning_recap":
            state.note(RECAPS)
            return
        is_context = kind in ("user_editable_context", "model_editable_context")
        if not is_context and _is_hidden(message, metadata, role, recipient):
            if not _is_blank(content):
                state.note(HIDDEN)
            return
        if metadata.get("attachments"):
            state.note(FILES)
        text = _text(content, f"{key}.content", state)
        if kind == "thoughts" or message.get("channel") == "analysis":
            self.thinking += [text] if text else []
        elif is_context:
            self._context(text)
        elif role == "tool":
            self._result(text, name, key)
        elif recipient != EVERYBODY and role == "assistant":
            self._call(text, recipient, key)
        elif text.strip() or role not in ("system", "assistant"):
            self._said(role, text, metadata, message)

    def ended(self) -> list[dict[str, Any]]:
        """Returns the messages."""
        self._drop_thinking()
        return self.messages

    def _drop_thinking(self) -> None:
        if self.thinking:
            self.state.note(UNANSWERED)
            self.thinking = []

    def _context(self, text: str) -> None:
        if text:
            self.state.note(CONTEXTS)
            self.messages.append({"role": "system", "content": text})

    def _said(
        self, role: Any, text: str, metadata: Mapping[str, Any], message: Mapping[str, Any]
    ) -> None:
        if role != "assistant":
            self._drop_thinking()
            self.messages.append({"role": role, "content": text})
            return
        if "\ue200" in text or ("【" in text and "†" in text):
            self.state.note(MARKS)
        reason = opened(metadata.get("finish_details")).get("type")
        cut = reason in ("max_tokens", "interrupted") or message.get("status") == "in_progress"
        if cut:
            self.state.note(CUT)
        last = self.messages[-1] if self.messages else {}
        if self.cut and last.get("role") == "assistant" and not last.get("tool_calls"):
            # "Continue generating": the rest of one answer.
            last["content"] += text
        else:
            self._assistant({"content": text})
        self.cut = reason == "max_tokens"

    def _assistant(self, said: dict[str, Any]) -> None:
        thinking = {"thinking": "\n\n".join(self.thinking)} if self.thinking else {}
        self.messages.append({"role": "assistant", **thinking, **said})
        self.thinking, self.cut = [], False

    def _call(self, text: str, recipient: str, key: str) -> None:
        """Reads a call; what was said right before it is its preamble."""
        if recipient != "python" and not _is_object(text):
            ignoring = shell_list("data.ignore", [recipient])
            mend = f"say {ignoring} to train without these calls and their results"
            what = f"a call of `{recipient}`, which is not written as JSON, is not read"
            self.state.refuse(what, f"{key}.content", text, mend)
        call = {"type": "function", "function": {"name": recipient, "arguments": text}}
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == "assistant" and not self.thinking:
            last.setdefault("tool_calls", []).append(call)
            self.cut = False
        else:
            self._assistant({"tool_calls": [call]})

    def _result(self, text: str, name: str, key: str) -> None:
        """Reads a result; it belongs to the last call of that tool, or of its family."""
        called = [
            call["function"]["name"]
            for message in self.messages
            for call in message.get("tool_calls", ())
        ]
        family = [other for other in called if other.split(".")[0] == name.split(".")[0]]
        if not family:
            ignoring = shell_list("data.ignore", [name])
            mend = f"say {ignoring} to train without it"
            self.state.refuse("a tool speaks that was not called", key, name or text, mend)
            return
        owner = name if name in called else family[-1]
        self.messages.append({"role": "tool", "name": owner, "content": text})


def _is_hidden(
    message: Mapping[str, Any], metadata: Mapping[str, Any], role: Any, recipient: Any
) -> bool:
    """Returns whether a message is neither shown nor part of what the model was given."""
    if message.get("weight") == 0:
        return True
    hidden = metadata.get("is_visually_hidden_from_conversation") is True
    return hidden and role in ("user", "assistant") and recipient == EVERYBODY


def _is_blank(content: Mapping[str, Any]) -> bool:
    return all(
        is_empty(value) or value == [""]
        for name, value in content.items()
        if name not in ("content_type", "language")
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _text(content: Mapping[str, Any], key: str, state: RowState) -> str:
    """Reads the text of a message's content."""
    kind = content.get("content_type")
    names = TEXT_OF.get(kind) if isinstance(kind, str) else None
    if names is None:
        if str(kind) in state.ignore:
            state.note(f"content of type `{kind}` left out, as data.ignore says")
            return ""
        mend = f"say {shell_list('data.ignore', [str(kind)])} to train without it"
        state.refuse(f"content of type `{kind}` is not read", key, content, mend)
        return ""
    check_nested(content, BESIDE.union(names), key, state)
    texts = []
    for name in names:
        raw = content.get(name)
        if name == "thoughts":
            texts += [_thought(thought) for thought in raw] if isinstance(raw, list) else []
        elif isinstance(raw, list):
            texts.append("".join(_part(part, key, state) for part in raw))
        elif isinstance(raw, str):
            texts.append(raw)
    return "\n\n".join(text for text in texts if text)


def _thought(raw: Any) -> str:
    """Returns what was thought; the summary is its heading."""
    thought = opened(raw)
    return str(thought.get("content") or thought.get("summary") or "")


def _part(part: Any, key: str, state: RowState) -> str:
    """Reads a part: a text, what was said aloud, or something that is no text."""
    if isinstance(part, str):
        return part
    given = opened(part)
    kind = str(given.get("content_type"))
    if kind == "audio_transcription" and isinstance(given.get("text"), str):
        return str(given["text"])
    if kind in state.ignore:
        state.note(f"parts of type `{kind}` left out, as data.ignore says")
        return ""
    mend = f"say {shell_list('data.ignore', [kind])} to train without such parts"
    what = f"gpt-oss reads text only, and this part is of type {kind!r}"
    state.refuse(what, key, part, mend)
    return ""


_PASSES = """
    title create_time update_time moderation_results plugin_ids conversation_id
    conversation_template_id gizmo_id gizmo_type is_archived is_starred safe_urls blocked_urls
    default_model_slug conversation_origin voice async_status disabled_tool_ids is_do_not_remember
    memory_scope sugar_item_id sugar_item_visible is_study_mode owner context_scopes pinned_time
    is_read_only id
"""
PASSES = frozenset(_PASSES.split())
READS = PASSES | {"mapping", "current_node"}
LAYOUT = Layout("ChatGPT export", fits, convert, lambda row: READS, PASSES)
