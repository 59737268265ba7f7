from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.observe.render import text
from siri_megatron.observe.stages import STAGES, StageClock, stage_report, stage_table


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def time():
    return FakeTime()


walks = st.recursive(st.integers(1, 9), lambda inner: st.tuples(st.sampled_from(STAGES), st.lists(inner, max_size=4)),
                     max_leaves=12)


def walk(clock, time, plan, spent, stage="other"):
    """Run a nested plan of stages and waits, and keep the books beside it."""
    if isinstance(plan, int):
        time.wait(plan)
        spent[stage] += plan
        return
    with clock.stage(plan[0]):
        for part in plan[1]:
            walk(clock, time, part, spent, plan[0])


@given(st.lists(walks, max_size=5))
def test_seconds_add_up(plans):
    time = FakeTime()
    clock, spent = StageClock(time), dict.fromkeys(STAGES, 0)
    for plan in plans:
        walk(clock, time, plan, spent)
    taken = clock.take()
    assert taken.pop("step") == time.now - 100 == sum(spent.values())
    assert taken == spent
    assert set(clock.take().values()) == {0}


def test_innermost_counts(time):
    clock = StageClock(time)
    with clock.stage("generation"):
        time.wait(1)
        with clock.stage("push"):
            time.wait(10)
        time.wait(2)
    assert {name: spent for name, spent in clock.take().items() if spent} == {"generation": 3, "push": 10, "step": 13}


def test_a_stage_ends_when_it_raises(time):
    clock = StageClock(time)
    with pytest.raises(ZeroDivisionError):
        fail_within(clock, time)
    time.wait(2)
    taken = clock.take()
    assert (taken["training"], taken["other"]) == (1, 2)


def fail_within(clock, time):
    with clock.stage("training"):
        time.wait(1)
        _ = 1 / 0


@pytest.mark.parametrize(("asked", "moved"), [(2, 2), (99, 5), (-3, 0)])
def test_moving_keeps_the_sum(time, asked, moved):
    clock = StageClock(time)
    with clock.stage("generation"):
        time.wait(5)
    clock.move("generation", "verification", asked)
    taken = clock.take()
    assert (taken["generation"], taken["verification"], taken["step"]) == (5 - moved, moved, 5)


def test_unknown_stages_are_refused(time):
    with pytest.raises(ValueError, match="'lunch' is not a stage"), StageClock(time).stage("lunch"):
        pass


RECORDS = [{"step": step, "generation_s": 4.0, "training_s": 5.0, "planning_s": 0.5, "push_s": 0.25, "other_s": 0.25,
            "tokens": 8000, "train_tokens": 10000, "reused": step == 3} for step in range(4)]
EVENTS = [{"kind": "commit", "step": 2, "seconds": 2.0}, {"kind": "evaluation", "step": 2, "seconds": 8.0},
          {"kind": "run_started", "step": None, "seconds": 1000.0}]


def test_report_by_hand():
    """Four steps of 10 s, a commit of 2 s, an evaluation of 8 s, 50 s of start-up: 100 s."""
    report = stage_report(RECORDS, EVENTS, startup_s=50.0)
    rows = {row.name: row for row in report.rows}
    assert report.total_s == 100
    assert (rows["start-up"].share, rows["generation"].share, rows["commit"].share) == (0.5, 0.16, 0.02)
    assert rows["generation"].tokens_per_s == 2000  # the reused step was not sampled and does not count
    assert rows["training"].tokens_per_s == 2000
    assert report.outside == pytest.approx(14 / 50)
    assert report.outside_plain_steps == pytest.approx(6 / 42)


def test_report_of_an_empty_run():
    report = stage_report([])
    assert (report.total_s, report.outside, report.outside_plain_steps) == (0, 0, 0)
    assert "generation" in text(stage_table(report))


def test_table_text():
    lines = text(stage_table(stage_report(RECORDS, EVENTS, 50.0))).splitlines()
    assert ["generation", "16.0", "16.0%", "2,000"] in [line.split() for line in lines]
    assert lines[-1] == ("outside generation and training: 28.0% of the time after start-up, "
                         "14.3% without evaluation and export")
