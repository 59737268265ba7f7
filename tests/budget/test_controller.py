from __future__ import annotations

import json
from itertools import pairwise

import pytest
from budget_configs import closed_loops, config, open_loops, worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from siri_megatron.budget.controller import ClosedLoopController, PhaseController, controller_of
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.errors import ConfigError, DataError


def test_tiny_cosine_by_hand():
    """88 + 40 cos(2 pi t / 24) at t = 1 .. 24."""
    caps = [PhaseController(config()).budget(step).cap for step in range(24)]
    assert caps == [127, 123, 116, 108, 98, 88, 78, 68, 60, 53, 49, 48, 49, 53, 60, 68, 78, 88, 98, 108, 116, 123, 127,
                    128]


def test_paper_run_names_its_steps():
    """1,920 steps: the third compression ends with the 1,600th step at 8,192, the third expansion with the last."""
    controller = PhaseController(config(l_min=8192, l_max=16384, cycle_steps=640))
    ends = {step + 1: tag for step in range(1920) if (tag := controller.phase_end(step))}
    assert ends == {320: "iter1-compressed", 640: "iter1-expanded", 960: "iter2-compressed", 1280: "iter2-expanded",
                    1600: "iter3-compressed", 1920: "iter3-expanded"}
    assert controller.budget(1599) == StepBudget(1599, 2, "compression", 8192, controller.budget(1599).version)
    assert controller.budget(1919).cap == 16384


def saved(controller):
    return json.loads(json.dumps(controller.state()))


def run(controller, given, until=None, resume=None):
    """Drive a controller through the steps as the loop does: [(budget, tag, state)]. Stops before step `until`."""
    seen = []
    first = 0 if resume is None else resume
    for step in range(first, controller.steps if until is None else until):
        budget = controller.budget(step)
        controller.observe(step, given(budget))
        seen.append((budget, controller.phase_end(step), saved(controller)))
    return seen


def check_run(seen, steps):
    """version_counts_changes, phases_tile_the_run and one_tag_a_phase."""
    budgets = [budget for budget, _, _ in seen]
    assert [budget.step for budget in budgets] == list(range(steps))
    for before, budget in pairwise(budgets):
        assert budget.version == before.version + (budget.cap != before.cap)
    assert budgets[0].version == 1
    assert budgets[0].phase == "compression"
    tags = [tag for _, tag, _ in seen if tag]
    assert len(set(tags)) == len(tags)
    assert seen[-1][1] is not None


@given(open_loops)
def test_every_open_loop(chosen):
    controller = controller_of(chosen, grid=())
    seen = run(controller, lambda _: {})
    check_run(seen, chosen.steps)
    table = controller.table()
    assert [(step, tag) for step, (_, tag, _) in enumerate(seen) if tag] == [(row.last_step, row.tag) for row in table]
    covered = [step for row in table for step in range(row.first_step, row.last_step + 1)]
    assert covered == list(range(chosen.steps))
    for row in table:
        budgets = [controller.budget(step) for step in range(row.first_step, row.last_step + 1)]
        caps = [budget.cap for budget in budgets]
        assert {(b.phase, b.cycle) for b in budgets} == {(row.phase, row.cycle)}
        assert (row.first_cap, row.last_cap) == (caps[0], caps[-1])
        assert (row.lowest_cap, row.highest_cap) == (min(caps), max(caps))
        assert row.mean_cap == pytest.approx(sum(caps) / len(caps))


@settings(max_examples=100, deadline=None)
@given(closed_loops(), st.sampled_from([0, 1, 3]), st.data())
def test_every_closed_loop(loop, lag, data):
    chosen, grid = loop
    seen = run(controller_of(chosen, grid=grid, lag=lag), data.draw(worlds(grid)))
    check_run(seen, chosen.steps)
    for step, (budget, tag, _) in enumerate(seen[:-1]):
        after = seen[step + 1][0]
        assert (tag is not None) == ((budget.cycle, budget.phase) != (after.cycle, after.phase))
        assert budget.cycle <= after.cycle
    assert sum(tag is not None for _, tag, _ in seen) <= chosen.phase_ends


@settings(max_examples=100, deadline=None)
@given(closed_loops(), st.sampled_from([0, 1, 3]), st.data())
def test_stamps_immutable(loop, lag, data):
    """What was issued ahead is what is trained, whatever is measured meanwhile; nothing is issued further ahead."""
    chosen, grid = loop
    controller, given = controller_of(chosen, grid=grid, lag=lag), data.draw(worlds(grid))
    promised = {}
    for step in range(controller.steps):
        for ahead in range(step, min(step + lag + 1, controller.steps)):
            assert promised.setdefault(ahead, controller.budget(ahead)) == controller.budget(ahead)
        if step + lag + 1 < controller.steps:
            with pytest.raises(ConfigError, match=f"step {step + lag + 1} has no budget"):
                controller.budget(step + lag + 1)
        controller.observe(step, given(controller.budget(step)))


@settings(max_examples=100, deadline=None)
@given(closed_loops() | open_loops.map(lambda chosen: (chosen, ())), st.sampled_from([0, 1, 3]), st.data())
def test_state_round_trip(loop, lag, data):
    """Killed after any commit and resumed: the same budgets, tags and states as never stopped."""
    chosen, grid = loop
    given = data.draw(worlds(grid or (64,)))
    whole = run(controller_of(chosen, grid=grid, lag=lag), given)
    cut = data.draw(st.integers(0, chosen.steps))
    stopped = controller_of(chosen, grid=grid, lag=lag)
    before, state = run(stopped, given, until=cut), saved(stopped)
    resumed = controller_of(chosen, grid=grid, lag=lag)
    resumed.restore(state)
    assert saved(resumed) == state
    assert before + run(resumed, given, resume=cut) == whole


def test_another_schedule_is_refused():
    """Both values are named, and those of every other key that differs."""
    state = PhaseController(config()).state()
    with pytest.raises(ConfigError, match=r"budget\.l_min 48, the config now has 96\n") as refused:
        PhaseController(config(l_min=96)).restore(state)
    assert "keeps its schedule" in refused.value.rule
    with pytest.raises(ConfigError, match=r"budget\.cycle_steps 24, .* 48; budget\.schedule cosine, .* stair"):
        PhaseController(config(schedule="stair", cycle_steps=48)).restore(state)
    with pytest.raises(ConfigError, match=r"schedule cosine, the config now has closed"):
        controller_of(config(schedule="closed"), grid=(64,)).restore(state)
    closed = controller_of(config(schedule="closed"), grid=(64,)).state()
    with pytest.raises(ConfigError, match=r"closed\.delta 0\.2, the config now has 0\.3\n"):
        controller_of(config(schedule="closed", closed={"delta": 0.3}), grid=(64,)).restore(closed)
    with pytest.raises(ConfigError, match=r"grid \[64\], the config now has \[64, 96\]; budget\.lag 0, .* 1"):
        controller_of(config(schedule="closed"), grid=(64, 96), lag=1).restore(closed)


def test_a_closed_loop_hears_every_step_once():
    controller = ClosedLoopController(config(schedule="closed"), (64,))
    with pytest.raises(ConfigError, match="step 1 was observed after step -1"):
        controller.observe(1, {})


@pytest.mark.parametrize("step", [-1, 72])
def test_steps_outside_the_run_are_refused(step):
    with pytest.raises(ConfigError, match=f"step {step} is outside of a run of 72 steps"):
        PhaseController(config()).budget(step)


def test_step_budget_json():
    budget = PhaseController(config()).budget(40)
    assert StepBudget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


@pytest.mark.parametrize("change", [{"phase": "holiday"}, {"cap": "48"}, {"cap": True}, {"surplus": 1}])
def test_step_budget_refuses_other_json(change):
    with pytest.raises(DataError, match="is not a step budget"):
        StepBudget.from_json({**PhaseController(config()).budget(0).to_json(), **change})
