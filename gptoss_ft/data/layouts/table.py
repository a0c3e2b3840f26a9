"""All layouts of whole rows, the first that fits counts."""

from __future__ import annotations

from gptoss_ft.data.layouts import apis, exports, spans, traces
from gptoss_ft.data.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    *exports.LAYOUTS,
    *apis.LAYOUTS,
    *traces.LAYOUTS,
    *spans.LAYOUTS,
)
