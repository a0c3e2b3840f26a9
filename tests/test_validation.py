"""Checks that settings share: ranges, choices, misspellings, prefixes of keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from gptoss_ft.validation import (
    Range,
    choice_field,
    close_match,
    did_you_mean,
    dotted,
    field_problems,
    listed,
    number_field,
    number_problem,
    unknown_choice,
)


@dataclass
class Options:
    color: str = choice_field("red", ("red", "green"))
    kind: str = choice_field("", ("", "round"))
    share: float = number_field(0.5, least=0, most=1)
    count: int = number_field(1, least=1, mend="write how many")
    free: str = ""


@pytest.mark.parametrize(
    ("allowed", "value", "what"),
    [
        (Range(least=1), 1, None),
        (Range(least=1), 0, "must be at least 1"),
        (Range(least=0), -1, "must not be negative"),
        (Range(above=0), 0, "must be above 0"),
        (Range(least=0, most=1), 1.5, "must be between 0 and 1"),
        (Range(least=0, below=1), 1, "must be at least 0 and below 1"),
        (Range(above=0), math.nan, "must be a finite number"),
        (Range(above=0), math.inf, "must be a finite number"),
        (Range(above=0, finite=False), math.inf, None),
        (Range(above=0, finite=False), math.nan, "must be above 0"),
        (Range(), "fast", "must be a number"),
        (Range(), True, "must be a number"),
    ],
)
def test_ranges(allowed: Range, value: object, what: str | None) -> None:
    problem = number_problem("key", value, allowed)
    assert (problem and problem.what) == what


def test_all_fields_are_checked_under_their_prefix() -> None:
    assert field_problems(Options()) == []
    found = field_problems(Options("gren", "flat", 2, 0, "anything"), "part")
    assert [problem.where for problem in found] == [
        "part.color",
        "part.kind",
        "part.share",
        "part.count",
    ]
    assert found[0].mend == "did you mean green? write red or green"
    assert found[1].mend == "write round"
    assert found[3].mend == "write how many"


def test_misspellings() -> None:
    assert close_match("gren", ["red", "green"]) == "green"
    assert close_match("violet", ["red", "green"]) is None
    assert did_you_mean("gren", ["green"], lambda near: f"c={near}") == "did you mean c=green? "
    assert did_you_mean("violet", ["green"]) == ""
    problem = unknown_choice("unknown color", "c", "violet", ("red", "green", "blue"))
    assert (problem.found, problem.mend) == ("'violet'", "write one of red, green, blue")


def test_keys_and_lists() -> None:
    assert dotted("", "a") == "a" and dotted("a.b", "c") == "a.b.c"
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a or b",
        "one of a, b, c",
    ]
