"""All ways of laying out rows, those first whose columns may look like another's."""

from __future__ import annotations

from gptoss_ft.data.layouts import (
    apis,
    called,
    choices,
    exports,
    pairs,
    rankings,
    ratings,
    spans,
    traces,
)
from gptoss_ft.data.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    *called.LAYOUTS,
    *choices.LAYOUTS,
    *rankings.LAYOUTS,
    *pairs.LAYOUTS,
    *ratings.LAYOUTS,
    *exports.LAYOUTS,
    *apis.LAYOUTS,
    *traces.LAYOUTS,
    *spans.LAYOUTS,
)
