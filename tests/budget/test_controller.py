from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siri_megatron.budget.controller import PhaseController
from siri_megatron.budget.step_budget import StepBudget
from siri_megatron.config import BudgetConfig
from siri_megatron.errors import ConfigError, DataError


def config(**changes):
    return BudgetConfig(**{"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3, **changes})


configs = st.builds(
    lambda schedule, low, rise, half, cycles: config(schedule=schedule, l_min=low, l_max=low + rise,
                                                     cycle_steps=2 * half, cycles=cycles),
    st.sampled_from(["cosine", "stair", "stair_cosine", "constant"]), st.integers(1, 500), st.integers(0, 500),
    st.integers(1, 20), st.integers(1, 5))


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


@given(configs)
def test_pure_in_the_step(settings):
    used, fresh = PhaseController(settings), PhaseController(settings)
    for step in range(used.steps):
        used.observe(step, {"accuracy": 0.5})
    steps = list(reversed(range(used.steps)))
    assert [used.budget(step) for step in steps] == [fresh.budget(step) for step in steps]


@given(configs)
def test_version_counts_changes(settings):
    controller = PhaseController(settings)
    budgets = [controller.budget(step) for step in range(controller.steps)]
    for step, budget in enumerate(budgets):
        changes = sum(budgets[s].cap != budgets[s - 1].cap for s in range(1, step + 1))
        assert (budget.step, budget.version) == (step, 1 + changes)


@given(configs)
def test_phases_tile_the_run(settings):
    controller = PhaseController(settings)
    table = controller.table()
    covered = [step for row in table for step in range(row.first_step, row.last_step + 1)]
    assert covered == list(range(controller.steps))
    assert [row.phase for row in table] == ["compression", "expansion"] * settings.cycles
    for row in table:
        budgets = [controller.budget(step) for step in range(row.first_step, row.last_step + 1)]
        caps = [budget.cap for budget in budgets]
        assert {(b.phase, b.cycle) for b in budgets} == {(row.phase, row.cycle)}
        assert (row.first_cap, row.last_cap) == (caps[0], caps[-1])
        assert (row.lowest_cap, row.highest_cap) == (min(caps), max(caps))
        assert row.mean_cap == pytest.approx(sum(caps) / len(caps))


@given(configs)
def test_one_tag_a_phase(settings):
    controller = PhaseController(settings)
    ends = [(step, tag) for step in range(controller.steps) if (tag := controller.phase_end(step))]
    assert ends == [(row.last_step, row.tag) for row in controller.table()]
    assert len({tag for _, tag in ends}) == 2 * settings.cycles


@given(configs, st.data())
def test_state_round_trip(settings, data):
    controller = PhaseController(settings)
    controller.observe(data.draw(st.integers(-1, controller.steps - 1)), {})
    state = json.loads(json.dumps(controller.state()))
    resumed = PhaseController(settings)
    resumed.restore(state)
    assert resumed.state() == controller.state()


def test_state_of_another_schedule_is_refused():
    """88 + 40 cos(14 pi / 24) = 77.6 against 112 + 16 cos(14 pi / 24) = 107.9."""
    controller = PhaseController(config())
    controller.observe(30, {})
    with pytest.raises(ConfigError, match=r"step 30 was trained under .*'cap': 78.*now gives .*'cap': 108"):
        PhaseController(config(l_min=96)).restore(controller.state())


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
