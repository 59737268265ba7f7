"""What figures are made of: curves over steps with phase bands, curves with intervals, error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from siri_megatron.report import style

HEIGHT = 210
Row = dict[str, Any]
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Figure:
    """One plot: `spec` is Vega-Lite without data; `tables` names what it draws."""

    name: str
    section: str
    title: str
    caption: str
    spec: dict[str, Any]
    tables: tuple[str, ...]
    wide: bool = False


@dataclass(frozen=True)
class Series:
    """A column of the table `steps` as a curve."""

    key: str
    label: str
    colour: str
    step: bool = False


def stepped(series: Sequence[Series], axis: str, *, share: bool = False, log: bool = False,
            form: str = "~g") -> dict[str, Any]:
    """Curves over the steps with phase bands; a vertical line follows the pointer and gives the values.

    Args:
        share: the axis shows percent.
        log: a logarithmic axis; values that are not above 0 are not drawn.
        form: d3 format of the axis.
    """
    labels = [one.label for one in series]
    colour = alt.Scale(domain=labels, range=[one.colour for one in series])
    dash = alt.Scale(domain=labels, range=[list(style.DASHES[number]) for number in range(len(series))])
    legend = alt.Legend(**style.STROKES) if len(series) > 1 else None
    y_axis = (alt.Axis(format=".0e", values=[10.0**power for power in range(-12, 6)]) if log else
              alt.Axis(format="%" if share else form, tickCount=5))
    y_scale = alt.Scale(type="log") if log else alt.Scale(zero=True, nice=True)
    base = alt.Chart(alt.NamedData("steps")).encode(x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)))
    layers: list[Any] = [bands()]
    for one in series:
        drawn = base.transform_filter(f"datum.{one.key} > 0") if log else base
        named = drawn.transform_calculate(series=repr(one.label))
        layers.append(named.mark_line(interpolate="step-after" if one.step else "linear").encode(
            y=alt.Y(f"{one.key}:Q", title=axis, axis=y_axis, scale=y_scale),
            color=alt.Color("series:N", scale=colour, legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=dash, legend=legend)))
    form = ".1%" if share else ".3g"
    tips = [alt.Tooltip("step:Q", format=".0f"), alt.Tooltip("phase:N"), alt.Tooltip("cap:Q", format=".0f"),
            *(alt.Tooltip(f"{one.key}:Q", title=one.label, format=form) for one in series if one.key != "cap")]
    return finished(alt.layer(*layers, pointer(base, tips)))


def bands() -> alt.Chart:
    """Compression phases as a shade behind the curves."""
    return alt.Chart(alt.NamedData("phases")).transform_filter("datum.phase == 'compression'").mark_rect(
        opacity=0.09, color=style.GREY).encode(x="start:Q", x2="end:Q")


def pointer(base: alt.Chart, tips: Sequence[alt.Tooltip]) -> alt.Chart:
    """A rule a step that shows itself, and its values, under the pointer."""
    here = alt.selection_point(fields=["step"], on="pointerover", clear="pointerout", nearest=False, empty=False)
    return base.mark_rule(strokeWidth=5, color=style.GREY).encode(
        opacity=alt.condition(here, alt.value(0.35), alt.value(0)), tooltip=list(tips)).add_params(here)


def curves(table: str, key: str, looks: Mapping[str, int], x: alt.X, y: alt.Y, *,
           band: tuple[str, str] | None = None, points: bool = True) -> Any:
    """A curve each value of a column. looks: value -> number of its style; other values are left out."""
    domain = list(looks)
    styles = [style.series_style(number) for number in looks.values()]
    colour = alt.Color(f"{key}:N", scale=alt.Scale(domain=domain, range=[one for one, _ in styles]), sort=domain,
                       legend=alt.Legend(**style.STROKES))
    dash = alt.StrokeDash(f"{key}:N", scale=alt.Scale(domain=domain, range=[dash for _, dash in styles]), sort=domain,
                          legend=alt.Legend(**style.STROKES))
    base = alt.Chart(alt.NamedData(table)).transform_filter(
        alt.FieldOneOfPredicate(field=key, oneOf=domain)).encode(x=x, y=y, color=colour)
    layers = [base.mark_line().encode(strokeDash=dash)]
    if points:
        tips = [f"{key}:N", *(alt.Tooltip(f"{_field(axis)}:Q", format=".3g") for axis in (x, y))]
        layers.append(base.mark_point(size=36).encode(tooltip=tips))
    if band:
        low, high = band
        layers.insert(0, base.mark_area(opacity=0.13).encode(y=alt.Y(f"{low}:Q"), y2=f"{high}:Q"))
    return alt.layer(*layers)


def heat_map(table: str, field: str, title: str, value: str, domain: Sequence[float] | None = None) -> alt.Chart:
    """A rectangle a column of steps and value of a field, coloured by a share."""
    scale = alt.Scale(scheme=style.SURFACE) if domain is None else alt.Scale(scheme=style.SURFACE, domain=list(domain))
    return alt.Chart(alt.NamedData(table)).mark_rect().encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)), x2="end:Q",
        y=alt.Y(f"{field}:O", title=title, sort="descending", scale=alt.Scale(paddingInner=0.06)),
        color=alt.Color(f"{value}:Q", scale=scale, legend=alt.Legend(format=".0%", gradientLength=180, title=None)),
        tooltip=["step:Q", f"{field}:O", alt.Tooltip(f"{value}:Q", format=".1%")])


def _field(axis: alt.X | alt.Y) -> str:
    described: Any = axis.to_dict()
    return str(described["field"])


def interval(base: alt.Chart, low: str, high: str, axis: str) -> alt.Chart:
    """Error bars."""
    rule = base.transform_filter(f"isValid(datum.{low})").mark_rule(opacity=0.45)
    if axis == "y":
        return rule.encode(y=alt.Y(f"{low}:Q"), y2=f"{high}:Q")
    return rule.encode(x=alt.X(f"{low}:Q"), x2=f"{high}:Q")


def finished(chart: Any, height: int = HEIGHT) -> dict[str, Any]:
    """The Vega-Lite spec, checked against its schema, as wide as its place on the page."""
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    for key in ("config", "datasets", "usermeta"):
        spec.pop(key, None)
    return spec
