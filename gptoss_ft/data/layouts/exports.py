"""Exports of chats from products: ChatGPT, Claude and Google AI Studio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_ft.data.formats.common import RowState, decoded, is_empty, shell_list
from gptoss_ft.data.layouts import chatgpt
from gptoss_ft.data.layouts.bodies import system_text
from gptoss_ft.data.layouts.layout import Layout
from gptoss_ft.data.layouts.nested import check_nested, opened

ATTACHED = "texts of attached files put before the message, as Claude was given them"

_MESSAGE = """
    uuid text content sender index created_at updated_at truncated stop_reason attachments files
    files_v2 sync_sources parent_message_uuid input_mode
"""
MESSAGE_KEYS = frozenset(_MESSAGE.split())


def fits_claude(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is one of Claude's conversations."""
    return isinstance(decoded(row.get("chat_messages")), list)


def convert_claude(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads the messages of the branch that is shown."""
    messages = [opened(message) for message in decoded(row["chat_messages"])]
    return {
        "messages": [
            _claude_message(message, f"chat_messages[{i}]", state)
            for i, message in _shown(messages, row.get("current_leaf_message_uuid"), state)
        ]
    }


def _shown(
    messages: list[dict[str, Any]], leaf: Any, state: RowState
) -> list[tuple[int, dict[str, Any]]]:
    """Returns the messages of one branch with their places; all where there are no branches."""
    parents = {str(m.get("uuid")): str(m.get("parent_message_uuid")) for m in messages}
    known = [parent for parent in parents.values() if parent in parents]
    if len(parents) != len(messages) or len(set(known)) == len(known):
        return list(enumerate(messages))
    state.note(chatgpt.OTHERS)
    path = set(chatgpt.branch(parents, str(leaf), "chat_messages", state))
    return [(i, message) for i, message in enumerate(messages) if message.get("uuid") in path]


def _claude_message(message: Mapping[str, Any], key: str, state: RowState) -> dict[str, Any]:
    if "sender" not in message:  # Somebody else's messages of the same name.
        return dict(message)
    check_nested(message, MESSAGE_KEYS, key, state)
    if message.get("truncated") is True:
        state.note(chatgpt.CUT)
    content = message.get("content")
    if is_empty(content):
        content = message.get("text", "")
    attached = _attached(message, key, state)
    if attached:
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        content = [{"type": "text", "text": f"{attached}\n\n"}, *blocks]
    return {"role": message.get("sender"), "content": content}


def _attached(message: Mapping[str, Any], key: str, state: RowState) -> str:
    """Returns the text of attached files; files without text are refused."""
    attachments = decoded(message.get("attachments"))
    given = [opened(item) for item in attachments] if isinstance(attachments, list) else []
    if given and "attachments" in state.ignore:
        state.note("attached texts left out, as data.ignore says")
        given = []
    texts = [str(item["extracted_content"]) for item in given if item.get("extracted_content")]
    if texts:
        state.note(ATTACHED)
    names = {str(item.get("file_name")) for item in given if item.get("extracted_content")}
    for column in ("files", "files_v2"):
        files = decoded(message.get(column))
        others = [
            file
            for file in (files if isinstance(files, list) else ())
            if str(opened(file).get("file_name")) not in names
        ]
        if others and column in state.ignore:
            state.note("attached files left out, as data.ignore says")
        elif others:
            mend = f"say {shell_list('data.ignore', ['files', 'files_v2'])} to train without them"
            what = "files are attached, of which the export holds no text"
            state.refuse(what, f"{key}.{column}", others, mend)
            break
    return "\n\n".join(texts)


def fits_studio(row: Mapping[str, Any]) -> bool:
    """Returns whether the row is a prompt that Google AI Studio saved."""
    return isinstance(opened(row.get("chunkedPrompt")).get("chunks"), list)


def convert_studio(row: Mapping[str, Any], state: RowState) -> dict[str, Any]:
    """Reads the chunks, of which those of thinking come before the answer."""
    prompt = opened(row["chunkedPrompt"])
    check_nested(prompt, frozenset(("chunks", "pendingInputs")), "chunkedPrompt", state)
    chunks = [opened(chunk) for chunk in decoded(prompt["chunks"])]
    messages: list[dict[str, Any]] = []
    for i, chunk in enumerate(chunks):
        parts = [str(opened(part).get("text")) for part in decoded(chunk.get("parts")) or ()]
        again = {"parts"} if "".join(parts) == chunk.get("text") else set()
        check_nested(chunk, CHUNK_KEYS | again, f"chunkedPrompt.chunks[{i}]", state)
        role, name = chunk.get("role"), "thinking" if chunk.get("isThought") else "content"
        if not (messages and role == "model" == messages[-1]["role"]):
            messages.append({"role": role, "content": ""})
        messages[-1][name] = messages[-1].get(name, "") + str(chunk.get("text", ""))
    system = opened(row.get("systemInstruction"))
    if system:
        text = system_text(system, "systemInstruction", state)
        messages[:0] = [{"role": "system", "content": text}] if text else []
    return {"messages": messages}


_CHUNK = """
    text role isThought tokenCount finishReason thinkingBudget thoughtSignatures createTime
    isEdited safetyRatings branchParent branchChildren
"""
CHUNK_KEYS = frozenset(_CHUNK.split())
STUDIO = frozenset(("runSettings", "systemInstruction", "chunkedPrompt"))
_CLAUDE = """
    chat_messages current_leaf_message_uuid uuid name summary created_at updated_at account model
    settings is_starred is_temporary project project_uuid platform
"""
CLAUDE = frozenset(_CLAUDE.split())
CLAUDE_READ = frozenset(("chat_messages", "current_leaf_message_uuid"))
LAYOUTS = (
    chatgpt.LAYOUT,
    Layout("Claude export", fits_claude, convert_claude, lambda row: CLAUDE, CLAUDE - CLAUDE_READ),
    Layout(
        "Google AI Studio prompt",
        fits_studio,
        convert_studio,
        lambda row: STUDIO,
        frozenset(("runSettings",)),
    ),
)
