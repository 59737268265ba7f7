"""What a budget section refuses: both values and the way out are in the message."""

from __future__ import annotations

import pytest
from budget_configs import config
from pydantic import ValidationError

from siri_megatron.config import BudgetConfig, validate
from siri_megatron.errors import ConfigError

STAGED = {"schedule": "staged", "l_min": 8, "l_max": 32, "stages": ((3, 8), (4, 32))}


@pytest.mark.parametrize(("changes", "words"), [
    ({"l_min": 129}, r"l_min=129 is above l_max=128"),
    ({"cycle_steps": 7}, r"cycle_steps=7 is odd: .* or set compression_steps"),
    ({"compression_steps": 24}, r"compression_steps=24 of cycle_steps=24: both phases have at least one step"),
    ({"cycle_steps": None}, r"schedule=cosine without cycle_steps: it needs cycle_steps and cycles"),
    ({"cycle_steps": None, "cycles": None}, r"schedule=cosine without cycle_steps and cycles"),
    ({"stages": ((3, 64),)}, r"stages=\(\(3, 64\),\) with schedule=cosine, which does not read it"),
    ({"schedule": "constant", "ranges": ((48, 64),)}, r"ranges=.* with schedule=constant, which does not read it"),
    ({"schedule": "closed", "ranges": ((48, 64),)}, r"ranges=.* with schedule=closed"),
    ({"schedule": "closed", "compression_steps": 8}, r"compression_steps=8 with schedule=closed"),
    ({"ranges": ((48, 129),)}, r"ranges has the cap 48\.\.129, the run l_min=48\.\.l_max=128"),
    ({"ranges": ((96, 64),)}, r"ranges has the cap 96\.\.64.* lowest first"),
    ({"ranges": ((40, 64),)}, r"ranges has the cap 40\.\.64"),
    ({"closed": {"delta": 0.3}}, r"closed=\{'delta': 0\.3\} with schedule=cosine, which does not read it"),
    ({"schedule": "closed", "closed": {"first_cap": 200}},
     r"closed\.first_cap has the cap 200, the run l_min=48\.\.l_max=128"),
    ({"schedule": "closed", "closed": {"window": 9, "dwell": 6}},
     r"closed\.window=9, closed\.dwell=6, closed\.longest_phase=24: window <= dwell"),
    ({"closed": {"hold_truncated": 0.5}}, r"hold_truncated=0\.5 is above end_truncated=0\.4"),
    ({"closed": {"hysteresis": 0.3}}, r"hysteresis=0\.3 is above delta=0\.2"),
    ({"closed": {"delta": 0}}, r"greater than 0"),
])
def test_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        config(**changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({"stages": ()}, r"schedule=staged without stages: it needs stages; set budget\.stages"),
    ({"cycles": 3}, r"cycles=3 with schedule=staged, which does not read it: leave cycles out"),
    ({"hold_steps": 2}, r"hold_steps=2 with schedule=staged"),
    ({"stages": ((3, 8), (4, 33))}, r"stages has the cap 33, the run l_min=8\.\.l_max=32"),
])
def test_stages_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        BudgetConfig(**(STAGED | changes))


def test_a_closed_loop_needs_a_budget_of_the_grid_below_the_top():
    raw = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4}, "rollout": {"budget_grid": [64, 300]},
           "budget": {"schedule": "closed", "l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3}}
    assert validate(raw, "test").budget.steps == 72
    with pytest.raises(ConfigError, match=r"budget_grid=\[32, 128\], nothing of which lies in l_min=48\.\.l_max=128"):
        validate(raw | {"rollout": {"budget_grid": [32, 128]}}, "test")


def test_a_budget_stands_once_in_the_grid():
    """Twice, it would have one reward but two columns, and the first step would fail once it was collected."""
    raw = {"name": "r", "model": {"path": "m"}, "optimizer": {"lr": 1e-4}, "rollout": {"budget_grid": [64, 32, 64]},
           "budget": {"l_min": 48, "l_max": 128, "cycle_steps": 24, "cycles": 3}}
    with pytest.raises(ConfigError, match=r"\[64, 32, 64\] has the budget 64 twice"):
        validate(raw, "test")
    assert validate(raw | {"rollout": {"budget_grid": [64, 32]}}, "test").rollout.budget_grid == (64, 32)


def test_lengths_left_out_follow_the_cycle():
    """At the paper's scale: a window of 40 steps, phases of 160 to 640, and the cosine's 40 tokens a step."""
    paper = config(schedule="closed", l_min=8192, l_max=16384, cycle_steps=640)
    assert (paper.window, paper.dwell, paper.longest_phase, paper.slope, paper.first_cap) == (40, 160, 640, 40, 16384)
    assert (paper.steps, paper.phase_ends) == (1920, 12)
    tiny = config(schedule="closed", closed={"window": 7, "first_cap": 96})
    assert (tiny.window, tiny.dwell, tiny.longest_phase, tiny.slope, tiny.first_cap) == (7, 7, 24, 10, 96)
