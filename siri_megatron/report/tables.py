"""The tables behind the figures, as rows of plain values. Pure; what is unknown is None.

Invariants:
- sums_are_of_all_steps: cumulated tokens and seconds count every step, whatever is drawn.
- phases_bounded: at most MOST_PHASES rows of phases; beyond it a row holds several.
- stages_add_up: the seconds of a phase's stages are those of its steps and of the events at its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from siri_megatron.observe.stages import STAGES
from siri_megatron.observe.summary import siri_names
from siri_megatron.report.bins import bins, merge

Row = dict[str, Any]
Records = Sequence[Mapping[str, Any]]

MOST_PHASES = 200
MOST_WIDTHS = 24
CURVE_COLUMNS = 160
"""Columns of the J(B) surface."""


def steps_table(records: Records) -> list[Row]:
    """A row a point of the curves: the metrics but for the curves a budget, and tokens and hours so far."""
    rows = [_step_row(record) for record in _cumulated(records)]
    return [merge(rows[part.start:part.stop]) for part in bins([phase_of(row) for row in rows])]


def _step_row(record: Mapping[str, Any]) -> Row:
    row = {key: value for key, value in record.items() if not isinstance(value, Mapping)}
    return row | {"grad_norm_peak": record.get("grad_norm")}


def _cumulated(records: Records) -> list[Row]:
    tokens, seconds, rows = 0.0, 0.0, []
    for record in records:
        tokens, seconds = tokens + (record.get("tokens") or 0), seconds + (record.get("step_s") or 0)
        rows.append({**record, "tokens_so_far": tokens, "hours_so_far": seconds / 3600})
    return rows


def phase_of(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record.get("cycle"), record.get("phase")


def curves_table(records: Records, key: str = "budget_accuracy") -> list[Row]:
    """A row a budget and column of steps: J(B) over training."""
    known = [record for record in records if record.get(key)]
    merged = [merge(known[part.start:part.stop]) for part in bins([0] * len(known), CURVE_COLUMNS)]
    return [{"step": column["first_step"], "end": column["last_step"] + 1, "budget": budget, "value": value}
            for column in merged for budget, value in sorted(column[key].items())]


def widths_table(records: Records) -> list[Row]:
    """A row a padded width and column of steps: the share of its micro-batches; bucketed runs alone have any."""
    known = [record for record in records if record.get("widths_used")]
    name, rows = _few_widths({width for record in known for width in record["widths_used"]}), list[Row]()
    for part in bins([0] * len(known), CURVE_COLUMNS):
        steps, counts = known[part.start:part.stop], Counter[int]()
        for step in steps:
            for width, count in step["widths_used"].items():
                counts[name[width]] += count or 0
        rows += [{"step": steps[0]["step"], "end": steps[-1]["step"] + 1, "width": width,
                  "share": counts[width] / counts.total()} for width in sorted(counts) if counts[width]]
    return rows


def _few_widths(widths: Collection[int]) -> dict[int, int]:
    """Width -> the one that stands for it: itself, or where there are many the widest of its neighbours."""
    ordered = sorted(widths)
    size = max(1, -(-len(ordered) // MOST_WIDTHS))
    return {width: ordered[min(len(ordered), at - at % size + size) - 1] for at, width in enumerate(ordered)}


def phases_table(records: Records, events: Records = ()) -> list[Row]:
    """A row a phase: extent, caps, means, tokens a second, and seconds of each stage."""
    rows: list[Row] = []
    for name, phase, steps in _phases(records):
        rows.append({"number": len(rows), "name": name, "phase": phase, "start": steps[0]["step"],
                     "end": steps[-1]["step"] + 1, **_means(steps), **_speeds(steps),
                     **{f"{stage}_s": _sum(steps, f"{stage}_s") for stage in STAGES}})
    for event in events:
        _count_event(rows, event)
    return rows


def _phases(records: Records) -> list[tuple[str, str | None, list[Mapping[str, Any]]]]:
    """(name, phase, steps) of each phase, or of several in a row (phase None) where there are very many."""
    found = [(*key, list(steps)) for key, steps in groupby(records, phase_of)]
    size = -(-len(found) // MOST_PHASES)
    if size <= 1:
        return [(_phase_name(cycle, phase), phase, steps) for cycle, phase, steps in found]
    groups = [found[start:start + size] for start in range(0, len(found), size)]
    return [(f"{_phase_name(*group[0][:2])} to {_phase_name(*group[-1][:2])}", None,
             [step for _, _, steps in group for step in steps]) for group in groups]


def _phase_name(cycle: float | None, phase: str | None) -> str:
    return ("" if cycle is None else f"{int(cycle) + 1} ") + (phase or "unknown")


def _means(steps: Records) -> Row:
    caps = [step["cap"] for step in steps if step.get("cap") is not None]
    keys = ("accuracy", "mean_tokens", "truncated", "entropy")
    return {"first_cap": caps[0] if caps else None, "last_cap": caps[-1] if caps else None,
            **{key: mean(step.get(key) for step in steps) for key in keys}}


def _speeds(steps: Records) -> Row:
    fresh = [step for step in steps if not step.get("reused")]
    sampling = "sampling_s" if any(step.get("sampling_s") for step in steps) else "generation_s"
    return {"generation_speed": _rate(fresh, "tokens", sampling),
            "training_speed": _rate(steps, "train_tokens", "training_s")}


def _count_event(rows: list[Row], event: Mapping[str, Any]) -> None:
    """Seconds of a commit, export or evaluation: they belong to the phase that ends at the event's step."""
    seconds, step = event.get("seconds"), event.get("step")
    if event["kind"] not in STAGES or not isinstance(seconds, (int, float)) or not isinstance(step, int):
        return
    row = next((row for row in rows if row["start"] < step <= row["end"]), rows[0] if rows and step == 0 else None)
    if row:
        row[f"{event['kind']}_s"] += seconds


def stages_table(phases: Sequence[Row]) -> list[Row]:
    """A row a phase and stage."""
    totals = [sum(phase[f"{stage}_s"] for stage in STAGES) for phase in phases]
    return [{"number": phase["number"], "name": phase["name"], "stage": stage, "order": order,
             "seconds": phase[f"{stage}_s"], "share": phase[f"{stage}_s"] / total if total else None}
            for phase, total in zip(phases, totals, strict=True) for order, stage in enumerate(STAGES)]


def checkpoints_table(evaluations: Records) -> list[Row]:
    """A row an evaluation, in the order of training."""
    names = siri_names([evaluation["tag"] for evaluation in evaluations])
    rows = []
    for order, evaluation in enumerate(evaluations):
        low, high = evaluation.get("accuracy_ci") or (None, None)
        short, long = evaluation.get("mean_tokens_ci") or (None, None)
        rows.append({"tag": evaluation["tag"], "name": names.get(evaluation["tag"], ""), "order": order,
                     "kind": kind_of(evaluation["tag"]), "accuracy": evaluation["accuracy"], "accuracy_low": low,
                     "accuracy_high": high, "tokens": evaluation["mean_tokens"], "tokens_low": short,
                     "tokens_high": long, "truncated": evaluation["truncated"], "problems": evaluation["problems"],
                     "samples": evaluation["samples"]})
    return rows


def kind_of(tag: str) -> str:
    """Which kind of checkpoint a tag names."""
    for ending, kind in (("compressed", "end of compression"), ("expanded", "end of expansion")):
        if tag.endswith(f"-{ending}"):
            return kind
    return "start" if tag == "start" else "other"


def budgets_table(evaluations: Records) -> list[Row]:
    """A row an evaluation and budget: J(B) on held-out problems."""
    return [{"tag": evaluation["tag"], "order": order, "budget": int(budget), "accuracy": at["accuracy"],
             "low": (at.get("ci") or (None, None))[0], "high": (at.get("ci") or (None, None))[1]}
            for order, evaluation in enumerate(evaluations)
            for budget, at in sorted(evaluation["budgets"].items(), key=lambda item: int(item[0]))]


def tiers_table(evaluations: Records) -> list[Row]:
    """A row an evaluation and tier of difficulty."""
    return [{"tag": evaluation["tag"], "order": order, "tier": tier, "accuracy": at["accuracy"],
             "tokens": at["mean_tokens"], "problems": at["problems"]}
            for order, evaluation in enumerate(evaluations) for tier, at in evaluation.get("tiers", {}).items()]


def mean(values: Any) -> float | None:
    """Mean of what is known; None if nothing is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _sum(steps: Records, key: str) -> float:
    return sum(step.get(key) or 0.0 for step in steps)


def _rate(steps: Records, tokens: str, seconds: str) -> float | None:
    spent = _sum(steps, seconds)
    return _sum(steps, tokens) / spent if spent else None
