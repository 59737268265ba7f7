"""Figures about accuracy and budget: J(B), the checkpoints, the tiers of difficulty."""

from __future__ import annotations

import altair as alt

from siri_megatron.report import style
from siri_megatron.report.marks import HEIGHT, Figure, Row, Tables, curves, finished, heat_map, interval


def surface(data: Tables) -> Figure | None:
    """J(B) over training."""
    if not data["surface"]:
        return None
    chart = heat_map("surface", "budget", "budget B, tokens", "value")
    return Figure("surface", "budget", "J(B): accuracy if every answer were cut at B tokens, over training",
                  "Every rollout is scored at each budget at no cost. Brighter is more accurate. A bright band that "
                  "moves down means that the same accuracy needs fewer tokens; bands above the step's cap are equal to "
                  "it.", finished(chart), ("surface",))


def budgets(data: Tables) -> Figure | None:
    """J(B) of the checkpoints."""
    if not data["budgets"]:
        return None
    tags = list(dict.fromkeys(row["tag"] for row in data["budgets"]))
    shown = tags if len(tags) <= 4 else [tags[0], tags[len(tags) // 2], *tags[-2:]]
    looks = dict(zip(shown, range(len(shown)), strict=True))
    chart = curves("budgets", "tag", looks, alt.X("budget:Q", title="budget B, tokens", scale=alt.Scale(zero=False)),
                   alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%")), band=("low", "high"))
    return Figure("budgets", "budget", "J(B) on held-out problems, by checkpoint",
                  "Accuracy when answers are cut at B tokens, with 95% intervals (Wilson). A curve that is high on the "
                  "left answers briefly.", finished(chart, height=300), ("budgets",))


def pareto(data: Tables) -> Figure | None:
    """Accuracy against tokens."""
    if not data["checkpoints"]:
        return None
    base = alt.Chart(alt.NamedData("checkpoints")).encode(
        x=alt.X("tokens:Q", title="mean response tokens", scale=alt.Scale(zero=False, padding=60)),
        y=alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%", tickCount=6),
                scale=alt.Scale(zero=False, nice=False, padding=24)))
    kinds = [kind for kind in style.KINDS if any(row["kind"] == kind for row in data["checkpoints"])]
    points = base.mark_point(size=110, opacity=1).encode(
        color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[style.KINDS[kind][0] for kind in kinds])),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=[style.KINDS[kind][1] for kind in kinds])),
        tooltip=["tag:N", "name:N", alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("tokens:Q", format=",.1f"),
                 alt.Tooltip("truncated:Q", format=".1%")])
    rows = data["checkpoints"]
    layers = [base.mark_line(color=style.GREY, strokeDash=[3, 3], strokeWidth=1).encode(order="order:O"),
              *(interval(base, f"{name}_low", f"{name}_high", axis)
                for name, axis in (("accuracy", "y"), ("tokens", "x"))
                if any(row[f"{name}_low"] is not None for row in rows)), points,
              *(_label(base, *place) for place in _label_places(rows))]
    return Figure("pareto", "budget", "Accuracy against answer length, all checkpoints",
                  "Up and to the left is better. The dashed line follows training; SIRI-low is the last end of a "
                  "compression, SIRI-high the last end of an expansion. Bars: 95% intervals over problems.",
                  finished(alt.layer(*layers), height=300), ("checkpoints",))


def _label_places(rows: list[Row]) -> list[tuple[str, int, int]]:
    """(name, dx, dy): SIRI-low and SIRI-high left of their points, the more accurate one above, the start right."""
    named = sorted((row for row in rows if row["name"]), key=lambda row: -(row["accuracy"] or 0.0))
    start = [("start", 6, -13)] if any(row["kind"] == "start" for row in rows) else []
    return [*((row["name"], -6, dy) for row, dy in zip(named, (-13, 15), strict=False)), *start]


def _label(base: alt.Chart, name: str, dx: int, dy: int) -> alt.Chart:
    """The name of a checkpoint, left (dx < 0) or right of it, above (dy < 0) or below: clear of its intervals."""
    named = base.transform_filter(f"datum.name == '{name}' || (!datum.name && datum.kind == '{name}')")
    return named.mark_text(dx=dx, dy=dy, align="right" if dx < 0 else "left", fontWeight=600, text=name)


def tiers(data: Tables) -> Figure | None:
    """Accuracy of each tier."""
    names = sorted({row["tier"] for row in data["tiers"]})
    if len(names) < 2:
        return None
    tags = list(dict.fromkeys(row["tag"] for row in data["tiers"]))
    axis = alt.Axis(labelAngle=-35, labelOverlap=False if len(tags) <= 16 else "greedy")
    chart = alt.Chart(alt.NamedData("tiers")).mark_rect().encode(
        x=alt.X("tag:N", sort=tags, title=None, axis=axis, scale=alt.Scale(paddingInner=0.04)),
        y=alt.Y("tier:N", sort="descending", title="tier", scale=alt.Scale(paddingInner=0.06)),
        color=alt.Color("accuracy:Q", scale=alt.Scale(scheme=style.SURFACE, domain=[0, 1]),
                        legend=alt.Legend(format=".0%", gradientLength=180, title=None)),
        tooltip=["tag:N", "tier:N", alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("tokens:Q", format=",.1f"),
                 "problems:Q"])
    return Figure("tiers", "budget", "Accuracy by tier of difficulty, on held-out problems",
                  "Brighter is more accurate. A tier that darkens from left to right was lost to the budget.",
                  finished(chart, height=max(HEIGHT, 22 * len(names))), ("tiers",))
