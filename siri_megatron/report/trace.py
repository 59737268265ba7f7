"""`trace.json`: the run as a Chrome trace (the Trace Event Format), for ui.perfetto.dev and chrome://tracing. Pure.

A process of the run is a process of the trace; the row `schedule` has the phases as bars, and cap, accuracy and mean
tokens as counters. Times are microseconds since the run's first span.

Invariants:
- every_stage_per_process: each recorded span is one complete event ("X") of its process, unless `bounded` bites.
- bounded: beyond LIMIT spans whole processes are left out, the last ones first, and the trace says how many.
- rows_do_not_overlap: spans of one process that overlap lie in rows (threads) of their own.
- never_negative: no time and no duration is below 0.
- bands_hold_their_steps: a phase's bar spans exactly the spans of its steps on the first learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from siri_megatron.report.read import RunData
from siri_megatron.report.tables import phase_of
from siri_megatron.report.timeline import lane_order

LIMIT = 400_000
"""Spans: about 50 MB."""
ROUNDING_S = 5e-5  # spans are written to 10 microseconds, so neighbours may seem to overlap by that
COUNTERS = ("cap", "accuracy", "mean_tokens", "truncated")
Event = dict[str, Any]


def trace(run: RunData) -> dict[str, Any]:
    """The JSON object of a trace; without spans it has no events but the names."""
    lanes, left_out = kept_lanes(run.spans)
    begin = min((span[1] for lines in lanes.values() for line in lines for span in line["spans"]), default=0.0)
    events = [*_named(0, "schedule"), *_bands(run, lanes, begin)]
    for pid, (process, lines) in enumerate(lanes.items(), start=1):
        events += _named(pid, process)
        spans = [(line.get("step"), span) for line in lines for span in line["spans"]]
        rows = rows_of([(span[1], span[1] + span[2]) for _, span in spans])
        events += [_complete(pid, span[0], span[1] - begin, span[2], process.partition("-")[0],
                             {"step": step, **(span[3] if len(span) > 3 else {})}, row)
                   for (step, span), row in zip(spans, rows, strict=True)]
    return {"traceEvents": events, "displayTimeUnit": "ms",
            "otherData": {"run": run.name, "begin": begin, "processes_left_out": left_out}}


def kept_lanes(spans: Sequence[Mapping[str, Any]],
               limit: int = LIMIT) -> tuple[dict[str, list[Mapping[str, Any]]], int]:
    """Lines of each process that fits, in the order of the trace; and how many processes do not."""
    ordered = sorted(spans, key=lambda line: lane_order(line["process"]))
    lanes: dict[str, list[Mapping[str, Any]]] = {}
    count = left_out = 0
    for process, group in groupby(ordered, lambda line: line["process"]):
        lines = list(group)
        count += sum(len(line["spans"]) for line in lines)
        if count > limit and lanes:
            left_out += 1
        else:
            lanes[process] = lines
    return lanes, left_out


def _bands(run: RunData, lanes: Mapping[str, Sequence[Mapping[str, Any]]], begin: float) -> list[Event]:
    """Bars of the phases and counters, timed by the first learner's spans."""
    first = next((lines for process, lines in lanes.items() if process.startswith("learner")), [])
    times = {line["step"]: (min(span[1] for span in line["spans"]) - begin,
                            max(span[1] + span[2] for span in line["spans"]) - begin)
             for line in first if line.get("step") is not None and line["spans"]}
    timed = [record for record in run.records if record["step"] in times]
    events: list[Event] = []
    for (cycle, phase), group in groupby(timed, phase_of):
        steps = list(group)
        start, end = times[steps[0]["step"]][0], times[steps[-1]["step"]][1]
        about = {"cycle": cycle, "first_step": steps[0]["step"], "last_step": steps[-1]["step"]}
        events.append(_complete(0, str(phase), start, end - start, "phase", about))
    events += [{"ph": "C", "name": key, "pid": 0, "tid": 0, "ts": _us(times[record["step"]][0]),
                "args": {key: record[key]}} for record in timed for key in COUNTERS if record.get(key) is not None]
    return events


def rows_of(spans: Sequence[tuple[float, float]]) -> list[int]:
    """A row (thread of the trace) for each (start, end), so that none of a row overlap: viewers nest those that do."""
    rows, ends = [0] * len(spans), list[float]()
    for number in sorted(range(len(spans)), key=lambda at: spans[at]):
        start, end = spans[number]
        free = next((row for row, last in enumerate(ends) if last <= start + ROUNDING_S), len(ends))
        ends[free:free + 1] = [end]
        rows[number] = free
    return rows


def _complete(pid: int, name: str, start: float, seconds: float, category: str, about: Mapping[str, Any],
              row: int = 0) -> Event:
    return {"ph": "X", "name": name, "cat": category, "pid": pid, "tid": row, "ts": _us(start), "dur": _us(seconds),
            "args": {key: value for key, value in about.items() if value is not None}}


def _named(pid: int, name: str) -> list[Event]:
    return [{"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}},
            {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}]


def _us(seconds: float) -> float:
    return round(max(0.0, seconds) * 1e6, 1)
