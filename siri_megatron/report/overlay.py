"""The page that compares several runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import altair as alt

from siri_megatron.observe.render import duration, number, percent
from siri_megatron.report import style
from siri_megatron.report.compare import (
    Difference,
    arms,
    by_question,
    by_seed,
    last_evaluation,
    settings_apart,
)
from siri_megatron.report.content import environment_tables, interval, large, state
from siri_megatron.report.marks import Figure, Tables, curves, finished
from siri_megatron.report.marks import interval as bars
from siri_megatron.report.page import Page, Section, Table
from siri_megatron.report.read import RunData
from siri_megatron.report.tables import budgets_table, checkpoints_table, mean, steps_table
from siri_megatron.report.text import fit

CURVES = (
    ("accuracy", "Accuracy of the training rollouts", "accuracy", "%", "Right within the cap of the step."),
    ("mean_tokens", "Mean response length", "tokens", "~s", "Of the training rollouts."),
    ("cap", "Cap", "tokens", "~s", "The largest number of response tokens of the step."),
    ("truncated", "Truncated samples", "share", "%", "No stop token within the cap."),
    ("entropy", "Entropy of the policy", "nats a token", "~g", "Mean entropy at the response tokens."),
    ("grad_norm", "Gradient norm before clipping", "norm", "~g", "Mean over the optimizer steps."))


def comparison_page(runs: Sequence[RunData]) -> Page:
    """Tables of what differs, then the runs' curves over each other."""
    runs = _distinct(runs)
    data = overlay_tables(runs)
    looks = {run.name: number for number, run in enumerate(runs)}
    learning = [figure for figure in (*_curves(data, looks), _by_tokens(data, looks)) if figure]
    held_out = [figure for figure in (_pareto(data, looks), _budgets(data, looks)) if figure]
    sections = [
        Section("result", "Results", "Each run's last evaluation, and its difference to the first run.",
                tables=[result_table(runs), *arm_tables(runs)]),
        Section("budget", "Accuracy and budget", figures=held_out),
        Section("learning", "Learning", figures=learning),
        Section("run", "Runs", tables=[*_settings(runs), *environment_tables(runs),
                                       Table("State", ("run", "state"), [[run.name, state(run)] for run in runs],
                                             texts=(0, 1))])]
    title = f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    shown = [section for section in sections if section.figures or section.tables]
    return Page(fit(title, 300), "Comparison", _lead(runs), (), shown, data)


def _lead(runs: Sequence[RunData]) -> str:
    """Two runs in a sentence, where they were asked the same questions."""
    first, second = (last_evaluation(run) or {} for run in runs[:2])
    accuracy, tokens = (by_question(first, second, key) for key in ("accuracy", "tokens"))
    if len(runs) > 2 or accuracy is None or tokens is None or not first["mean_tokens"]:
        return ""
    share = second["mean_tokens"] / first["mean_tokens"] - 1
    percent_more = f"{share:+.0%}".replace("-", "−")
    return (f"On the same {accuracy.pairs:,} questions {runs[1].name} differs from {runs[0].name} by "
            f"{_points(accuracy)} of accuracy and {_tokens(tokens)} tokens an answer ({percent_more}); in brackets the "
            "95% intervals.")


def _distinct(runs: Sequence[RunData]) -> list[RunData]:
    """Names that occur twice get a number."""
    seen: dict[str, int] = {}
    named = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        named.append(run if seen[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})"))
    return named


def overlay_tables(runs: Sequence[RunData]) -> Tables:
    """The tables of all runs with a column `run`."""
    kept = ("step", *(key for key, *_ in CURVES), "tokens_so_far", "hours_so_far")
    steps = [{"run": run.name, **{key: row.get(key) for key in kept}} for run in runs for row in
             steps_table(run.records)]
    checkpoints = [{"run": run.name, **row} for run in runs for row in checkpoints_table(run.evaluations)]
    budgets = [{"run": run.name, **row} for run in runs if run.evaluations
               for row in budgets_table(run.evaluations[-1:])]
    return {"steps": steps, "checkpoints": checkpoints, "budgets": budgets}


def _curves(data: Tables, looks: Mapping[str, int]) -> list[Figure | None]:
    step = alt.X("step:Q", title="step", scale=alt.Scale(nice=False))
    return [_curve(data, looks, key, title, axis, form, caption, step) for key, title, axis, form, caption in CURVES]


def _curve(data: Tables, looks: Mapping[str, int], key: str, title: str, axis: str, form: str, caption: str,
           x: alt.X) -> Figure | None:
    if not any(row.get(key) is not None for row in data["steps"]):
        return None
    y = alt.Y(f"{key}:Q", title=axis, axis=alt.Axis(format=form, tickCount=5))
    return Figure(key, "learning", title, caption, finished(curves("steps", "run", looks, x, y, points=False)),
                  ("steps",))


def _by_tokens(data: Tables, looks: Mapping[str, int]) -> Figure | None:
    x = alt.X("tokens_so_far:Q", title="response tokens sampled so far", axis=alt.Axis(format="~s"))
    figure = _curve(data, looks, "accuracy", "Accuracy by sampled tokens", "accuracy", "%",
                    "The same curves over the tokens that were sampled to get there: what a run costs.", x)
    return figure and replace(figure, name="accuracy-by-tokens")


def _pareto(data: Tables, looks: Mapping[str, int]) -> Figure | None:
    if not data["checkpoints"]:
        return None
    kinds = [kind for kind in style.KINDS if any(row["kind"] == kind for row in data["checkpoints"])]
    colours = alt.Scale(domain=list(looks), range=[style.series_style(number)[0] for number in looks.values()])
    dashes = alt.Scale(domain=list(looks), range=[style.series_style(number)[1] for number in looks.values()])
    base = alt.Chart(alt.NamedData("checkpoints")).encode(
        x=alt.X("tokens:Q", title="mean response tokens", scale=alt.Scale(zero=False, padding=24)),
        y=alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%", tickCount=6), scale=alt.Scale(zero=False)),
        color=alt.Color("run:N", sort=list(looks), scale=colours, legend=alt.Legend(**style.STROKES)))
    points = base.mark_point(size=80, opacity=1).encode(
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=[style.KINDS[kind][1] for kind in kinds])),
        tooltip=["run:N", "tag:N", "name:N", alt.Tooltip("accuracy:Q", format=".1%"),
                 alt.Tooltip("tokens:Q", format=",.1f")])
    line = base.mark_line(strokeWidth=1).encode(order="order:O", strokeDash=alt.StrokeDash(
        "run:N", sort=list(looks), scale=dashes, legend=alt.Legend(**style.STROKES)))
    known = any(row["accuracy_low"] is not None for row in data["checkpoints"])
    chart = alt.layer(line, *([bars(base, "accuracy_low", "accuracy_high", "y")] if known else []), points)
    return Figure("pareto", "budget", "Accuracy against answer length, all checkpoints",
                  "Up and to the left is better. Lines follow training; bars: 95% intervals over problems.",
                  finished(chart, height=300), ("checkpoints",))


def _budgets(data: Tables, looks: Mapping[str, int]) -> Figure | None:
    if not data["budgets"]:
        return None
    there = {run: number for run, number in looks.items() if any(row["run"] == run for row in data["budgets"])}
    x = alt.X("budget:Q", title="budget B, tokens", scale=alt.Scale(zero=False))
    y = alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"))
    return Figure("budgets", "budget", "J(B) of each run's last evaluation",
                  "Accuracy on held-out problems when answers are cut at B tokens, with 95% intervals (Wilson).",
                  finished(curves("budgets", "run", there, x, y, band=("low", "high")), height=300), ("budgets",))


def result_table(runs: Sequence[RunData]) -> Table:
    """A row a run; differences to the first run, paired by question."""
    rows = [_result(run, runs[0]) for run in runs]
    head = ("run", "checkpoint", "accuracy", "95% interval", "Δ accuracy", "tokens", "Δ tokens", "truncated", "steps",
            "sampled tokens", "time")
    return Table("Last evaluation of each run", head, rows, _result_note(runs), texts=(0, 1))


def _result(run: RunData, first: RunData) -> list[str]:
    last, reference = last_evaluation(run), last_evaluation(first)
    cost = [f"{len(run.records)}", large(sum(record.get("tokens") or 0 for record in run.records)),
            duration(sum(record.get("step_s") or 0 for record in run.records))]
    if last is None:
        return [run.name, "no evaluation", "", "", "", "", "", "", *cost]
    low, high = last.get("accuracy_ci") or (None, None)
    differences = ["", ""]
    if reference is not None and run is not first:
        differences = [_points(by_question(reference, last, "accuracy")),
                       _tokens(by_question(reference, last, "tokens"))]
    return [run.name, last["tag"], percent(last["accuracy"]), interval(low, high), differences[0],
            number(last["mean_tokens"]), differences[1], percent(last["truncated"]), *cost]


def _result_note(runs: Sequence[RunData]) -> str:
    return (f"Δ: difference to {runs[0].name} on the same questions, with the 95% interval of a paired bootstrap over "
            "questions; empty where the questions differ or were not recorded. One run a side says nothing about other "
            "seeds.")


def arm_tables(runs: Sequence[RunData]) -> list[Table]:
    """Arms with several seeds, if there are any, compared seed by seed."""
    found = arms(runs)
    if len(found) < 2 or all(len(members) < 2 for members in found.values()):
        return []
    first = next(iter(found.values()))
    rows = [_arm(name, members, first) for name, members in found.items()]
    return [Table("Arms: runs that differ in their seed alone", ("arm", "runs", "accuracy", "Δ accuracy", "tokens",
                                                                 "Δ tokens"), rows,
                  "Means over the last evaluations. Δ: difference to the first arm over the seeds that both have, with "
                  "the 95% interval of a paired bootstrap over seeds from five seeds on.")]


def _arm(name: str, members: Sequence[RunData], first: Sequence[RunData]) -> list[str]:
    last = [evaluation for run in members if (evaluation := last_evaluation(run))]
    differences = ["", ""] if members is first else [_points(by_seed(first, members, "accuracy")),
                                                     _tokens(by_seed(first, members, "mean_tokens"))]
    return [name, str(len(members)), percent(mean(one["accuracy"] for one in last)), differences[0],
            number(mean(one["mean_tokens"] for one in last)), differences[1]]


def _points(difference: Difference | None) -> str:
    """`+3.1 points [+0.4, +5.9]`."""
    return _difference(difference, 100.0, " points")


def _tokens(difference: Difference | None) -> str:
    return _difference(difference, 1.0, "")


def _difference(difference: Difference | None, scale: float, unit: str) -> str:
    if difference is None:
        return ""
    ends = "" if difference.low is None or difference.high is None else (
        f" [{scale * difference.low:+.1f}, {scale * difference.high:+.1f}]")
    return f"{scale * difference.value:+.1f}{unit}{ends}".replace("-", "−")


def _settings(runs: Sequence[RunData]) -> list[Table]:
    apart = settings_apart(runs)
    rows = [[fit(key, 100), *(fit(_text(value), 120) for value in values)] for key, values in apart.items()]
    return [Table("Settings in which the runs differ", ("key", *(run.name for run in runs)), rows,
                  texts=range(len(runs) + 1))] if rows else []


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
