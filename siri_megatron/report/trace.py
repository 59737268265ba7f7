"""`trace.json`: the run as a Chrome trace (the Trace Event Format), for ui.perfetto.dev and chrome://tracing. Pure.

A process of the run is a process of the trace; the row `schedule` has the phases as bars, and cap, accuracy and mean
tokens as counters. Times are microseconds since the run's first span.

Invariants:
- every_stage_per_process: each recorded span is one complete event ("X") of its process, unless `bounded` bites.
- bounded: beyond LIMIT spans whole processes are left out, the last ones first, and the trace says how many.
- rows_do_not_overlap: spans of one process that overlap lie in rows (threads) of their own, for viewers drop them.
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
ROUNDING_US = 50
"""Spans are written to 10 microseconds, so neighbours may seem to overlap by a few of them."""
COUNTERS = ("cap", "accuracy", "mean_tokens", "truncated")
Event = dict[str, Any]
Span = tuple[str, int, int, Mapping[str, Any]]
"""(name, start, end, about it), microseconds since the trace began."""


def trace(run: RunData) -> dict[str, Any]:
    """The JSON object of a trace; without spans it has no events but the names."""
    lanes, left_out = kept_lanes(run.spans)
    begin = min((span[1] for lines in lanes.values() for line in lines for span in line["spans"]), default=0.0)
    events = [*_named(0, "schedule"), *_bands(run, lanes, begin)]
    for pid, (process, lines) in enumerate(lanes.items(), start=1):
        spans = [(span[0], *_times([span], begin), {"step": line.get("step"), **(span[3] if len(span) > 3 else {})})
                 for line in lines for span in line["spans"]]
        events += [*_named(pid, process), *_complete(pid, process.partition("-")[0], spans)]
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
    times = {line["step"]: _times(line["spans"], begin) for line in first
             if line.get("step") is not None and line["spans"]}
    timed = [record for record in run.records if record["step"] in times]
    bands: list[Span] = []
    for (cycle, phase), group in groupby(timed, phase_of):
        steps = [record["step"] for record in group]
        about = {"cycle": cycle, "first_step": steps[0], "last_step": steps[-1]}
        bands.append((str(phase), times[steps[0]][0], times[steps[-1]][1], about))
    return [*_complete(0, "phase", bands), *(
        {"ph": "C", "name": key, "pid": 0, "tid": 1, "ts": times[record["step"]][0], "args": {key: record[key]}}
        for record in timed for key in COUNTERS if record.get(key) is not None)]


def _times(spans: Sequence[Sequence[Any]], begin: float) -> tuple[int, int]:
    """(start of the first, end of the last), microseconds since `begin`."""
    return (round(1e6 * (min(span[1] for span in spans) - begin)),
            round(1e6 * (max(span[1] + span[2] for span in spans) - begin)))


def rows_of(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(row, end) for each (start, end), in microseconds, so that none of a row overlap.

    A row is a thread of the trace. Spans that overlap by rounding stay in one row: the former then ends with the start
    of the latter.
    """
    placed, newest = [(0, 0)] * len(spans), list[int]()
    for number in sorted(range(len(spans)), key=lambda at: spans[at]):
        start, end = spans[number]
        row = next((row for row, at in enumerate(newest) if placed[at][1] <= start + ROUNDING_US), len(newest))
        for before in newest[row:row + 1]:
            placed[before] = row, min(placed[before][1], start)
        newest[row:row + 1] = [number]
        placed[number] = row, end
    return placed


def _complete(pid: int, category: str, spans: Sequence[Span]) -> list[Event]:
    """Complete events of a process. Threads count from 1: Perfetto takes thread 0 for thread `pid`."""
    rows = rows_of([(start, end) for _, start, end, _ in spans])
    return [{"ph": "X", "name": name, "cat": category, "pid": pid, "tid": 1 + row, "ts": start, "dur": end - start,
             "args": {key: value for key, value in about.items() if value is not None}}
            for (name, start, _, about), (row, end) in zip(spans, rows, strict=True)]


def _named(pid: int, name: str) -> list[Event]:
    return [{"ph": "M", "name": "process_name", "pid": pid, "tid": 1, "args": {"name": name}},
            {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 1, "args": {"sort_index": pid}}]
