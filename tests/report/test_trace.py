"""The Chrome trace: the Trace Event Format's rules for the events used, and the invariants of report.trace.

The format (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): complete events ("X") have ts and
dur in microseconds and nest within a thread; counters ("C") have numbers in args; metadata ("M") names processes.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import write_run

from siri_megatron.report.read import read_run
from siri_megatron.report.trace import kept_lanes, rows_of, trace


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("trace") / "run", cycle_steps=20).root)


def check_format(events) -> None:
    """What a viewer relies on."""
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert isinstance(event["args"], dict)
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
        else:
            assert event["ph"] == "M"
            assert event["name"] in ("process_name", "process_sort_index")
    threads = {(event["pid"], event["tid"]) for event in events if event["ph"] == "X"}
    for thread in threads:
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events
                       if event["ph"] == "X" and (event["pid"], event["tid"]) == thread)
        assert all(one[1] <= other[0] + 50 for one, other in pairwise(spans)), thread


def test_format(run):
    made = json.loads(json.dumps(trace(run), allow_nan=False))
    check_format(made["traceEvents"])
    assert made["displayTimeUnit"] == "ms"


def test_format_check_sees_an_overlap():
    """Negative control."""
    span = {"ph": "X", "name": "a", "pid": 1, "tid": 0, "ts": 0.0, "dur": 1000.0, "args": {}}
    with pytest.raises(AssertionError):
        check_format([span, span | {"ts": 500.0}])


def test_every_stage_per_process(run):
    events = trace(run)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert list(names.values()) == ["schedule", "learner-0", "learner-1", "collector", "engine-0"]
    spans = [(names[event["pid"]], event["name"], event["ts"], event["dur"]) for event in events
             if event["ph"] == "X" and event["pid"] > 0]
    begin = min(span[1] for line in run.spans for span in line["spans"])
    expected = [(line["process"], span[0], round((span[1] - begin) * 1e6, 1), round(span[2] * 1e6, 1))
                for line in run.spans for span in line["spans"]]
    assert sorted(spans) == sorted(expected)


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


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10)).map(lambda at: (float(at[0]), float(sum(at))))))
def test_rows_do_not_overlap(spans):
    rows = rows_of(spans)
    for row in set(rows):
        placed = sorted(span for span, number in zip(spans, rows, strict=True) if number == row)
        assert all(one[1] <= other[0] for one, other in pairwise(placed))


def test_one_row_where_nothing_overlaps():
    assert rows_of([(0.0, 1.0), (1.0, 2.0), (5.0, 6.0)]) == [0, 0, 0]


def test_without_spans(tmp_path):
    events = trace(read_run(write_run(tmp_path / "run", spans=False).root))["traceEvents"]
    assert {event["ph"] for event in events} == {"M"}
