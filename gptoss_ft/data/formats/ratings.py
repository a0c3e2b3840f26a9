"""Ratings of answers: labels of good and bad, scores of pairs, and columns that only rate."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_ft.data.formats.common import RowState, shell_list
from gptoss_ft.data.formats.harmless import fold

# Words for a good and a bad answer in exports and public datasets, folded. Neither "positive" nor
# "yes" is among them: they are classes of texts as often.
_GOOD_TEXT = """
    true 1 1.0 good desirable thumbs_up thumbsup up upvote like liked 👍
"""
GOOD = frozenset(_GOOD_TEXT.split())
_BAD_TEXT = """
    false 0 0.0 bad undesirable thumbs_down thumbsdown down downvote dislike disliked 👎
"""
BAD = frozenset(_BAD_TEXT.split())
LABEL_MEND = (
    "write true for a good answer and false for a bad one; where the column is no rating of the "
    "answer, leave it out with 'data.ignore=[label]'"
)
# Columns in which public datasets keep the scores that chosen and rejected were told apart by; the
# first is what `tied` reads.
SCORE_COLUMNS = tuple(
    pair
    for word in ("score", "rating", "reward", "avg_rating")
    for pair in ((f"{word}_chosen", f"{word}_rejected"), (f"chosen_{word}", f"rejected_{word}"))
)
SCORE_NAMES = frozenset(name for pair in SCORE_COLUMNS for name in pair)
LOWER = "chosen has a lower score than rejected; the row is trained as it says"
NO_NUMBERS = "scores of chosen and rejected that are no numbers, and were not read"
# Columns that rate the one answer of a row, folded. None is harmless: trained as if they were not
# there, bad answers would count as much as good ones.
_RATING_NAMES_TEXT = """
    rating ratings overall_rating average_rating avg_rating user_rating human_rating stars
    reward rewards preference preferred is_preferred feedback user_feedback human_feedback
    thumbs thumb thumbs_up thumbs_down thumb_up thumb_down like liked dislike disliked label
    kto_tag is_good good is_bad bad is_correct is_accepted accepted is_helpful is_harmless
    is_safe is_desirable desirable verdict judgement judgment evaluation grade_given helpfulness
    correctness coherence complexity verbosity honesty truthfulness instruction_following
    harmlessness overall_score fine_grained_score
"""
# How an attempt ended: no rating to train by, but a failed one is not to be learnt from unawares.
OUTCOMES = frozenset(("resolved", "solved", "success", "succeeded", "successful", "passed"))
RATING_NAMES = frozenset(_RATING_NAMES_TEXT.split()) | OUTCOMES


def read_label(raw: Any) -> bool | None:
    """Reads whether an answer is a good one; None for anything that does not say so plainly."""
    if isinstance(raw, bool):
        return raw
    if not isinstance(raw, str | int | float):
        return None
    word = fold(str(raw))
    return True if word in GOOD else False if word in BAD else None


def read_number(raw: Any) -> float | None:
    """Reads a finite number, also one written as text; None for all else."""
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return None
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def tied(row: Mapping[str, Any], state: RowState) -> bool:
    """Returns whether the row scores chosen and rejected equally; notes a lower score of chosen."""
    given = row.get("score_chosen"), row.get("score_rejected")
    if None in given:
        return False
    chosen, rejected = map(read_number, given)
    if chosen is None or rejected is None:
        state.note(NO_NUMBERS)
        return False
    if chosen < rejected:
        state.note(LOWER)
    return chosen == rejected


def rating_advice(name: str, refused: Sequence[str]) -> str:
    """Says what to do about a column that rates the answer of a row which is to be trained.

    Args:
        name: of the column.
        refused: all columns of the row that nothing reads, this one among them.
    """
    others = [other for other in refused if other != name]
    label = shlex.quote(f"data.columns={{label: {name}}}")
    beside = f" {shell_list('data.ignore', others)}" if others else ""
    return (
        f"`{name}` rates the answer: {shell_list('data.ignore', refused)} trains all answers "
        f"alike, the bad ones too; where it says true or false, 0 or 1, good or bad, train them as "
        f"such with dpo=kto_20b {label}{beside}"
    )
