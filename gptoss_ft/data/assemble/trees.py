"""Trees of messages, as OpenAssistant publishes them: of each, the path of the best-ranked replies.

Flat, with one message per row and the id of its parent, or nested, with one tree per row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gptoss_ft.data.assemble.parts import Joined, Part, broken, joined, number_of
from gptoss_ft.data.formats.dialects.authors import ROLE_OF
from gptoss_ft.data.formats.harmless import fold
from gptoss_ft.errors import Problem

Node = Mapping[str, Any]
TREE, STATE = "message_tree_id", "tree_state"
IDS, PARENTS, TEXTS = ("message_id", "id"), ("parent_id", "parent_message_id"), ("text", "content")
# Read here, or about the message rather than of it.
READ = frozenset(
    (*IDS, *PARENTS, *TEXTS, TREE, STATE, "role", "rank", "deleted", "review_result", "replies")
)
ABOUT = frozenset(
    (
        "user_id",
        "created_date",
        "lang",
        "review_count",
        "synthetic",
        "model_name",
        "detoxify",
        "emojis",
        "labels",
        "events",
    )
)
GIVEN_UP = frozenset(("aborted_low_grade", "halted_by_moderator"))
BESIDE = "messages of trees that are not on the path of the best-ranked replies, not trained"
REJECTED = "messages of trees that were deleted or failed their review, left out with all replies"
ABANDONED = "trees that their moderators gave up, left out"
UNANSWERED = "trees left out: every answer was deleted or failed its review"


def fits(row: Node) -> bool:
    """Returns whether a row is a message of a tree, one of many."""
    has_parent = TREE in row or any(key in row for key in PARENTS)
    return has_parent and _value(row, IDS) is not None and _is_message(row)


def belongs(row: Node) -> bool:
    """Returns whether a row stands in a tree."""
    return _value(row, IDS) is not None


def fits_nested(row: Node) -> bool:
    """Returns whether a row is a tree, replies within replies."""
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "replies" in prompt and _is_message(prompt)


def _is_message(row: Node) -> bool:
    return isinstance(row.get("role"), str) and isinstance(_value(row, TEXTS), str)


def join(parts: Sequence[Part]) -> Iterator[Joined]:
    """Puts each tree together and takes its best path."""
    for tree in _grouped(parts):
        yield _flat_tree(tree)


def join_nested(parts: Sequence[Part]) -> Iterator[Joined]:
    """Takes the best path of each tree."""
    for part in parts:
        beside = {key: value for key, value in part.row.items() if key not in (*READ, "prompt")}
        yield _best(part, part.row["prompt"], lambda node: node.get("replies") or [], beside)


def _grouped(parts: Sequence[Part]) -> list[list[Part]]:
    """Groups messages by their tree: by its id, or by the message that all of it descends from."""
    by_id = {_value(part.row, IDS): part for part in parts}
    tops: dict[Any, Any] = {}
    groups: dict[Any, list[Part]] = {}
    for part in parts:
        tree = part.row.get(TREE)
        key = ("tree", tree) if tree else ("top", _top(_value(part.row, IDS), by_id, tops))
        groups.setdefault(key, []).append(part)
    return list(groups.values())


def _top(start: Any, by_id: Mapping[Any, Part], tops: dict[Any, Any]) -> Any:
    """Climbs to the message without a parent, or whose parent is missing; of a circle, to any."""
    path = dict[Any, None]()
    at = start
    while at not in tops and at not in path:
        path[at] = None
        parent = _value(by_id[at].row, PARENTS)
        if parent not in by_id:
            break
        at = parent
    top = tops.get(at, at)
    tops.update(dict.fromkeys(path, top))
    return top


def _flat_tree(parts: list[Part]) -> Joined:
    problems = _problems(parts)
    if problems:
        return broken(parts, problems)
    replies: dict[Any, list[Node]] = {}
    for part in parts:
        replies.setdefault(_value(part.row, PARENTS), []).append(part.row)
    (root,) = (part for part in parts if _value(part.row, PARENTS) is None)
    found = _best(root, root.row, lambda node: replies.get(_value(node, IDS), []), {})
    return found._replace(first=parts[0])


def _problems(parts: list[Part]) -> list[Problem]:
    """Finds all that keeps messages from being one tree."""
    by_id: dict[Any, Part] = {}
    found, roots = [], []
    for part in parts:
        first = by_id.setdefault(_value(part.row, IDS), part)
        if first is not part:
            what = f"the tree holds this message twice, first at {first.where}"
            found.append(_problem(what, part, "delete one of them"))
    for part in by_id.values():
        parent = _value(part.row, PARENTS)
        if _role(part.row) is None:
            found.append(_strange(part.row, part))
        if parent is None:
            roots.append(part)
        elif parent not in by_id:
            mend = "add that message, or delete this one with its replies"
            found.append(_problem(f"the parent {parent!r} is not in the source", part, mend))
    for part in roots[1:]:
        what = f"the tree begins twice, first at {roots[0].where}"
        found.append(_problem(what, part, f"give it a `{TREE}` of its own, or a parent"))
    if not found and not roots:
        what = "the messages of this tree are replies to each other in a circle"
        found.append(_problem(what, parts[0], "give the first of them no parent"))
    return found or _circles(by_id, roots[0])


def _circles(by_id: Mapping[Any, Part], root: Part) -> list[Problem]:
    """Finds messages that do not descend from the root."""
    tops: dict[Any, Any] = {}
    what, mend = "the message is a reply to its own reply", "correct its parent"
    return [
        _problem(what, part, mend)
        for key, part in by_id.items()
        if _top(key, by_id, tops) != _value(root.row, IDS)
    ]


def _strange(node: Node, part: Part) -> Problem:
    found, mend = repr(node.get("role")), "write prompter or assistant"
    return Problem("unknown role of a message in a tree", f"{part.where} role", found, mend)


def _problem(what: str, part: Part, mend: str) -> Problem:
    return Problem(what, part.where, repr(_value(part.row, IDS)), mend)


def _best(
    first: Part, root: Node, replies: Callable[[Node], Sequence[Node]], beside: Mapping[str, Any]
) -> Joined:
    """Takes the path from the root on which every reply is the best-ranked one."""
    if first.row.get(STATE) in GIVEN_UP:
        return Joined(first, None, Counter({ABANDONED: 1}))
    rejected = 0 if _stands(root) else 1
    path = [root] if _stands(root) else []
    total, level, strange = 1, path, []
    while level:  # all that stand, to count those that are left out
        below = [reply for node in level for reply in replies(node)]
        level = [node for node in below if _stands(node)]
        strange += [node for node in below if _role(node) is None]
        rejected += len(below) - len(level)
        total += len(level)
    if strange:
        return broken([first], [_strange(node, first) for node in strange])
    while path and (following := _choose(path[-1], replies)):
        path.append(following)
    while len(path) > 1 and not _is_assistant(path[-1]):
        path.pop()
    notes = +Counter({REJECTED: rejected, BESIDE: total - len(path) if path else 0})
    if rejected and not any(map(_is_assistant, path)):
        return Joined(first, None, notes + Counter({UNANSWERED: 1}))
    return joined(first, {**beside, "messages": [_message(node) for node in path]}, notes)


def _choose(node: Node, replies: Callable[[Node], Sequence[Node]]) -> Node | None:
    """Returns the best-ranked reply, of questions one that has an answer; None if there is none."""

    def place(reply: Node) -> tuple[bool, bool, float]:
        answered = _is_assistant(reply) or any(
            _stands(answer) and _is_assistant(answer) for answer in replies(reply)
        )
        rank = number_of(reply.get("rank"))
        return not answered, rank is None, rank or 0.0

    return min((reply for reply in replies(node) if _stands(reply)), key=place, default=None)


def _stands(node: Node) -> bool:
    """Returns whether a message was neither deleted nor failed its review."""
    return not (_says(node.get("deleted"), "true") or _says(node.get("review_result"), "false"))


def _says(value: Any, word: str) -> bool:
    return isinstance(value, bool | str) and str(value).lower() == word


def _is_assistant(node: Node) -> bool:
    return _role(node) == "assistant"


def _role(node: Node) -> str | None:
    return ROLE_OF.get(fold(str(node.get("role"))))


def _message(node: Node) -> dict[str, Any]:
    """Returns a message of the chat format; keys that are not known here are for it to judge."""
    others = {k: v for k, v in node.items() if k not in READ and k not in ABOUT and v is not None}
    return {"role": node.get("role"), "content": _value(node, TEXTS), **others}


def _value(row: Node, keys: Sequence[str]) -> Any:
    """Returns what stands under the first of some keys that is there; None for an empty text."""
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)
