"""The timeline of a few steps: the invariants of report.timeline."""

from __future__ import annotations

import pytest
from report_runs import record, write_run

from siri_megatron.report.read import read_run
from siri_megatron.report.timeline import LANES, STEPS, chosen_steps, lane_order, timeline


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("timeline") / "run").root)


def test_chosen_steps(run):
    records = [one | {"step_s": 1.0 + (one["step"] == 7) + 0.001 * one["step"]} for one in run.records]
    assert chosen_steps(records, run.spans) == [(21, "typical"), (7, "slowest"), (0, "first"), (39, "last")]
    assert chosen_steps(records, run.spans, 7)[0] == (7, "chosen, slowest")
    assert chosen_steps(records, run.spans, 999)[0] == (21, "typical")
    assert chosen_steps(records, []) == []
    assert len(chosen_steps(records, run.spans, 3)) <= STEPS


def test_within_the_step(run):
    rows = timeline(run.spans, [(5, "why")])
    assert {row["process"] for row in rows} == {"learner-0", "learner-1", "collector", "engine-0"}
    assert all(0 <= row["start"] <= row["end"] <= 73.0 for row in rows)
    busy, = (row for row in rows if row["process"] == "engine-0")
    assert (round(busy["start"], 3), round(busy["end"], 3), busy["stage"]) == (0.5, 39.5, "engine busy")
    assert busy["detail"] == "8 requests"


def test_newest_counts(run):
    again = {"process": "learner-0", "step": 5, "spans": [["training", 2e9, 1.0]]}
    rows = timeline([*run.spans, again], [(5, "why")])
    assert [row["stage"] for row in rows if row["process"] == "learner-0"] == ["training"]


def test_bounded():
    spans = [{"process": f"learner-{rank}", "step": 0, "spans": [["training", 0.0, 1.0]]} for rank in range(100)]
    rows = timeline(spans, chosen_steps([record(0, steps=1)], spans))
    assert len({row["process"] for row in rows}) == LANES
    assert {row["lane"] for row in rows} == set(range(LANES))


def test_a_step_without_learners_has_no_timeline():
    assert timeline([{"process": "engine-0", "step": 0, "spans": [["busy", 0.0, 1.0]]}], [(0, "why")]) == []


def test_lane_order():
    processes = ["odd", "engine-10", "engine-2", "collector", "learner-11", "learner-3"]
    assert sorted(processes, key=lane_order) == ["learner-3", "learner-11", "collector", "engine-2", "engine-10", "odd"]
