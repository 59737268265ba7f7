"""The figures of one run, as Vega-Lite specs over named tables (`datasets`), drawn by Altair.

A figure is left out where nothing of it was recorded: `figures` gives those that show something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from siri_megatron.report import style
from siri_megatron.report.checkpoint_figures import budgets, pareto, surface, tiers
from siri_megatron.report.marks import Figure, Series, Tables, finished, heat_map, stepped
from siri_megatron.report.read import RunData
from siri_megatron.report.tables import (
    budgets_table,
    checkpoints_table,
    curves_table,
    phases_table,
    stages_table,
    steps_table,
    tiers_table,
    widths_table,
)
from siri_megatron.report.timeline import chosen_steps, timeline


def tables(run: RunData, step: int | None = None) -> Tables:
    """Every table of a run. step: the one whose timeline is wanted first."""
    phases = phases_table(run.records, run.events)
    return {"steps": steps_table(run.records), "phases": phases, "stages": stages_table(phases),
            "surface": curves_table(run.records), "widths": widths_table(run.records),
            "checkpoints": checkpoints_table(run.evaluations),
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
                   Series("accuracy_untruncated", "samples that end within the cap", style.ORANGE)], "accuracy",
                  share=True)


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
                  "near zero the policy no longer explores.", [Series("entropy", "entropy", style.BLUE)],
                  "nats a token")


def gradient(data: Tables) -> Figure | None:
    merged = any(row["first_step"] != row["last_step"] for row in data["steps"])
    peak = [Series("grad_norm_peak", "highest of the steps of a point", style.ORANGE)] if merged else []
    return _lines(data, "gradient", "health", "Gradient norm before clipping",
                  "Mean over the optimizer steps of a step. Peaks far above the usual height are where training can "
                  "break; clipping bounds what they do.", [*peak, Series("grad_norm", "mean", style.BLUE)], "norm")


def mismatch(data: Tables) -> Figure | None:
    return _lines(data, "mismatch", "health", "Mismatch of learner and engines",
                  "|log-probability by the learner - by the engine| of the same tokens under the same weights, on a "
                  "log scale. About 1e-6 in fp32, 0.01 in bf16; growth means that the two have drifted apart.",
                  [Series("mismatch_max_abs", "largest", style.ORANGE),
                   Series("mismatch_mean_abs", "mean", style.BLUE)],
                  "nats", log=True)


def updates(data: Tables) -> Figure | None:
    return _lines(data, "updates", "health", "How far updates go",
                  "Share of response tokens whose probability ratio is clipped, and the effective sample size of the "
                  "weights between sampling and training policy (100%: they agree).",
                  [Series("clip_fraction", "clipped tokens", style.ORANGE),
                   Series("ess", "effective sample size", style.BLUE)], "share", share=True)


def staleness(data: Tables) -> Figure | None:
    return _lines(data, "staleness", "health", "Age of the sampled tokens",
                  "With a lag, engines sample under earlier weights than those that train: the mean and the highest "
                  "age of the step's tokens, in weight versions. The highest never exceeds rollout.lag.",
                  [Series("staleness_max", "highest", style.ORANGE), Series("staleness_mean", "mean", style.BLUE)],
                  "weight versions")


def refills(data: Tables) -> Figure | None:
    return _lines(data, "refills", "learning", "Dynamic sampling",
                  "Groups sampled beyond the step's own prompts to replace those without a signal, and groups with a "
                  "signal that were more than the step trains on.",
                  [Series("refill_groups", "refills", style.BLUE), Series("surplus_groups", "surplus", style.ORANGE)],
                  "groups")


def speed(data: Tables) -> Figure | None:
    return _lines(data, "speed", "speed", "Tokens a second",
                  "Response tokens over the time spent waiting for rollouts, and tokens trained over the time of "
                  "training. Short caps make small batches, so both usually fall in compression.",
                  [Series("generation_tokens_per_s", "generation", style.BLUE),
                   Series("training_tokens_per_s", "training", style.ORANGE)], "tokens/s", form="~s")


def stages(data: Tables) -> Figure | None:
    """Stage split of each phase."""
    spent = {row["stage"] for row in data["stages"] if row["seconds"]}
    present = [stage for stage in style.STAGES if stage in spent]
    if not present:
        return None
    names = [phase["name"] for phase in data["phases"]]
    short = len(names) <= 12
    axis = alt.Axis(labelExpr=f"{json.dumps(names)}[datum.value]", labelAngle=-25) if short else alt.Axis(labels=False)
    chart = alt.Chart(alt.NamedData("stages")).transform_filter("datum.seconds > 0").mark_bar().encode(
        x=alt.X("number:O", title=None if short else "phase, in order", axis=axis),
        y=alt.Y("seconds:Q", title="seconds"),
        color=alt.Color("stage:N", sort=present, scale=alt.Scale(
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


def widths(data: Tables) -> Figure | None:
    """Bucket shapes over training."""
    if not data["widths"]:
        return None
    chart = heat_map("widths", "width", "padded width, tokens", "share", domain=[0, 1])
    return Figure("widths", "batches", "Bucket widths over training",
                  "Which share of a step's micro-batches had which padded width: the buckets follow the cap, and the "
                  "lengths.", finished(chart), ("widths",))


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
        x=alt.X("start:Q", title="seconds since the step began", axis=alt.Axis(tickCount=12)), x2="end:Q",
        y=alt.Y("process:N", sort=lanes, title=None, scale=alt.Scale(domain=lanes)),
        color=alt.Color("stage:N", sort=present, scale=alt.Scale(
            domain=present, range=[style.STAGES[stage] for stage in present])),
        tooltip=["process:N", "stage:N", alt.Tooltip("start:Q", format=".3f"), alt.Tooltip("end:Q", format=".3f"),
                 "detail:N"]).add_params(chosen)
    return Figure("timeline", "timeline", "One step, process by process",
                  "What each process was doing. Gaps are waiting; work at the end of a phase (commit, export, "
                  "evaluation) stands before the step that follows it. trace.json has all steps, for "
                  "ui.perfetto.dev or chrome://tracing.",
                  finished(chart, height=24 * len(lanes) + 20), ("timeline",), wide=True)


MAKERS: tuple[Callable[[Tables], Figure | None], ...] = (
    lengths, accuracy, truncation, entropy, refills, pareto, budgets, surface, tiers, gradient, mismatch, updates,
    staleness, speed, stages, fill, shapes, widths,
    timelines)
