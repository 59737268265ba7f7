"""The figures of one run, as Vega-Lite specs over named tables (`datasets`), drawn by Altair.

A figure is left out where nothing of it was recorded: `figures` gives those that show something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from siri_megatron.report import style
from siri_megatron.report.marks import HEIGHT, Row, Series, curves, finished, interval, stepped
from siri_megatron.report.read import RunData
from siri_megatron.report.tables import (
    budgets_table,
    checkpoints_table,
    curves_table,
    phases_table,
    stages_table,
    steps_table,
    tiers_table,
)
from siri_megatron.report.timeline import chosen_steps, timeline

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


def tables(run: RunData, step: int | None = None) -> Tables:
    """Every table of a run. step: the one whose timeline is wanted first."""
    phases = phases_table(run.records, run.events)
    return {"steps": steps_table(run.records), "phases": phases, "stages": stages_table(phases),
            "surface": curves_table(run.records), "checkpoints": checkpoints_table(run.evaluations),
            "budgets": budgets_table(run.evaluations), "tiers": tiers_table(run.evaluations),
            "timeline": timeline(run.spans, chosen_steps(run.records, run.spans, step))}


def figures(data: Tables) -> list[Figure]:
    """Those that have something to show, in the order of the page."""
    return [figure for make in MAKERS if (figure := make(data))]


def _lines(data: Tables, name: str, section: str, title: str, caption: str, series: Sequence[Series], axis: str,
           **options: Any) -> Figure | None:
    there = [one for one in series if any(row.get(one.key) is not None for row in data["steps"])]
    if not there:
        return None
    return Figure(name, section, title, caption, stepped(there, axis, **options), ("steps", "phases"))


def lengths(data: Tables) -> Figure | None:
    return _lines(data, "lengths", "learning", "Response length under the moving cap",
                  "The cap is the largest number of response tokens; shaded: compression, where it falls. Where the "
                  "90th percentile touches the cap, the cap cuts answers; where it stays below, the model has become "
                  "shorter by itself.",
                  [Series("cap", "cap", style.GREY, step=True), Series("p90_tokens", "90th percentile", style.ORANGE),
                   Series("mean_tokens", "mean", style.BLUE), Series("p50_tokens", "median", style.GREEN)],
                  "tokens", form="~s")


def accuracy(data: Tables) -> Figure | None:
    return _lines(data, "accuracy", "learning", "Accuracy of the training rollouts",
                  "Share of samples that are right within the cap of their step, and of those that end within it. The "
                  "gap between the two is what the cap costs.",
                  [Series("accuracy", "all samples", style.BLUE),
                   Series("accuracy_untruncated", "samples that end within the cap", style.ORANGE)], "right", share=True)


def truncation(data: Tables) -> Figure | None:
    return _lines(data, "truncation", "learning", "Truncation and groups without a signal",
                  "Truncated: no stop token within the cap. A group whose answers are all right or all wrong gives no "
                  "gradient; what is left between the two lines and 100% teaches.",
                  [Series("truncated", "truncated samples", style.ORANGE),
                   Series("all_wrong_groups", "all-wrong groups", style.PURPLE),
                   Series("all_right_groups", "all-right groups", style.GREEN)], "share", share=True)


def entropy(data: Tables) -> Figure | None:
    return _lines(data, "entropy", "learning", "Entropy of the policy",
                  "Mean entropy at the response tokens. It usually falls in compression and recovers in expansion; "
                  "near zero the policy no longer explores.", [Series("entropy", "entropy", style.BLUE)], "nats a token")


def surface(data: Tables) -> Figure | None:
    """J(B) over training."""
    if not data["surface"]:
        return None
    chart = alt.Chart(alt.NamedData("surface")).mark_rect().encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)), x2="end:Q",
        y=alt.Y("budget:O", title="budget B, tokens", sort="descending", scale=alt.Scale(paddingInner=0.06)),
        color=alt.Color("value:Q", scale=alt.Scale(scheme=style.SURFACE), legend=alt.Legend(
            format=".0%", gradientLength=180, title=None)),
        tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("budget:O"), alt.Tooltip("value:Q", format=".1%", title="J(B)")])
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
                   alt.Y("accuracy:Q", title="right", axis=alt.Axis(format="%")), band=("low", "high"))
    return Figure("budgets", "budget", "J(B) on held-out problems, by checkpoint",
                  "Accuracy when answers are cut at B tokens, with 95% intervals (Wilson). A curve that is high on the "
                  "left answers briefly.", finished(chart), ("budgets",))


def pareto(data: Tables) -> Figure | None:
    """Accuracy against tokens."""
    if not data["checkpoints"]:
        return None
    base = alt.Chart(alt.NamedData("checkpoints")).encode(
        x=alt.X("tokens:Q", title="mean response tokens", scale=alt.Scale(zero=False, padding=24)),
        y=alt.Y("accuracy:Q", title="right", axis=alt.Axis(format="%", tickCount=6), scale=alt.Scale(zero=False)))
    kinds = [kind for kind in style.KINDS if any(row["kind"] == kind for row in data["checkpoints"])]
    points = base.mark_point(size=110, opacity=1).encode(
        color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[style.KINDS[kind][0] for kind in kinds])),
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=[style.KINDS[kind][1] for kind in kinds])),
        tooltip=["tag:N", "name:N", alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("tokens:Q", format=",.1f"),
                 alt.Tooltip("truncated:Q", format=".1%")])
    chart = (base.mark_line(color=style.GREY, strokeDash=[3, 3], strokeWidth=1).encode(order="order:O")
             + interval(base, "accuracy_low", "accuracy_high", "y") + interval(base, "tokens_low", "tokens_high", "x")
             + points + _label(base, "SIRI-low", -13) + _label(base, "SIRI-high", 19) + _label(base, "start", -13))
    return Figure("pareto", "budget", "Accuracy against answer length, all checkpoints",
                  "Up and to the left is better. The dashed line follows training; SIRI-low is the last end of a "
                  "compression, SIRI-high the last end of an expansion. Bars: 95% intervals over problems.",
                  finished(chart, height=300), ("checkpoints",))


def _label(base: alt.Chart, name: str, dy: int) -> alt.Chart:
    """The name of a checkpoint, above it (dy < 0) or below."""
    named = base.transform_filter(f"datum.name == '{name}' || (!datum.name && datum.kind == '{name}')")
    return named.mark_text(dy=dy, fontWeight=600, text=name)


def tiers(data: Tables) -> Figure | None:
    """Accuracy of each tier."""
    names = sorted({row["tier"] for row in data["tiers"]})
    if len(names) < 2:
        return None
    tags = list(dict.fromkeys(row["tag"] for row in data["tiers"]))
    chart = alt.Chart(alt.NamedData("tiers")).mark_rect().encode(
        x=alt.X("tag:N", sort=tags, title=None, axis=alt.Axis(labelAngle=-35, labelOverlap="greedy"),
                scale=alt.Scale(paddingInner=0.04)),
        y=alt.Y("tier:N", sort="descending", title="tier", scale=alt.Scale(paddingInner=0.06)),
        color=alt.Color("accuracy:Q", scale=alt.Scale(scheme=style.SURFACE, domain=[0, 1]),
                        legend=alt.Legend(format=".0%", gradientLength=180, title=None)),
        tooltip=["tag:N", "tier:N", alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("tokens:Q", format=",.1f"),
                 "problems:Q"])
    return Figure("tiers", "budget", "Accuracy by tier of difficulty, on held-out problems",
                  "Brighter is more accurate. A tier that darkens from left to right was lost to the budget.",
                  finished(chart, height=max(HEIGHT, 22 * len(names))), ("tiers",))


def gradient(data: Tables) -> Figure | None:
    merged = any(row["first_step"] != row["last_step"] for row in data["steps"])
    peak = [Series("grad_norm_peak", "highest of the steps of a point", style.ORANGE)] if merged else []
    return _lines(data, "gradient", "health", "Gradient norm before clipping",
                  "Mean over the optimizer steps of a step. Peaks far above the usual height are where training can "
                  "break; clipping bounds what they do.", [*peak, Series("grad_norm", "mean", style.BLUE)], "norm")


def mismatch(data: Tables) -> Figure | None:
    return _lines(data, "mismatch", "health", "Mismatch of learner and engines",
                  "|log-probability by the learner - by the engine| of the same tokens under the same weights, on a log "
                  "scale. About 1e-6 in fp32, 0.01 in bf16; growth means that the two have drifted apart.",
                  [Series("mismatch_max_abs", "largest", style.ORANGE), Series("mismatch_mean_abs", "mean", style.BLUE)],
                  "nats", log=True)


def updates(data: Tables) -> Figure | None:
    return _lines(data, "updates", "health", "How far updates go",
                  "Share of response tokens whose probability ratio is clipped, and the effective sample size of the "
                  "weights between sampling and training policy (100%: they agree).",
                  [Series("clip_fraction", "clipped tokens", style.ORANGE),
                   Series("ess", "effective sample size", style.BLUE)], "share", share=True)


def speed(data: Tables) -> Figure | None:
    return _lines(data, "speed", "speed", "Tokens a second",
                  "Response tokens over the time spent waiting for rollouts, and tokens trained over the time of "
                  "training. Short caps make small batches, so both usually fall in compression.",
                  [Series("generation_tokens_per_s", "generation", style.BLUE),
                   Series("training_tokens_per_s", "training", style.ORANGE)], "tokens/s", form="~s")


def stages(data: Tables) -> Figure | None:
    """Stage split of each phase."""
    present = [stage for stage in style.STAGES if any(row["stage"] == stage and row["seconds"] for row in data["stages"])]
    if not present:
        return None
    names = [phase["name"] for phase in data["phases"]]
    short = len(names) <= 12
    axis = alt.Axis(labelExpr=f"{json.dumps(names)}[datum.value]", labelAngle=-25) if short else alt.Axis(labels=False)
    chart = alt.Chart(alt.NamedData("stages")).transform_filter("datum.seconds > 0").mark_bar().encode(
        x=alt.X("number:O", title=None if short else "phase, in order", axis=axis),
        y=alt.Y("seconds:Q", title="seconds"),
        color=alt.Color("stage:N", sort=present, legend=alt.Legend(columns=5), scale=alt.Scale(
            domain=present, range=[style.STAGES[stage] for stage in present])),
        order="order:O", tooltip=["name:N", "stage:N", alt.Tooltip("seconds:Q", format=",.1f"),
                                  alt.Tooltip("share:Q", format=".1%")])
    return Figure("stages", "speed", "Where the time of each phase went",
                  "Seconds of every stage, phase by phase, on the first learner; the table below has the numbers.",
                  finished(chart), ("stages",))


def fill(data: Tables) -> Figure | None:
    return _lines(data, "fill", "batches", "Fill of the micro-batches",
                  "Fill: real tokens over tokens run through the model; the rest is padding. Occupancy: real tokens "
                  "over what the micro-batches could hold at this cap; low is harmless when few rows carry a signal.",
                  [Series("fill", "fill", style.BLUE), Series("occupancy", "occupancy", style.ORANGE)], "share",
                  share=True)


def shapes(data: Tables) -> Figure | None:
    return _lines(data, "shapes", "batches", "Micro-batches and their shapes",
                  "Micro-batches of a step, distinct shapes among them, and shapes that no step had before: on a GPU "
                  "each of those costs a warm-up.",
                  [Series("micro_batches", "micro-batches", style.BLUE), Series("shapes", "shapes", style.GREEN),
                   Series("new_shapes", "new shapes", style.ORANGE)], "number a step", form="~s")


def timelines(data: Tables) -> Figure | None:
    """What each process did in a step."""
    rows = data["timeline"]
    if not rows:
        return None
    labels = list(dict.fromkeys(row["label"] for row in rows))
    present = [stage for stage in style.STAGES if any(row["stage"] == stage for row in rows)]
    lanes = list(dict.fromkeys(row["process"] for row in sorted(rows, key=lambda row: row["lane"])))
    chosen = alt.param(name="shown", value=labels[0], bind=alt.binding_select(options=labels, name="show "))
    chart = alt.Chart(alt.NamedData("timeline")).transform_filter("datum.label == shown").mark_bar(
        height=13, cornerRadius=1).encode(
        x=alt.X("start:Q", title="seconds since the step began"), x2="end:Q",
        y=alt.Y("process:N", sort=lanes, title=None, scale=alt.Scale(domain=lanes)),
        color=alt.Color("stage:N", sort=present, legend=alt.Legend(columns=6), scale=alt.Scale(
            domain=present, range=[style.STAGES[stage] for stage in present])),
        tooltip=["process:N", "stage:N", alt.Tooltip("start:Q", format=".3f"), alt.Tooltip("end:Q", format=".3f"),
                 "detail:N"]).add_params(chosen)
    return Figure("timeline", "timeline", "One step, process by process",
                  "What each process was doing. Gaps are waiting; work at the end of a phase (commit, export, "
                  "evaluation) stands before the step that follows it. trace.json has all steps, for "
                  "ui.perfetto.dev or chrome://tracing.",
                  finished(chart, height=24 * len(lanes) + 20), ("timeline",), wide=True)


MAKERS: tuple[Callable[[Tables], Figure | None], ...] = (
    lengths, accuracy, truncation, entropy, pareto, budgets, surface, tiers, gradient, mismatch, updates, speed, stages,
    fill, shapes, timelines)
