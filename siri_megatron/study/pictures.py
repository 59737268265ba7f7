"""The pictures of a study, drawn by Altair (Vega-Lite) and vl-convert.

Every arm has a colour, a dash and a shape of its own, of the report's (colour-blind safe) set; a picture is dark on a
white ground of its own, so that it can be read on a light and on a dark page. What is drawn are means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from siri_megatron.files import write_text
from siri_megatron.report import style
from siri_megatron.report.plots import FONT
from siri_megatron.study import curves
from siri_megatron.study.curves import Rows
from siri_megatron.study.data import CLOSED, FIXED, MONOTONE, SIRI, Study, natural

LOOKS = {SIRI: (style.BLUE, [1, 0], "circle"), FIXED: ("#5b6270", [6, 3], "square"),
         MONOTONE: (style.ORANGE, [2, 2], "triangle-down"), CLOSED: (style.GREEN, [8, 3, 2, 3], "diamond")}
"""Colour, dash and shape of the arms that decisions are about."""
MOST_BANDS = 5
"""Curves of more arms are drawn without bands."""


@dataclass(frozen=True)
class Picture:
    """A file's name, what it shows, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Study, Sequence[str]], tuple[Any, dict[str, Rows]]]


@dataclass(frozen=True)
class Panel:
    """Curves of one figure of a table, with bands from KEY_low to KEY_high."""

    key: str
    title: str
    share: bool = False
    zero: bool = False
    """The axis begins at 0."""


def write_pictures(study: Study, directory: Path, names: Sequence[str], pictures: Sequence[Picture]) -> list[Path]:
    """Write pictures of these arms as SVG; returns their paths."""
    paths = [directory / picture.name for picture in pictures]
    for picture, path in zip(pictures, paths, strict=True):
        write_text(path, svg(spec(picture, study, names)))
    return paths


def svg(described: dict[str, Any]) -> str:
    """Drawn. Vega-Lite gives the marks of a legend the dashes of the curves, told not to or not: they are taken out."""
    import vl_convert

    drawn = vl_convert.vegalite_to_vega(described)
    for legend in drawn.get("legends", []):
        if "shape" in legend:
            legend.pop("strokeDash", None)
    return str(vl_convert.vega_to_svg(drawn))


def spec(picture: Picture, study: Study, names: Sequence[str]) -> dict[str, Any]:
    """The Vega-Lite spec of a picture, with its data."""
    chart, data = picture.draw(study, names)
    described: dict[str, Any] = chart.resolve_scale(color="shared", strokeDash="shared", shape="shared").to_dict()
    config = style.config(style.DARK_INK, style.PAPER, FONT)
    config["legend"]["offset"] = 12
    return {**described, "datasets": data, "config": config, "padding": 12}


def look(names: Sequence[str]) -> list[tuple[str, list[int], str]]:
    """Colour, dash and shape of each arm; that of the others by their place."""
    shapes = style.SHAPES
    return [LOOKS.get(name) or (*style.series_style(number), shapes[(number + number // len(shapes)) % len(shapes)])
            for number, name in enumerate(names)]


@dataclass(frozen=True)
class Channels:
    """How arms are told apart."""

    colour: alt.Color
    dash: alt.StrokeDash
    shape: alt.Shape


def channels(names: Sequence[str], *, points: bool) -> Channels:
    """With one legend: of the shapes if points are drawn, of the dashes if only curves are."""
    colours, dashes, shapes = zip(*look(names), strict=True)
    domain = list(names)
    strokes = alt.Legend(**style.STROKES)
    marks = alt.Legend(symbolOpacity=1)
    return Channels(
        alt.Color("arm:N", sort=domain, legend=marks if points else strokes,
                  scale=alt.Scale(domain=domain, range=colours)),
        alt.StrokeDash("arm:N", sort=domain, legend=None if points else strokes,
                       scale=alt.Scale(domain=domain, range=dashes)),
        alt.Shape("arm:N", sort=domain, legend=marks if points else None,
                  scale=alt.Scale(domain=domain, range=shapes)))


def panel(table: str, of: Panel, x: alt.X, names: Sequence[str], width: int, height: int, *, points: bool) -> Any:
    """Curves with bands."""
    arm = channels(names, points=points)
    base = alt.Chart(alt.NamedData(table)).encode(x=x, color=arm.colour)
    axis = alt.Axis(format="~%" if of.share else "~s", tickCount=5, minExtent=38)
    y = alt.Y(f"{of.key}:Q", title=None, axis=axis, scale=alt.Scale(zero=of.zero, nice=True))
    band = base.mark_area(opacity=0.12).encode(y=alt.Y(f"{of.key}_low:Q"), y2=f"{of.key}_high:Q")
    layers = [*([band] if len(names) <= MOST_BANDS else []),
              base.mark_line(strokeWidth=1.9).encode(y=y, strokeDash=arm.dash)]
    if points:
        layers.append(base.mark_point(size=42, opacity=1).encode(y=y, shape=arm.shape))
    return alt.layer(*layers).properties(width=width, height=height, title=of.title)


def steps_axis(study: Study) -> alt.X:
    """With a mark at the evaluated steps, or at some of them."""
    evaluated = curves.common_steps(study)
    shown = evaluated[::-(-len(evaluated) // 10)]
    return alt.X("step:Q", title="step", axis=alt.Axis(values=shown),
                 scale=alt.Scale(domain=[0, study.last_step], nice=False))


TRAINING = (Panel("cap", "Cap, tokens", zero=True), Panel("accuracy", "Right within the cap", share=True),
            Panel("mean_tokens", "Tokens per answer", zero=True), Panel("truncated", "Truncated answers", True, True))
HELD_OUT = (Panel("accuracy", "Accuracy on held-out problems", share=True), Panel("tokens", "Tokens per answer"))


def training(study: Study, names: Sequence[str]) -> tuple[Any, dict[str, Rows]]:
    drawn = [panel("training", one, steps_axis(study), names, 320, 170, points=False) for one in TRAINING]
    return alt.concat(*drawn, columns=2), {"training": curves.training(study, names)}


def held_out(study: Study, names: Sequence[str]) -> tuple[Any, dict[str, Rows]]:
    tokens = alt.X("sampled:Q", title="tokens sampled in training", axis=alt.Axis(format="~s", tickCount=6))
    drawn = [panel("held_out", one, x, names, 320, 190, points=True) for one in HELD_OUT
             for x in (steps_axis(study), tokens)]
    return alt.concat(*drawn, columns=2), {"held_out": curves.held_out(study, names)}


def summary(study: Study, names: Sequence[str]) -> tuple[Any, dict[str, Rows]]:
    drawn = [panel("held_out", one, steps_axis(study), names, 310, 200, points=True) for one in HELD_OUT]
    return alt.hconcat(*drawn, spacing=28), {"held_out": curves.held_out(study, names)}


def pareto(study: Study, names: Sequence[str]) -> tuple[Any, dict[str, Rows]]:
    arm, rows = channels(names, points=True), curves.held_out(study, names)
    base = alt.Chart(alt.NamedData("held_out")).encode(
        x=alt.X("tokens:Q", title="tokens per answer", axis=alt.Axis(tickCount=8),
                scale=alt.Scale(zero=False, padding=24)),
        y=alt.Y("accuracy:Q", title="right", axis=alt.Axis(format="~%", tickCount=6), scale=alt.Scale(zero=False)),
        color=arm.colour)
    end = base.transform_filter("datum.end")
    named = base.transform_filter("datum.end || (datum.name && datum.name != 'start')")
    layers = [base.mark_line(strokeWidth=1.3).encode(order="step:Q", strokeDash=arm.dash),
              end.mark_rule(strokeWidth=1.6).encode(y="accuracy_ci_low:Q", y2="accuracy_ci_high:Q"),
              end.mark_rule(strokeWidth=1.6).encode(x="tokens_ci_low:Q", x2="tokens_ci_high:Q"),
              base.mark_point(size=40, opacity=1).encode(shape=arm.shape),
              named.mark_point(size=150, opacity=1).encode(shape=arm.shape),
              *(one for name, dx, dy in (("start", -10, 0), *label_places(rows)) for one in label(base, name, dx, dy))]
    chart = alt.layer(*layers).properties(width=640, height=360,
                                          title="Accuracy against answer length, all checkpoints")
    return chart, {"held_out": rows}


def label_places(rows: Rows) -> list[tuple[str, int, int]]:
    """SIRI-low and SIRI-high: the label of the more accurate one is the upper one."""
    named = sorted((row for row in rows if row["name"].startswith("SIRI")), key=lambda row: row["accuracy"])
    return [(row["name"], -12, dy) for row, dy in zip(named, (14, -14), strict=False)]


def label(base: alt.Chart, name: str, dx: int, dy: int) -> list[alt.Chart]:
    """The name of a checkpoint left of it, on a white rim that keeps it apart from curves."""
    here = base.transform_filter(f"datum.name == '{name}'")
    text: dict[str, Any] = {"text": name, "dx": dx, "dy": dy, "align": "right", "fontWeight": 600}
    return [here.mark_text(**text, **rim).encode(color=alt.value(colour))
            for colour, rim in ((style.PAPER, {"stroke": style.PAPER, "strokeWidth": 4}), (style.DARK_INK, {}))]


def tiers(study: Study, names: Sequence[str]) -> tuple[Any, dict[str, Rows]]:
    rows = curves.tiers(study, names)
    arm = channels(names, points=True)
    base = alt.Chart(alt.NamedData("tiers")).encode(
        x=alt.X("tier:N", title="tier", sort=sorted({row["tier"] for row in rows}, key=natural),
                axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("arm:N", sort=list(names), scale=alt.Scale(paddingOuter=0.5)), color=arm.colour)
    axis = alt.Axis(format="~%", tickCount=6)
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.6).encode(y=alt.Y("low:Q", title="right", axis=axis), y2="high:Q"),
        base.mark_point(size=75, opacity=1).encode(y="accuracy:Q", shape=arm.shape))
    return chart.properties(width=640, height=300, title="Accuracy by tier after the last step"), {"tiers": rows}


INTERVALS = "95% t intervals over seeds (of fewer than five seeds: lowest and highest)"
PICTURES = (
    Picture("held-out.svg", "Held-out problems, answered under the largest budget: accuracy and tokens per answer over "
            "steps, and over the tokens sampled to get there. Mean over seeds, bands (of a few arms): ± one "
            "standard deviation. An arm evaluated at steps of its own is drawn at those of the others, on the line "
            "between its evaluations.", held_out),
    Picture("pareto.svg", "All checkpoints, held-out problems. Lines follow training from the common start; bars at "
            f"the ends: {INTERVALS}. Up and to the left is better.", pareto),
    Picture("tiers.svg", f"Held-out accuracy by tier after the last step; bars: {INTERVALS}.", tiers),
    Picture("training.svg", "Training rollouts: cap, accuracy within it, answer length, and truncated answers. Mean "
            "over seeds, bands (of a few arms): ± one standard deviation.", training))
SUMMARY = Picture("study.svg", "Accuracy and tokens per answer on held-out problems. Mean over seeds, bands: ± one "
                  "standard deviation.", summary)
