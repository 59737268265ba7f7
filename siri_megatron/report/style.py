"""How figures look: colours, dashes and shapes that are told apart without colour, and the Vega configuration.

The colours are Okabe and Ito's (2008), darkened or lightened so that each has a contrast of 3:1 or more with white and
with the dark page. Every series has a dash or a shape of its own beside its colour.
"""

from __future__ import annotations

from typing import Any, Literal

BLUE, ORANGE, GREEN, PURPLE, GREY, AMBER, SKY, BROWN = (
    "#2b7bba", "#d55e00", "#009e73", "#b5609a", "#80868f", "#b07d00", "#3a9bd0", "#9a6a4f")
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, GREY)
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 2, 1, 2, 1, 2])
SHAPES = ("circle", "triangle-down", "triangle-up", "square", "diamond", "cross")

KINDS = {"start": (GREY, "circle"), "end of compression": (ORANGE, "triangle-down"),
         "end of expansion": (BLUE, "triangle-up"), "other": (PURPLE, "square")}
"""Kind of a checkpoint -> colour and shape."""
STAGES = {"generation": BLUE, "verification": SKY, "planning": PURPLE, "training": ORANGE, "push": GREEN,
          "commit": BROWN, "evaluation": AMBER, "export": "#5d6b2f", "other": GREY, "collecting": SKY,
          "evaluating": AMBER, "engine busy": BLUE}
"""Stage -> colour; the last three are spans of collector and engines."""
SURFACE: Literal["cividis"] = "cividis"
"""Of heat maps: the same to readers with and without colour vision."""

STROKES = {"symbolType": "stroke", "symbolSize": 300, "symbolOpacity": 1}
"""Legend of curves: strokes long enough to show the dash."""
DARK_INK, PAPER = "#1d2129", "#ffffff"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def series_style(number: int) -> tuple[str, list[int]]:
    """Colour and dash of the n-th of several runs; distinct for the first 36."""
    return COLOURS[number % len(COLOURS)], list(DASHES[(number + number // len(COLOURS)) % len(DASHES)])


def config(ink: str = "currentColor", background: str | None = None, font: str = FONT,
           columns: int = 5) -> dict[str, Any]:
    """Vega configuration. ink: of axes and text; a page takes its text colour, so that dark mode is a matter of CSS.
    columns: of legends.
    """
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 500}
    return {
        "background": background, "font": font, "view": {"stroke": None},
        "axis": {**text, "domainColor": ink, "domainOpacity": 0.35, "tickColor": ink, "tickOpacity": 0.35,
                 "gridColor": ink, "gridOpacity": 0.1, "labelOpacity": 0.8, "titleOpacity": 0.8, "titlePadding": 6},
        "axisX": {"grid": False},
        "legend": {**text, "title": None, "orient": "top", "direction": "horizontal", "symbolStrokeWidth": 2,
                   "symbolSize": 90, "labelLimit": 260, "offset": 4, "columnPadding": 14, "columns": columns,
                   "symbolBaseFillColor": ink, "symbolBaseStrokeColor": ink,
                   "layout": {"top": {"direction": "vertical"}}},
        "line": {"strokeWidth": 1.8, "strokeJoin": "round", "invalid": "filter"}, "point": {"filled": True, "size": 60},
        "text": {"color": ink, "fontSize": 11}, "rule": {"color": ink}, "rect": {"strokeWidth": 0},
        "title": {"color": ink, "anchor": "start", "fontSize": 13, "fontWeight": 600, "subtitleColor": ink,
                  "subtitleFontSize": 11, "subtitlePadding": 4, "offset": 10},
    }
