"""Marks of turns that are not to be trained, as axolotl, LLaMA-Factory, swift and others write
them: `train`, `training`, `loss`, `mask`, `train_detail`.

They become `weight` before any message is joined with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gptoss_ft.data.formats.common import (
    OBJECTS,
    PlacedItem,
    RowState,
    decoded,
    is_empty,
    shell_list,
)
from gptoss_ft.data.formats.harmless import fold

_TRAINED = """
    train training trainable trained train_on train_on_turn is_trained loss has_loss with_loss
    compute_loss calculate_loss loss_mask supervised
"""
_MASKED = "mask masked is_masked loss_masked ignore_loss no_loss mask_loss"
# Names, and what true says: whether the message is trained.
FLAGS: Mapping[str, bool] = MappingProxyType(
    dict.fromkeys(_TRAINED.split(), True) | dict.fromkeys(_MASKED.split(), False)
)
DETAILS = frozenset(("train_detail", "training_detail", "train_details", "training_details"))
WEIGHTS = frozenset(("loss_weight", "loss_scale"))
TRUTHS: Mapping[Any, bool] = MappingProxyType(
    {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
)
ASSISTANT = ("assistant", "call")
NOT_TRAINED = "turns of users marked as not masked: only the assistant's are trained"


def fits(message: Mapping[str, Any]) -> bool:
    """Returns whether a mark stands in the message."""
    return any(
        (name := fold(key)) in FLAGS or name in DETAILS or name in WEIGHTS for key in message
    )


def convert(items: list[PlacedItem], state: RowState) -> list[PlacedItem]:
    """Writes the marks as `weight`."""
    return [
        PlacedItem(place, _converted(item, place, state))
        if isinstance(item, OBJECTS) and fits(item)
        else PlacedItem(place, item)
        for place, item in items
    ]


def _converted(message: Mapping[str, Any], place: str, state: RowState) -> Mapping[str, Any]:
    """Reads the marks of one message; those that the user ignores are left for `check_keys`."""
    before = len(state.problems)
    rest, flags, details, weights = {}, dict[str, bool](), dict[str, bool](), dict[str, Any]()
    for key, value in message.items():
        name = fold(key)
        known = name in FLAGS or name in DETAILS or name in WEIGHTS
        if not known or key in state.ignore:
            rest[key] = value
        elif is_empty(value):
            continue
        elif name in WEIGHTS:
            weights[key] = value
        elif name in DETAILS:
            text = message.get("content")
            detail = _detail(value, text, f"{place}.{key}", state)
            details |= {} if detail is None else {key: detail}
        else:
            flag = _flag(value, FLAGS[name], f"{place}.{key}", state)
            flags |= {} if flag is None else {key: flag}
    if len(state.problems) > before:
        return rest
    if message.get("role") not in ASSISTANT:
        return _untrained(rest, {**flags, **details}, message, place, state)
    return _weighted(rest, {**flags, **details}, weights, place, state)


def _flag(raw: Any, meaning: bool, key: str, state: RowState) -> bool | None:
    """Reads whether a message is trained; None where it is refused."""
    value = TRUTHS.get(raw.strip().lower()) if isinstance(raw, str) else raw
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value) == meaning
    name = key.rpartition(".")[2]
    mend = f"write true or false, or say {shell_list('data.ignore', [name])} to not read it"
    state.refuse(f"`{name}` is neither true nor false", key, raw, mend)
    return None


def _detail(raw: Any, text: Any, key: str, state: RowState) -> bool | None:
    """Reads axolotl's spans of characters, `end_offset` being the last one; they must agree and,
    where they are trained, leave out nothing but white space.
    """
    spans = decoded(raw)
    if not isinstance(spans, list) or not isinstance(text, str):
        mend = "write a list of {begin_offset, end_offset, train} beside a text"
        state.refuse("the spans to train cannot be read", key, raw, mend)
        return None
    trained = set[int]()
    for span in spans:
        first = span.get("begin_offset") if isinstance(span, OBJECTS) else None
        last = span.get("end_offset") if isinstance(span, OBJECTS) else None
        if type(first) is not int or type(last) is not int:
            mend = "write {begin_offset, end_offset, train}"
            state.refuse("not a span to train", key, span, mend)
            return None
        if _flag(span.get("train"), True, f"{key}.train", state):
            trained.update(range(first, last + 1))
    wanted = {i for i, letter in enumerate(text) if not letter.isspace()}
    if wanted <= trained:
        return True
    if wanted.isdisjoint(trained):
        return False
    name = key.rpartition(".")[2]
    mend = (
        f"say {shell_list('data.ignore', [name])} to go by the other marks of the message, train "
        "the whole of it where there are none; or write one span over all of the text"
    )
    state.refuse("a part of a message cannot be trained without the rest", key, raw, mend)
    return None


def _untrained(
    rest: dict[str, Any],
    flags: Mapping[str, bool],
    message: Mapping[str, Any],
    place: str,
    state: RowState,
) -> dict[str, Any]:
    for key in (key for key, flag in flags.items() if flag):
        if not FLAGS.get(fold(key), True):
            state.note(NOT_TRAINED)
            continue
        what = f"a {message.get('role')} message cannot be trained"
        mend = "remove it or write false: only assistant messages are trained"
        state.refuse(what, f"{place}.{key}", message[key], mend)
    return rest


def _weighted(
    rest: dict[str, Any],
    flags: Mapping[str, bool],
    weights: Mapping[str, Any],
    place: str,
    state: RowState,
) -> dict[str, Any]:
    given = {key: value for key, value in rest.items() if key == "weight" and value is not None}
    given |= weights
    if len(set(flags.values())) > 1 or len(set(map(str, given.values()))) > 1:
        _refuse_both({**flags, **given}, place, state)
        return rest
    weight = next(iter(given.values()), None)
    trained = next(iter(flags.values()), None)
    if trained is None:
        return rest if weight is None else {**rest, "weight": weight}
    if weight is not None and isinstance(weight, int | float) and (weight > 0) != trained:
        _refuse_both({**flags, **given}, place, state)
        return rest
    return {**rest, "weight": float(trained) if weight is None else weight}


def _refuse_both(given: Mapping[str, Any], place: str, state: RowState) -> None:
    choices = " or ".join(shell_list("data.ignore", [key]) for key in given if key != "weight")
    what = f"{' and '.join(f'`{key}`' for key in given)} contradict each other"
    state.refuse(what, place, dict(given), f"keep one of them: {choices} leaves one out")
