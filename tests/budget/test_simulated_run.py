"""Whole runs in a simulated world: the closed loop makes answers shorter and keeps the accuracy; an open loop within
the same limits loses it. What the world assumes stands in `simulated_learner`."""

from __future__ import annotations

import pytest
from simulated_learner import SimulatedLearner

from siri_megatron.budget.controller import controller_of
from siri_megatron.config import BudgetConfig

GRID = (32, 40, 48, 56, 64, 72, 80, 96, 112, 128)
LIMITS = {"l_min": 32, "l_max": 128, "cycle_steps": 48, "cycles": 10}


def train(schedule, seed):
    """Change of accuracy and of mean tokens, both at the cap 128, from the start to the end of a run."""
    world = SimulatedLearner(seed, GRID)
    controller = controller_of(BudgetConfig(schedule=schedule, **LIMITS), grid=GRID)
    before, length = world.accuracy(128), world.tokens(128)
    for step in range(controller.steps):
        controller.observe(step, world.step(controller.budget(step).cap))
    return world.accuracy(128) - before, world.tokens(128) / length - 1


@pytest.mark.parametrize("seed", range(5))
def test_closed_loop_compresses_without_losing_accuracy(seed):
    accuracy, tokens = train("closed", seed)
    assert accuracy > 0
    assert tokens < -0.2


@pytest.mark.parametrize("schedule", ["cosine", "stair", "stair_cosine", "linear"])
def test_negative_control_the_same_limits_open_loop(schedule):
    """The world does punish: every fixed shape down to 32 tokens is as short, and loses more than a tenth."""
    accuracy, tokens = train(schedule, 0)
    assert accuracy < -0.1
    assert tokens < -0.2


def test_negative_control_without_pressure():
    """Nor does it reward standing still: at a constant cap answers stay within a tenth of their length."""
    accuracy, tokens = train("constant", 0)
    assert accuracy > 0
    assert tokens > -0.1
