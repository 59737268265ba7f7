"""The timeline of a few steps: which process was at what, by the spans that it wrote. Pure.

Invariants:
- within_the_step: every bar lies between the start of the step's first span and its end on the learners.
- bounded: at most `STEPS` steps and `LANES` processes are shown; the processes left out are counted.
- newest_counts: of a step that was done twice (resume) the last time is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
STEPS = 5
LANES = 24
SHORTEST = 0.01
"""Share of the step; less of what collector and engines do is the edge of another step's work."""
NAMES = {"busy": "engine busy", "collect": "collecting", "evaluate": "evaluating"}
"""How spans of collector and engines are called for people."""
_NUMBER = re.compile(r"(\d+)")


def chosen_steps(records: Sequence[Mapping[str, Any]], spans: Sequence[Mapping[str, Any]],
                 wanted: int | None = None) -> list[tuple[int, str]]:
    """(step, why it is shown): the wanted one first, then a typical, the slowest, the first and the last one."""
    recorded = {line["step"] for line in spans if line.get("step") is not None}
    timed = [record for record in records if record["step"] in recorded and record.get("step_s") is not None]
    if not timed:
        return []
    by_time = sorted(timed, key=lambda record: record["step_s"])
    reasons = [(by_time[len(by_time) // 2]["step"], "typical"), (by_time[-1]["step"], "slowest"),
               (timed[0]["step"], "first"), (timed[-1]["step"], "last")]
    if wanted in recorded:
        reasons.insert(0, (wanted, "chosen"))
    why: dict[int, str] = {}
    for step, reason in reasons:
        why[int(step)] = f"{why[int(step)]}, {reason}" if int(step) in why else reason
    return list(why.items())[:STEPS]


def timeline(spans: Sequence[Mapping[str, Any]], steps: Sequence[tuple[int, str]]) -> list[Row]:
    """A row a bar: step, process, stage, start and end in seconds since the step began."""
    rows: list[Row] = []
    for step, why in steps:
        rows += _of_step(spans, step, f"step {step} ({why})")
    return rows


def _of_step(spans: Sequence[Mapping[str, Any]], step: int, label: str) -> list[Row]:
    newest = {line["process"]: line["spans"] for line in spans if line.get("step") == step
              and line["process"].startswith("learner")}
    if not newest:
        return []
    begin = min(span[1] for lane in newest.values() for span in lane)
    end = max(span[1] + span[2] for lane in newest.values() for span in lane)
    others = [(line["process"], span) for line in spans if not line["process"].startswith("learner")
              for span in line["spans"] if min(end, span[1] + span[2]) - max(begin, span[1]) > SHORTEST * (end - begin)]
    bars = [*((process, span) for process, lane in newest.items() for span in lane), *others]
    lanes = sorted({process for process, _ in bars}, key=lane_order)[:LANES]
    return [{"label": label, "process": process, "lane": lanes.index(process), "stage": NAMES.get(span[0], span[0]),
             "start": max(0.0, span[1] - begin), "end": min(end, span[1] + span[2]) - begin,
             "detail": detail(span)} for process, span in bars if process in lanes]


def detail(span: Sequence[Any]) -> str:
    """`8 requests, 512 tokens`: what a span says beside its times."""
    return ", ".join(f"{value} {key}" for key, value in span[3].items() if key != "step") if len(span) > 3 else ""


def lane_order(process: str) -> tuple[int, list[Any]]:
    """Learners above the collector above engines, each by number."""
    kinds = ("learner", "collector", "engine")
    kind = next((number for number, name in enumerate(kinds) if process.startswith(name)), len(kinds))
    return kind, [int(part) if part.isdigit() else part for part in _NUMBER.split(process)]
