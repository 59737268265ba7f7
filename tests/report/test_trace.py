"""The Chrome trace: the Trace Event Format's rules for the events used, and the invariants of report.trace.

The format (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): complete events ("X") have ts and
dur in microseconds and nest within a thread; counters ("C") have numbers in args; metadata ("M") names processes.
Perfetto (json_trace_tokenizer.cc, slice_tracker.cc) takes thread 0 of process n for its thread n, and drops complete
events that neither nest nor follow one another, be it by a microsecond.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import lines, write_run

from siri_megatron.report.read import read_run
from siri_megatron.report.trace import ROUNDING_US, kept_lanes, rows_of, trace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("trace") / "run", cycle_steps=20).root)


def check_format(events) -> None:
    """What a viewer relies on."""
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index")
            continue
        assert isinstance(event["ts"], int)
        assert event["ts"] >= 0
        assert isinstance(event["args"], dict)
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
        else:
            assert event["ph"] == "X"
            assert isinstance(event["dur"], int)
            assert event["dur"] >= 0
    named = [event["pid"] for event in events if event["name"] == "process_name"]
    assert sorted(named) == sorted({event["pid"] for event in events})
    assert dropped(events) == []


def dropped(events) -> list:
    """Complete events that Perfetto would drop: it keeps a stack of open ones a thread."""
    stacks, left_out = {}, []
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        start, end = event["ts"], event["ts"] + event["dur"]
        stack = stacks.setdefault((event["pid"], event["tid"] or event["pid"]), [])
        while stack and stack[-1] <= start:
            stack.pop()
        if stack and stack[-1] < end:
            left_out.append(event)
        else:
            stack.append(end)
    return left_out


def test_format(run):
    made = json.loads(json.dumps(trace(run), allow_nan=False))
    check_format(made["traceEvents"])
    assert made["displayTimeUnit"] == "ms"


SPAN = {"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": 0, "dur": 1000, "args": {}}


def test_format_check_sees_what_is_dropped():
    """Negative control: an overlap of a microsecond; thread 0 of process 1, which is thread 1."""
    assert dropped([SPAN, SPAN | {"ts": 1000}, SPAN | {"ts": 1200, "dur": 10}, SPAN | {"pid": 2}]) == []
    assert dropped([SPAN, SPAN | {"ts": 999}]) == [SPAN | {"ts": 999}]
    assert dropped([SPAN, SPAN | {"ts": 500, "tid": 0}])


def test_nothing_is_dropped_by_viewers(tmp_path):
    """An engine that answers for two at a time, and neighbours that overlap by the rounding of what is written."""
    paths = write_run(tmp_path / "run", steps=3, cycle_steps=4, spans=False)
    paths.spans.mkdir()
    lines(paths.spans / "learner-0.jsonl", [{"process": "learner-0", "step": step, "spans": [
        ["generation", 1.7e9 + step, 0.50002], ["training", 1.7e9 + step + 0.5, 0.50001]]} for step in range(3)])
    lines(paths.spans / "collector.jsonl", [{"process": "collector", "step": None, "spans": [
        ["collect", 1.7e9 + 0.4 * number, 1.0] for number in range(9)]}])
    events = trace(read_run(paths.root))["traceEvents"]
    check_format(events)
    assert sum(event["ph"] == "X" for event in events) == 2 + 6 + 9  # bands, learner, collector
    assert [event["dur"] for event in events if event["name"] == "generation"] == [500_000] * 3


def test_every_stage_per_process(run):
    events = trace(run)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert list(names.values()) == ["schedule", "learner-0", "learner-1", "collector", "engine-0"]
    spans = [(names[event["pid"]], event["name"], event["ts"], event["dur"]) for event in events
             if event["ph"] == "X" and event["pid"] > 0]
    begin = min(span[1] for line in run.spans for span in line["spans"])
    expected = [(line["process"], span[0], round((span[1] - begin) * 1e6), round(span[2] * 1e6))
                for line in run.spans for span in line["spans"]]
    for found, wanted in zip(sorted(spans), sorted(expected), strict=True):
        assert found[:3] == wanted[:3]
        assert found[3] == pytest.approx(wanted[3], abs=1)


def test_bands_hold_their_steps(run):
    bands = [event for event in trace(run)["traceEvents"] if event["ph"] == "X" and event["pid"] == 0]
    assert [(band["name"], band["args"]["first_step"], band["args"]["last_step"]) for band in bands] == [
        ("compression", 0, 9), ("expansion", 10, 19), ("compression", 20, 29), ("expansion", 30, 39)]
    assert [band["ts"] for band in bands] == [0.0, 730e6, 1460e6, 2190e6]
    assert all(band["dur"] == 730e6 for band in bands)


def test_bounded():
    spans = [{"process": f"learner-{rank}", "step": step, "spans": [["training", 0.0, 1.0]]}
             for step in range(10) for rank in range(8)]
    lanes, left_out = kept_lanes(spans, limit=35)
    assert list(lanes) == ["learner-0", "learner-1", "learner-2"]
    assert left_out == 5
    assert kept_lanes(spans, limit=80)[1] == 0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 200)).map(lambda at: (at[0], sum(at)))))
def test_rows_do_not_overlap(spans):
    placed = rows_of(spans)
    assert all(0 <= end - stop <= ROUNDING_US and stop >= start
               for (start, end), (_, stop) in zip(spans, placed, strict=True))
    events = [SPAN | {"ts": start, "dur": stop - start, "tid": 1 + row}
              for (start, _), (row, stop) in zip(spans, placed, strict=True)]
    assert dropped(events) == []


def test_one_row_where_nothing_overlaps():
    assert rows_of([(0, 100), (90, 200), (500, 600)]) == [(0, 90), (0, 200), (0, 600)]


def test_without_spans(tmp_path):
    events = trace(read_run(write_run(tmp_path / "run", spans=False).root))["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}
